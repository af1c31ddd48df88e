"""What runs wait for, asked in one statement for a page of runs, and remembered for half a second."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from terrapod_server.agents import accepting, reasons
from terrapod_server.agents.rules import ONLINE
from terrapod_server.kit.api.declare import Attr, Extension
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db import database
from terrapod_server.kit.db.conditions import Where, shifted
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.bus import Bus
from terrapod_server.runs import actions as runs
from terrapod_server.runs import states
from terrapod_server.runs.states import Status
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock

_HOLDERS = 3
#: For so long what a run waits for is taken to be as it was. The CLI asks every second at most.
FRESH_S = 0.5
#: Of so many runs it is remembered.
_MOST = 4096
_STATEMENT_S = 60.0
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


#: What `facts` selects, in this order.
_FACTS = (
    "id", "workspace_id", "plan_only", "lease_state", "engine_tool", "engine_version", "engine_wanted", "workspace",
    "locked", "lock_reason", "locked_by_name", "run_lock_reason", "pool", "configuration", "listener", "listener_seen",
    "places", "first_id", "first_status", "online", "taking", "slots", "last_seen", "platform", "leases", "holders",
    "is_open", "has_engine", "engine_at",
)  # fmt: skip


class Known(dict[str, Any]):
    """The facts of one run. As long as they stay the same they stay one object, by which what is rendered of them is kept."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other


class Memory:
    """What this process has asked lately: the reads of a queue need one statement for all who look at it.

    Who waits for what changes without the run's row. What changes in the run's own workspace is forgotten at once, the
    rest (listeners that come, go and work, locks, pools) is known `FRESH_S` later. Nothing here depends on the caller.
    """

    def __init__(self, bus: Bus) -> None:
        self._known: dict[str, tuple[float, Known]] = {}
        self._of_workspace: dict[str, set[str]] = {}
        self._changed: dict[str, float] = {}
        self._asking: dict[str, asyncio.Task[dict[str, Known]]] = {}
        bus.watch(self._forget)

    @classmethod
    def of(cls, services: Services) -> "Memory":
        """The one that this server has."""
        if "waits" not in services.remembered:
            services.remembered["waits"] = cls(services.bus)
        found: Memory = services.remembered["waits"]
        return found

    async def facts(self, run_ids: Sequence[str], principal: Principal) -> dict[str, Any]:
        """The same as `facts`. Whose names depend on the caller's rights is asked anew."""
        now = time.monotonic()
        found: dict[str, Any] = {}
        missing = []
        for run_id in run_ids:
            until, known = self._known.get(run_id, (0.0, None))
            if known is not None and now < until:
                found[run_id] = known
            else:
                missing.append(run_id)
        if missing:
            found |= await self._together(missing)
        if workspaces.in_readable(principal).sql:
            named = [run_id for run_id, known in found.items() if known["leases"] >= known["slots"]]
            found |= await facts(named, principal) if named else {}
        return found

    async def _together(self, run_ids: Sequence[str]) -> dict[str, Known]:
        """Asks for what nobody is asking for now, and waits for the answers to the rest."""
        if new := [run_id for run_id in run_ids if run_id not in self._asking]:
            task = asyncio.create_task(self._ask(new))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if nobody waits any more
            self._asking |= dict.fromkeys(new, task)
        found: dict[str, Known] = {}
        for task in {self._asking[run_id] for run_id in run_ids}:
            answered = await asyncio.shield(task)
            found |= {run_id: answered[run_id] for run_id in run_ids if run_id in answered}
        return found

    async def _ask(self, run_ids: Sequence[str]) -> dict[str, Known]:
        begun, this = time.monotonic(), asyncio.current_task()
        try:
            rows = await facts(run_ids, None)
        finally:
            for run_id in run_ids:
                if self._asking.get(run_id) is this:
                    del self._asking[run_id]
        return {run_id: self._remember(run_id, row, begun) for run_id, row in rows.items()}

    def _remember(self, run_id: str, row: dict[str, Any], begun: float) -> Known:
        """Keeps what was asked for, unless its workspace has changed since."""
        _, known = self._known.pop(run_id, (0.0, None))
        if known is None or dict(known) != row:
            known = Known(row)
        workspace_id = row["workspace_id"]
        if begun <= self._changed.get(workspace_id, 0.0):
            return known
        if len(self._known) >= _MOST:
            self._known.clear()
            self._of_workspace.clear()
        self._known[run_id] = (begun + FRESH_S, known)
        self._of_workspace.setdefault(workspace_id, set()).add(run_id)
        return known

    def _forget(self, topic: str) -> None:
        kind, _, name = topic.partition(":")
        if kind != "workspace":
            return
        now = time.monotonic()
        if len(self._changed) >= _MOST:  # no statement takes that long
            self._changed = {key: at for key, at in self._changed.items() if at > now - _STATEMENT_S}
        self._changed[name] = now
        self._asking.clear()
        for run_id in self._of_workspace.pop(name, ()):
            self._known.pop(run_id, None)


