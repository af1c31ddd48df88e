"""Readers of a plan's log, for whom the apply of a run that nobody confirms waits a moment.

The terraform CLI follows the log of a plan to its end, and then reads the run.
It prints neither plan nor error of a run that is `errored` by then, which is
what a quick apply of `-auto-approve` is. So this apply is offered to listeners
when the reader has read the end of the log and then the run, PATIENCE_S after
the plan at the latest. A run whose log nobody reads is offered at once.

`Run.awaited_read` is what the reader has still to read. It is a column, since
the log, the run and the end of the plan may come to different server
processes. Each reader of a log costs one UPDATE for its beginning and one for
its end, and only where the run is one that the server confirms by itself.
"""

from datetime import datetime
from typing import Any, Final

from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db import database
from terrapod_server.kit.services import Services
from terrapod_server.runs.lease_clock import clock_sql
from terrapod_server.runs.model import Phase, Run
from terrapod_server.runs.states import Status
from terrapod_shared import clock

#: How long after its plan an apply waits at most.
PATIENCE_S: Final = 5.0
#: What is awaited: the end of the plan's log, and then the run itself.
LOG: Final = "log"
RUN: Final = "run"

_PLANNING = (Status.PENDING, Status.PLAN_QUEUED, Status.PLANNING)
_BETWEEN = (Status.PLANNED, Status.CONFIRMED, Status.APPLY_QUEUED)


async def note_log_read(phase: Phase, run: Run, *, is_end: bool) -> None:
    """Notes that somebody reads the plan's log, and with `is_end` that this was its end."""
    if phase.kind != "plan" or not run.auto_apply:
        return
    if is_end and run.awaited_read == LOG and run.status in _BETWEEN:
        await Run.filter(id=run.id, awaited_read=LOG).update(awaited_read=RUN)
    elif not run.awaited_read and run.status in _PLANNING:
        await Run.filter(id=run.id, awaited_read="", status__in=list(_PLANNING)).update(awaited_read=LOG)


async def note_run_read(services: Services, run: Any, principal: Principal) -> None:
    """Offers the apply where it waited for this read of the run, a row or a record.

    The terraform CLI awaits its own read: somebody else who looks at its run does not count.
    """
    if run.awaited_read != RUN or (run.is_terraform and run.created_by_token != principal.token_id):
        return
    if await Run.filter(id=run.id, awaited_read=RUN).update(awaited_read=""):
        await Phase.filter(run_id=run.id, kind="apply", lease_state="ready").update(lease_until=0.0)
        await services.bus.publish(f"pool:{run.pool_id}")


async def hold(run: Run) -> float:
    """Holds the apply of a run that was confirmed just now for its reader; the seconds, 0 where there is none.

    To be called in the transaction that confirms: the statement sees a reader that was noted before it.
    """
    planned = run.status_timestamps.get("planned-at")
    age_s = (clock.now() - datetime.fromisoformat(planned)).total_seconds() if planned else 0.0
    seconds = min(PATIENCE_S, PATIENCE_S - age_s)
    if seconds <= 0:
        return 0.0
    held = await database.query(
        f"""
        WITH one AS (SELECT 1)
        UPDATE run_phase SET lease_until = {clock_sql()} + {seconds}
        WHERE id = $1 AND lease_state = 'ready'
          AND EXISTS (SELECT 1 FROM run r WHERE r.id = $2 AND r.awaited_read <> '')
        RETURNING id
        """,  # noqa: S608  only our own numbers are put in
        [run.apply_id, run.id],
    )
    return seconds if held else 0.0


def condition() -> str:
    """Of the phases `p` that are ready, those that wait for no reader; a clock that was set back holds none of them."""
    now = clock_sql()
    return f"NOT (p.lease_until > {now} AND p.lease_until <= {now} + {PATIENCE_S})"


async def wake_due(services: Services) -> None:
    """Wakes the pools of applies that have waited long enough, in the place of a process that ended meanwhile."""
    now = clock_sql()
    rows = await database.query(
        f"""
        SELECT DISTINCT pool_id FROM run_phase
        WHERE lease_state = 'ready' AND lease_until > {now} - {PATIENCE_S} AND lease_until <= {now}
        """  # noqa: S608  as above
    )
    await services.bus.publish(*(f"pool:{row['pool_id']}" for row in rows))
