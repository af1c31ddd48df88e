"""How much work waits in pools, and how much they can take: one statement, for people, autoscalers and metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from terrapod_server.agents import accepting
from terrapod_server.agents.rules import ONLINE
from terrapod_server.kit.db import database
from terrapod_shared import clock


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Of one pool. What waits counts only where the pool is open to the workspace: no listener could take the rest."""

    listeners: int = 0  #: that are there
    slots: int = 0  #: of those that take work
    free: int = 0  #: of the slots
    waiting: int = 0  #: phases that wait for a listener, plan-only ones included
    waiting_plan_only: int = 0
    oldest_s: float = 0.0  #: how long the oldest of them has waited
    running: int = 0  #: phases at listeners
    held: int = 0  #: applies whose listener is lost


async def of(pool_ids: Sequence[str] | None = None) -> dict[str, Depth]:
    """By pool; None: of all."""
    pools = "SELECT id FROM agent_pool"
    if pool_ids is not None:
        marks = ", ".join(f"${place}" for place in range(2, len(pool_ids) + 2)) or "''"
        pools += f" WHERE id IN ({marks})"
    queued = (
        "p.status_timestamps->>'queued-at'"
        if database.is_postgres()
        else "json_extract(p.status_timestamps, '$.\"queued-at\"')"
    )
    waits = f"p.lease_state = 'ready' AND {accepting.open_to('a', 'p.workspace_id')}"
    takes = "NOT l.draining AND NOT l.drain_requested"
    rows = await database.query(
        f"""
        WITH pools AS ({pools}
        ), work AS (
            SELECT p.pool_id,
                sum(CASE WHEN {waits} THEN 1 ELSE 0 END) AS waiting,
                sum(CASE WHEN {waits} AND r.plan_only THEN 1 ELSE 0 END) AS waiting_plan_only,
                min(CASE WHEN {waits} THEN {queued} END) AS oldest,
                sum(CASE WHEN p.lease_state IN ('offered', 'leased') THEN 1 ELSE 0 END) AS running,
                sum(CASE WHEN p.lease_state = 'held' THEN 1 ELSE 0 END) AS held
            FROM run_phase p JOIN run r ON r.id = p.run_id JOIN agent_pool a ON a.id = p.pool_id
            WHERE p.pool_id IN (SELECT id FROM pools) AND p.lease_state IN ('ready', 'offered', 'leased', 'held')
            GROUP BY p.pool_id
        ), at AS (
            SELECT lease_listener_id AS id, count(*) AS leases FROM run_phase
            WHERE lease_state IN ('offered', 'leased') GROUP BY lease_listener_id
        ), there AS (
            SELECT l.pool_id, count(*) AS listeners, sum(CASE WHEN {takes} THEN l.capacity ELSE 0 END) AS slots,
                sum(CASE WHEN {takes} AND l.capacity > coalesce(at.leases, 0)
                    THEN l.capacity - coalesce(at.leases, 0) ELSE 0 END) AS free
            FROM listener l LEFT JOIN at ON at.id = l.id
            WHERE l.pool_id IN (SELECT id FROM pools) AND l.revoked_at IS NULL AND l.last_seen_at > $1
            GROUP BY l.pool_id
        )
        SELECT pools.id, work.waiting, work.waiting_plan_only, work.oldest, work.running, work.held,
            there.listeners, there.slots, there.free
        FROM pools LEFT JOIN work ON work.pool_id = pools.id LEFT JOIN there ON there.pool_id = pools.id
        """,  # noqa: S608  only our own words and marks are put in
        [clock.now() - ONLINE, *(pool_ids or ())],
    )
    names = ("listeners", "slots", "free", "waiting", "waiting_plan_only", "running", "held")
    return {
        row["id"]: Depth(**{name: int(row[name] or 0) for name in names}, oldest_s=_age_s(row["oldest"]))
        for row in rows
    }


def _age_s(stamp: str | None) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()) if stamp else 0.0