async def facts(run_ids: Sequence[str], principal: Principal | None) -> dict[str, dict[str, Any]]:
    """What `reasons` makes its sentences of, by run. One statement.

    Runs that hold the slots are named only where the caller may read their workspaces; all of them for None.
    """
    readable = workspaces.in_readable(principal) if principal else Where()
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
    # between two runs of the page alone, so that a page walks once along the index, however long the queue is
    ahead = "run o WHERE o.workspace_id = mine.workspace_id AND o.plan_only = FALSE AND o.id < mine.id"
    rows = await database.rows(
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
        ), mine AS (
            SELECT own.id, own.workspace_id,
                lag(own.id) OVER (PARTITION BY own.workspace_id ORDER BY own.id) AS before,
                (SELECT o.id FROM run o WHERE o.workspace_id = own.workspace_id AND o.holds_queue = TRUE LIMIT 1) AS holder
            FROM own WHERE own.status IN ({in_line}) AND NOT own.plan_only AND NOT own.holds_queue
        ), gaps AS (
            SELECT mine.*, (SELECT count(*) FROM {ahead} AND o.status = 'pending' AND o.id >= coalesce(mine.before, ''))
                + (SELECT count(*) FROM {ahead} AND o.status = 'confirmed' AND o.holds_queue = FALSE
                    AND o.id >= coalesce(mine.before, '')) AS gap,
                (SELECT min(o.id) FROM {ahead} AND o.status = 'pending') AS pending,
                (SELECT min(o.id) FROM {ahead} AND o.status = 'confirmed') AS confirmed
            FROM mine
        ), line AS (
            SELECT id, CAST(sum(gap) OVER (PARTITION BY workspace_id ORDER BY id) AS bigint)
                    + CASE WHEN holder IS NULL THEN 0 ELSE 1 END AS places,
                coalesce(holder, CASE WHEN confirmed < coalesce(pending, 'z') THEN confirmed ELSE pending END) AS first
            FROM gaps
        )
        SELECT own.id, own.workspace_id, own.plan_only, own.lease_state, own.engine_tool, own.engine_version, own.engine_wanted,
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
        LEFT JOIN run f ON f.id = line.first
        LEFT JOIN there ON there.pool_id = own.pool_id
        LEFT JOIN busy ON busy.pool_id = own.pool_id
        LEFT JOIN holders ON holders.pool_id = own.pool_id
        """,  # noqa: S608  only our own words and marks are put in
        [*run_ids, clock.now() - ONLINE, *readable.values],
    )
    return {row[0]: dict(zip(_FACTS, row, strict=True)) for row in rows}


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
    load=lambda ids, call: Memory.of(call.services).facts(ids, call.principal),
    is_loaded=reasons.needs_facts_of,
)
