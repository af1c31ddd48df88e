"""What runs wait for, asked in one statement for a page of runs."""

from collections.abc import Sequence
from typing import Any

from terrapod_server.agents import accepting, reasons
from terrapod_server.agents.rules import ONLINE
from terrapod_server.kit.api.declare import Attr, Extension
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db import database
from terrapod_server.kit.db.conditions import shifted
from terrapod_server.runs import actions as runs
from terrapod_server.runs import states
from terrapod_server.runs.states import Status
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock

_HOLDERS = 3
_IN_LINE = (Status.PENDING, Status.CONFIRMED)


async def explain(run: runs.Row, principal: Principal) -> dict[str, Any] | None:
    """Why a run waits: kind, text, since when. None for one that waits for nothing."""
    known = await facts([run.id], principal) if reasons.needs_facts_of(run) else {}
    return _waits_for(run, known.get(run.id))


def _waits_for(run: runs.Row, known: reasons.Facts | None) -> dict[str, Any] | None:
    since = run.status_timestamps.get(_since(run))
    return reasons.of(run.status, known, since=since, status_message=run.status_message)


def _position(run: runs.Row, known: reasons.Facts | None) -> int:
    return int(known["places"]) if known and run.status in _IN_LINE else 0


def _since(row: runs.Row) -> str:
    return "plan-queueable-at" if row.status is Status.PENDING else states.timestamp_name(row.status)


