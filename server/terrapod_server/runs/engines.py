"""Which engine a run is run with: settled when the run is made where it can be, else as soon as it can.

A run whose version is not known, or whose engine no release site can give now,
is `engine_is_local`: only a listener that has the engine is offered it. It is
looked at again when a listener of its pool says which engines it has, and every
few seconds, since a site may answer again and a cache may be filled.
"""

import logging
from typing import Any, Final

from terrapod_server.engines import actions as engine_cache
from terrapod_server.engines import rules
from terrapod_server.engines.actions import Settled
from terrapod_server.kit.db import database
from terrapod_server.kit.services import Services
from terrapod_server.runs import ports
from terrapod_server.runs.change import Change
from terrapod_server.runs.events import Event
from terrapod_server.runs.model import Run
from terrapod_server.runs.states import Status
from terrapod_shared import programs
from terrapod_shared.errors import TerrapodError

log = logging.getLogger(__name__)

#: How long a request waits for a release site.
PATIENCE_S: Final = 2.0
_WAITING: Final = tuple(
    status.value for status in (Status.PENDING, Status.PLAN_QUEUED, Status.CONFIRMED, Status.APPLY_QUEUED)
)


async def settle(services: Services, pool_id: str, tool: str, wanted: str, patience_s: float = PATIENCE_S) -> Settled:
    """The engine for a run that is made now. Raises Invalid."""
    local, is_anybody_there = await services.ask(ports.POOLS).local_engines(pool_id)
    return await engine_cache.settle(
        services, tool, wanted, local, may_come=not is_anybody_there, patience_s=patience_s
    )


def note_waiting(change: Change, run: Run, why: str) -> None:
    """Notes why a run that was just made, or that a listener has given back, waits for its engine.

    The log says it too: where `up` runs, that is before the eyes of whoever can mend it.
    """
    ways = rules.ways_out(run.engine_tool, run.engine_version, programs.here())
    log.warning("%s waits for %s %s: %s. To go on, %s", run.id, run.engine_tool, run.engine_wanted, why, ways)
    change.note(run, Event.ENGINE, description=why[:500])


async def settle_waiting(services: Services, pool_id: str = "") -> None:
    """Looks again at the runs that wait for an engine, of one pool or of all. Safe in several processes at once."""
    marks = ", ".join(f"'{status}'" for status in _WAITING)
    rows = await database.query(
        f"""
        SELECT DISTINCT pool_id, engine_tool, engine_version, engine_wanted FROM run
        WHERE engine_is_local AND status IN ({marks}) AND ($1 = '' OR pool_id = $1)
        """,  # noqa: S608  our own words
        [pool_id],
    )
    for row in rows:
        wanted = row["engine_version"] or row["engine_wanted"]
        try:
            found = await settle(services, row["pool_id"], row["engine_tool"], wanted, 0.0)
        except TerrapodError as error:
            found = Settled("", is_local=True, why=error.detail)
        await _write(services, row, found)


async def _write(services: Services, row: dict[str, Any], found: Settled) -> None:
    same = Run.filter(
        pool_id=row["pool_id"],
        engine_tool=row["engine_tool"],
        engine_version=row["engine_version"],
        engine_wanted=row["engine_wanted"],
        engine_is_local=True,
        status__in=list(_WAITING),
    )
    is_news = not found.is_local or (found.version and not row["engine_version"])
    values: dict[str, Any] = {}
    if is_news:
        version = row["engine_version"] or found.version
        values = {"engine_version": version, "engine_is_local": found.is_local, "status_message": ""}
    elif found.why and not row["engine_version"]:
        same, values = same.exclude(status_message=found.why[:500]), {"status_message": found.why[:500]}
    if not values:
        return
    # one by one: a statement that locks runs of several workspaces could meet a `Change` the other way round. The
    # filter names what was read: of two processes one writes, and a version stays once it is there
    for run_id in await same.order_by("id").values_list("id", flat=True):
        await same.filter(id=run_id).update(**values)
    if is_news:
        log.info("%s %s can be had now", row["engine_tool"], values["engine_version"])
        await services.bus.publish(f"pool:{row['pool_id']}")
