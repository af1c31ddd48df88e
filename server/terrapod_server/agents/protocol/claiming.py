"""Which work a listener gets: the oldest phase of its pool that it can run and that its host takes."""

from collections.abc import Iterable, Mapping
from typing import Any

from terrapod_server.agents import accepting
from terrapod_server.kit.db.conditions import Where
from terrapod_server.runs import actions as runs
from terrapod_server.runs import leases


async def claim(
    listener_id: str, pool_id: str, engines: Iterable[str] = (), accepts: Mapping[str, Any] | None = None
) -> runs.PhaseRow | None:
    """Offers the oldest waiting phase of the pool to a listener, or None. One statement.

    `engines` are the local ones that the listener announced, as `tool version`,
    `accepts` the work that it takes: what it does not is never shown to it.
    A workspace that the pool is not open to is passed over, whenever it was
    that it lost the right.
    """
    values: list[Any] = list(engines)
    marks = ", ".join(f"${number}" for number in range(1, 1 + len(values))) or "''"
    is_open = (
        f"EXISTS (SELECT 1 FROM agent_pool a WHERE a.id = p.pool_id AND {accepting.open_to('a', 'p.workspace_id')})"  # noqa: S608
    )
    has_engine = f"(NOT r.engine_is_local OR r.engine_tool || ' ' || r.engine_version IN ({marks}))"
    taken = accepting.condition(accepts or {}, values)
    return await leases.offer(listener_id, pool_id, Where(f"{is_open} AND {has_engine}{taken}", tuple(values)))