async def facts(run_ids: Sequence[str], principal: Principal) -> dict[str, dict[str, Any]]:
    """What `reasons` makes its sentences of, by run. One statement.

    Runs that hold the slots are named only where the caller may read their workspaces.
    """
    readable = workspaces.in_readable(principal)
    shift = len(run_ids) + 1
    marks = ", ".join(f"${number}" for number in range(1, shift))
    shown = shifted(readable.sql, shift) if readable.sql else "1 = 1"
    seen = f"${shift}"
    is_postgres = database.is_postgres()
    joined = "string_agg(ranked.run_id, ',')" if is_postgres else "group_concat(ranked.run_id, ',')"
    announced = (
        "jsonb_array_elements(l.local_engines) e WHERE e->>'tool' = own.engine_tool AND e->>'version' = own.engine_version"
        if is_postgres
        else "json_each(l.local_engines) e WHERE json_extract(e.value, '$.tool') = own.engine_tool "
        "AND json_extract(e.value, '$.version') = own.engine_version"
    )
    in_line = ", ".join(f"'{status.value}'" for status in _IN_LINE)
    is_there = f"l.last_seen_at > {seen} THEN"
    rows = await database.query(
        f"""
        WITH own AS (
            SELECT r.id, r.workspace_id, r.status, r.plan_only, r.holds_queue, r.engine_tool, r.engine_version,
                r.engine_wanted, r.engine_is_local, r.configuration_version_id, p.pool_id, p.lease_state, p.lease_listener_id
            FROM run r JOIN run_phase p ON p.run_id = r.id
                AND p.kind = CASE WHEN r.status IN ('pending', 'plan_queued') THEN 'plan' ELSE 'apply' END
            WHERE r.id IN ({marks})
        ), pools AS (SELECT DISTINCT pool_id FROM own
        ), there AS (
            SELECT l.pool_id, max(l.last_seen_at) AS last_seen, max(l.os || '_' || l.arch) AS platform,
                sum(CASE WHEN {is_there} 1 ELSE 0 END) AS online,
                sum(CASE WHEN NOT l.draining AND NOT l.drain_requested AND {is_there} 1 ELSE 0 END) AS taking,
                sum(CASE WHEN NOT l.draining AND NOT l.drain_requested AND {is_there} l.capacity ELSE 0 END) AS slots
            FROM listener l WHERE l.revoked_at IS NULL AND l.pool_id IN (SELECT pool_id FROM pools) GROUP BY l.pool_id
        ), taken AS (
            SELECT t.pool_id, t.run_id, CASE WHEN {shown} THEN 1 ELSE 0 END AS is_shown
            FROM run_phase t WHERE t.pool_id IN (SELECT pool_id FROM pools) AND t.lease_state IN ('offered', 'leased')
        ), busy AS (SELECT pool_id, count(*) AS leases FROM taken GROUP BY pool_id
        ), ranked AS (
            SELECT pool_id, run_id, row_number() OVER (PARTITION BY pool_id ORDER BY run_id) AS place
            FROM taken WHERE is_shown = 1
        ), holders AS (
            SELECT ranked.pool_id, {joined} AS names FROM ranked WHERE place <= {_HOLDERS} GROUP BY ranked.pool_id
        ), line AS (
            SELECT own.id, count(*) AS places,
                min(CASE WHEN other.holds_queue THEN '0' ELSE '1' END || other.id) AS first
            FROM own JOIN run other ON other.workspace_id = own.workspace_id AND NOT other.plan_only
                AND other.id <> own.id
                AND (other.holds_queue OR (other.status IN ({in_line}) AND other.id < own.id))
            WHERE own.status IN ({in_line}) AND NOT own.plan_only AND NOT own.holds_queue GROUP BY own.id
        )
        SELECT own.id, own.plan_only, own.lease_state, own.engine_tool, own.engine_version, own.engine_wanted,
            w.name AS workspace, w.locked, w.lock_reason, w.locked_by_name, w.run_lock_reason, a.name AS pool,
            c.status AS configuration, h.name AS listener, h.last_seen_at AS listener_seen,
            coalesce(line.places, 0) AS places, f.id AS first_id, f.status AS first_status,
            coalesce(there.online, 0) AS online, coalesce(there.taking, 0) AS taking,
            coalesce(there.slots, 0) AS slots, there.last_seen AS last_seen, there.platform,
            coalesce(busy.leases, 0) AS leases, holders.names AS holders,
            {accepting.open_to("a", "own.workspace_id")} AS is_open,
            CASE WHEN own.lease_state = 'offered' OR NOT own.engine_is_local THEN (
                own.lease_state <> 'offered' OR EXISTS (SELECT 1 FROM engine_file g
                    WHERE g.tool = own.engine_tool AND g.version = own.engine_version)
                OR EXISTS (SELECT 1 FROM listener l, {announced} AND l.id = own.lease_listener_id))
            ELSE EXISTS (SELECT 1 FROM listener l, {announced}
                AND l.pool_id = own.pool_id AND l.revoked_at IS NULL AND l.last_seen_at > {seen}) END AS has_engine,
            CASE WHEN own.engine_is_local THEN (SELECT l.name FROM listener l, {announced}
                AND l.pool_id = own.pool_id AND l.revoked_at IS NULL
                ORDER BY l.last_seen_at DESC LIMIT 1) END AS engine_at
        FROM own
        JOIN workspace w ON w.id = own.workspace_id
        JOIN agent_pool a ON a.id = own.pool_id
        LEFT JOIN configuration_version c ON c.id = own.configuration_version_id
        LEFT JOIN listener h ON h.id = own.lease_listener_id
        LEFT JOIN line ON line.id = own.id
        LEFT JOIN run f ON f.id = substr(line.first, 2)
        LEFT JOIN there ON there.pool_id = own.pool_id
        LEFT JOIN busy ON busy.pool_id = own.pool_id
        LEFT JOIN holders ON holders.pool_id = own.pool_id
        """,  # noqa: S608  only our own words and marks are put in
        [*run_ids, clock.now() - ONLINE, *readable.values],
    )
    return {row["id"]: row for row in rows}


#: Why a run waits stands in no row of its own. Runs that are over, and those that only a person holds, cost nothing.
EXTENSION = Extension(
    of="runs",
    attributes=(
        Attr(
            "waits-for",
            dict,
            "why it waits: kind (for programs), text (for people), since; null where it does not",
            value=lambda added, _: _waits_for(added.row, added.fact),
        ),
        Attr(
            "position-in-queue",
            int,
            "how many are before it",
            value=lambda added, _: _position(added.row, added.fact),
        ),
    ),
    load=lambda ids, call: facts(ids, call.principal),
    is_loaded=reasons.needs_facts_of,
)
