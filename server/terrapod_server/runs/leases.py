"""Leases on phases, with fences.

A phase that is `ready` is offered to one listener for 15 s; accepted, it is
leased for 40 s, which heartbeats prolong. The lease's number goes up with each
claim and each release, and every write of a listener carries it: an older one
changes nothing. A lost plan is queued again. A lost apply is never run again;
it is held for its listener, which may be the only one who has the state.

All times are seconds of one clock: the database's own, read inside the
statement that judges, and on SQLite this process's monotonic one.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Self

from terrapod_server.configs import actions as configs
from terrapod_server.kit.db import database
from terrapod_server.kit.db.conditions import Where, shifted
from terrapod_server.kit.services import Services
from terrapod_server.runs import engines, logs, readers, states, unknown
from terrapod_server.runs.actions import get
from terrapod_server.runs.change import Change
from terrapod_server.runs.events import Event
from terrapod_server.runs.lease_clock import clock_sql
from terrapod_server.runs.model import Phase, Run
from terrapod_server.runs.states import Status
from terrapod_server.store import keys
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, wire
from terrapod_shared.errors import Conflict, LeaseEnded, NotFound, TerrapodError

log = logging.getLogger(__name__)

#: How often a plan whose listener was lost, and a phase that was given back, is handed out again.
LOST_MOST = 3
_TEXT_MOST = 4000
_HELD = "the listener was lost while it applied: waiting for it to come back, or for somebody to release the run"


class _Leased(Change):
    """A change by who holds a lease. Where the workspace was deleted meanwhile, the lease has ended."""

    async def __aenter__(self) -> Self:
        try:
            return await super().__aenter__()
        except NotFound:
            message = "this lease has ended: the workspace was deleted"
            raise LeaseEnded(message) from None


async def on_start() -> None:
    """On SQLite a restart begins a new clock: every lease gets a full term."""
    if not database.is_postgres():
        until = time.monotonic()
        await Phase.filter(lease_state="leased").update(lease_until=until + wire.LEASE_S)
        await Phase.filter(lease_state="offered").update(lease_until=until + wire.OFFER_S)
        await Phase.filter(lease_state="gone").update(lease_until=until + wire.LEASE_S)


async def offer(listener_id: str, pool_id: str, condition: Where) -> Phase | None:
    """Offers the oldest phase of the pool that is ready and meets the condition to a listener, or None. One statement.

    The condition is about the phase `p` and its run `r`.
    """
    lock = "FOR UPDATE OF p SKIP LOCKED" if database.is_postgres() else ""
    rows = await database.query(
        f"""
        WITH chosen AS (
            SELECT p.id AS id FROM run_phase p
            JOIN run r ON r.id = p.run_id
            WHERE p.pool_id = $2 AND p.lease_state = 'ready' AND {readers.condition()}
              AND r.engine_version <> '' AND {shifted(condition.sql, 2)}
            ORDER BY p.id LIMIT 1 {lock}
        )
        UPDATE run_phase SET lease_state = 'offered', lease_listener_id = $1,
            lease_number = lease_number + 1, lease_until = {clock_sql()} + {wire.OFFER_S}
        WHERE id IN (SELECT id FROM chosen) AND lease_state = 'ready'
        RETURNING id
        """,  # noqa: S608  only our own words, numbers and marks are put in
        [listener_id, pool_id, *condition.values],
    )
    return await Phase.get(id=rows[0]["id"]) if rows else None


async def accept(services: Services, run_id: str, kind: str, number: int, listener_id: str) -> float:
    """Makes an offer a lease; the seconds that it holds. A repeat is no error.

    Raises LeaseEnded where the offer has lapsed, Conflict where the run was
    canceled meanwhile.
    """
    phase = await check(run_id, kind, number, listener_id)
    if phase.lease_state in ("leased", "held"):
        return wire.LEASE_S
    async with _Leased(services, phase.workspace_id) as change:
        taken = await database.query(
            f"""
            WITH one AS (SELECT 1)
            UPDATE run_phase SET lease_state = 'leased', lease_until = {clock_sql()} + {wire.LEASE_S}
            WHERE id = $1 AND lease_number = $2 AND lease_listener_id = $3
              AND lease_state = 'offered' AND lease_until > {clock_sql()}
            RETURNING id
            """,  # noqa: S608  as above
            [phase.id, number, listener_id],
        )
        if not taken:
            message = f"the offer of {phase.id} has lapsed"
            raise LeaseEnded(message)
        await change.fire(await get(run_id), Event.START, status_message="")
    return wire.LEASE_S


async def refuse(
    services: Services, run_id: str, kind: str, number: int, listener_id: str, reason: str, *, counts: bool = True
) -> None:
    """Gives an offer, or a plan that was accepted, back to the pool; after LOST_MOST times the run ends with the reason.

    An offer whose refusal says nothing about the run does not count. Raises
    LeaseEnded where somebody ended the lease meanwhile, Conflict for an apply
    that was accepted.
    """
    phase = await check(run_id, kind, number, listener_id)
    async with _Leased(services, phase.workspace_id) as change:
        phase = await check(run_id, kind, number, listener_id)
        run = await get(run_id)
        is_offer = phase.lease_state == "offered"
        if kind == "apply" and not is_offer:
            message = f"cannot give back a run that is {run.status.value}"
            raise Conflict(message)
        given = await Phase.filter(id=phase.id, lease_number=number, lease_state=phase.lease_state).update(
            lease_state="ready" if is_offer else "none",
            lease_until=0.0,
            lease_number=number + 1,
            lease_listener_id=None,
            lost_count=phase.lost_count + counts,
        )
        if not given:
            raise _ended(phase)
        reason = reason[:500]
        change.note(run, Event.REFUSED, description=reason)
        if not is_offer:
            await _lost_plan(change, run, phase, reason)
        elif counts and phase.lost_count >= LOST_MOST:
            message = f"the {kind} was offered {LOST_MOST + 1} times and no listener could take it; at last {reason}"
            await change.fire(run, Event.FAIL, error_message=message, description=reason, status_message="")
            await change.advance()
        else:
            await Run.filter(id=run.id).update(status_message=reason if counts else run.status_message)
            change.wake(f"workspace:{run.workspace_id}")
            change.wake(f"pool:{run.pool_id}")


async def wait_for_engine(services: Services, phase: Phase, why: str) -> None:
    """Gives an offer back whose engine nobody can fetch now; only a listener that has it is offered it from then on.

    That says nothing about the run, and does not count. Raises LeaseEnded where the offer has lapsed meanwhile.
    """
    async with Change(services, phase.workspace_id) as change:
        given = await Phase.filter(id=phase.id, lease_number=phase.lease_number, lease_state="offered").update(
            lease_state="ready", lease_until=0.0, lease_number=phase.lease_number + 1, lease_listener_id=None
        )
        if not given:
            raise _ended(phase)
        run = await get(phase.run_id)
        if run.status_message != why[:500]:
            engines.note_waiting(change, run, why)
        await Run.filter(id=run.id).update(engine_is_local=True, status_message=why[:500])
        change.wake(f"workspace:{run.workspace_id}")
        change.wake(f"pool:{run.pool_id}")


async def prolong(services: Services, listener_id: str, leases: Iterable[wire.HeldLease]) -> list[wire.LeaseVerdict]:
    """What became of each lease that a listener says it holds. A held apply is taken up again."""
    return [await _prolong(services, listener_id, lease) for lease in leases]


async def _prolong(services: Services, listener_id: str, lease: wire.HeldLease) -> wire.LeaseVerdict:
    phase_id = phase_id_of(lease.run_id, lease.phase)
    was_held = await Phase.exists(id=phase_id, lease_state="held")
    rows = await database.query(
        f"""
        WITH one AS (SELECT 1)
        UPDATE run_phase SET lease_state = 'leased', lease_until = {clock_sql()} + {wire.LEASE_S}, lease_step = $4
        WHERE id = $1 AND lease_number = $2 AND lease_listener_id = $3
          AND (lease_state = 'held' OR (lease_state = 'leased' AND (kind = 'apply' OR lease_until > {clock_sql()})))
        RETURNING workspace_id
        """,  # noqa: S608  as above
        [phase_id, lease.number, listener_id, lease.step[:20]],
    )
    verdict: Literal["ok", "resumed", "lost"] = "lost"
    if not rows:
        await _still_named(phase_id, listener_id)
    if rows:
        verdict = "resumed" if was_held else "ok"
        if verdict == "resumed":
            await Run.filter(id=lease.run_id).update(status_message="")
            await services.bus.publish(f"workspace:{rows[0]['workspace_id']}")
    return wire.LeaseVerdict(
        run_id=lease.run_id,
        phase=lease.phase,
        number=lease.number,
        verdict=verdict,
        seconds=wire.LEASE_S if rows else 0.0,
    )


async def _still_named(phase_id: str, listener_id: str) -> None:
    """Its workspace was deleted, and the listener has not let go of it yet."""
    await database.query(
        f"""
        WITH one AS (SELECT 1)
        UPDATE run_phase SET lease_until = {clock_sql()} + {wire.LEASE_S}
        WHERE id = $1 AND lease_listener_id = $2 AND lease_state = 'gone' RETURNING id
        """,  # noqa: S608  as above
        [phase_id, listener_id],
    )


def lapsed(listener_id: str) -> str:
    """The topic that says that a lease, or an offer, of the listener ended without a word of it."""
    return f"lapsed:{listener_id}"


def phase_id_of(run_id: str, kind: str) -> str:
    return f"{kind}-{run_id.partition('-')[2]}"


async def check(run_id: str, kind: str, number: int, listener_id: str) -> Phase:
    """The phase, if the listener's lease on it is the newest and not over.

    Raises NotFound for a phase that never was this listener's, LeaseEnded.
    """
    phase = await Phase.get_or_none(id=phase_id_of(run_id, kind))
    if phase is None or (phase.lease_listener_id not in (listener_id, None) and number >= phase.lease_number):
        raise NotFound
    if phase.lease_listener_id != listener_id or phase.lease_number != number or phase.lease_state not in (
        "offered", "leased", "held",
    ):  # fmt: skip
        raise _ended(phase)
    return phase


async def find(run_id: str, kind: str) -> Phase | None:
    """A run's plan or apply."""
    return await Phase.get_or_none(id=phase_id_of(run_id, kind))


async def phase(phase_id: str) -> Phase:
    """A plan or apply by its id. Raises NotFound."""
    found = await Phase.get_or_none(id=phase_id)
    if found is None:
        raise NotFound
    return found


async def keep_offer(phase: Phase) -> None:
    """Keeps an offer open while its work is made: an engine may have to be fetched first. To be cancelled."""
    while True:
        await asyncio.sleep(wire.OFFER_S / 3)
        await database.query(
            f"""
            WITH one AS (SELECT 1)
            UPDATE run_phase SET lease_until = {clock_sql()} + {wire.OFFER_S}
            WHERE id = $1 AND lease_number = $2 AND lease_state = 'offered' RETURNING id
            """,  # noqa: S608  as above
            [phase.id, phase.lease_number],
        )


def artifact_key(plan: Phase, name: str) -> str:
    """Where a product of a plan lies: a lease that has ended cannot write over the next one's."""
    return keys.artifact(plan.workspace_id, plan.run_id, f"{name}-{plan.lease_number}")


async def note_artifact(
    services: Services, run_id: str, kind: str, number: int, listener_id: str, name: str, sha256: str
) -> None:
    """Writes down that a product has come. Raises LeaseEnded."""
    phase = await check(run_id, kind, number, listener_id)
    async with _Leased(services, phase.workspace_id):
        phase = await check(run_id, kind, number, listener_id)
        await Phase.filter(id=phase.id).update(digests={**phase.digests, name: sha256})


def _ended(phase: Phase) -> LeaseEnded:
    return LeaseEnded(f"this lease on {phase.id} has ended")


async def lease_is_live(run_id: str, kind: str, number: int) -> bool:
    """Whether a run's token is still good."""
    return await Phase.exists(
        id=phase_id_of(run_id, kind), lease_number=number, lease_state__in=["offered", "leased", "held"]
    )


async def has_work(pool_id: str) -> bool:
    """Whether a phase waits for a listener of the pool, or is at one."""
    return await Phase.exists(pool_id=pool_id, lease_state__in=["ready", "offered", "leased", "held"])


async def are_open(listener_id: str) -> bool:
    """Whether the listener has a lease, or an apply is held for it."""
    return await Phase.exists(lease_listener_id=listener_id, lease_state__in=["leased", "held"])


def is_awaited(listener_id: str) -> str:
    """A condition in SQL: the listener whose id is in a column has what somebody still waits for.

    That is a lease, a held apply, or an apply whose run keeps its workspace locked since its state is unknown.
    """
    is_unknown = workspaces.keeps_run_lock("p.workspace_id", "p.run_id")
    return (
        f"EXISTS (SELECT 1 FROM run_phase p WHERE p.lease_listener_id = {listener_id} AND ("  # noqa: S608  our own words
        f"p.lease_state IN ('offered', 'leased', 'held', 'gone') OR (p.kind = 'apply' AND {is_unknown})))"
    )


async def counts_of(listener_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """How many phases each listener works on; and the same with those applies that are held for it."""
    marks = ", ".join(f"${place}" for place in range(1, len(listener_ids) + 1)) or "''"
    rows = await database.query(
        f"""
        SELECT lease_listener_id AS id, count(*) AS leases,
            sum(CASE WHEN lease_state = 'held' THEN 0 ELSE 1 END) AS working
        FROM run_phase
        WHERE lease_listener_id IN ({marks}) AND lease_state IN ('offered', 'leased', 'held') GROUP BY lease_listener_id
        """,  # noqa: S608  only marks are put in
        list(listener_ids),
    )
    return {row["id"]: (int(row["working"]), int(row["leases"])) for row in rows}


async def count() -> dict[tuple[str, str], int]:
    """How many phases listeners have, by kind and state of the lease; `held`: the listener is lost."""
    rows = await database.rows(
        "SELECT kind, lease_state, count(*) FROM run_phase WHERE lease_state IN ('offered', 'leased', 'held') "
        "GROUP BY kind, lease_state"
    )
    return {(str(row[0]), str(row[1])): int(row[2]) for row in rows}


async def cancels_for(listener_id: str) -> dict[str, Literal["cancel", "force-cancel"]]:
    """What the listener is to interrupt, by run id."""
    held = await Phase.filter(lease_listener_id=listener_id, lease_state__in=["leased", "held"]).values_list(
        "run_id", flat=True
    )
    if not held:
        return {}
    rows = await Run.filter(id__in=list(held)).exclude(cancel_requested="").values("id", "cancel_requested")
    return {row["id"]: row["cancel_requested"] for row in rows}


async def finish(
    services: Services, run_id: str, report: wire.Report, number: int, listener_id: str, log_end: int
) -> Run:
    """Ends a phase by its listener's word; status, changes and what may follow become visible at once.

    `log_end` is the size of the raw log that is here. Raises LeaseEnded, and
    Conflict where something that the report speaks of has not arrived.
    """
    phase = await Phase.get_or_none(id=phase_id_of(run_id, report.phase))
    if (
        phase
        and phase.lease_state == "ended"
        and (phase.lease_number, phase.lease_listener_id) == (number, listener_id)
    ):
        return await get(run_id)  # the answer to the first was lost
    phase = await check(run_id, report.phase, number, listener_id)
    log_end = max(log_end, await logs.size(services, phase))  # an earlier lease may have left a part of it
    _complete(phase, report, log_end)
    async with _Leased(services, phase.workspace_id) as change:
        run = await get(run_id)
        ended = await Phase.filter(
            id=phase.id,
            lease_number=number,
            lease_listener_id=listener_id,
            lease_state__in=["offered", "leased", "held"],
        ).update(
            lease_state="ended",
            exit_code=report.exit_code,
            log_size=log_end,
            resource_additions=report.resource_additions,
            resource_changes=report.resource_changes,
            resource_destructions=report.resource_destructions,
            resource_imports=report.resource_imports,
            generated_configuration=report.generated_configuration,
        )
        if not ended:
            raise _ended(phase)
        if run.status not in states.RUNNING:  # refused before it was accepted, by an error on the listener's side
            await change.fire(run, Event.START)
        await _end(change, run, report)
        await change.advance()
    return await get(run_id)


def _complete(phase: Phase, report: wire.Report, log_end: int) -> None:
    if log_end < report.log_bytes:
        error = Conflict(f"the log has {report.log_bytes} bytes, and {log_end} are here")
        error.meta["expected"] = log_end
        raise error
    missing = [name for name, digest in report.digests.items() if phase.digests.get(name) != digest]
    if report.status == "planned":
        missing += [name for name in ("plan-file", "plan-json") if name not in phase.digests]
    if report.status == "applied" and report.state == "uploaded" and "state" not in phase.digests:
        missing.append("state")
    if missing:
        message = f"not here yet: {', '.join(sorted(set(missing)))}"
        raise Conflict(message)
    if report.status == "applied" and report.state not in ("unchanged", "uploaded"):
        message = "an apply has ended only when its state is here"
        raise Conflict(message)


def _unknown(report: wire.Report) -> str:
    """Why nobody knows what an apply has made; empty where the state tells it."""
    if report.phase != "apply" or report.status == "applied":
        return ""
    if report.state == "spooled":
        return report.unknown or report.error_message or "its state is on its listener alone"
    return report.unknown


async def _end(change: Change, run: Run, report: wire.Report) -> None:
    why = _unknown(report)
    if report.status == "canceled" or (report.status == "planned" and run.cancel_requested):
        # the word that it was canceled may have crossed the interrupt: nobody gets a plan that they canceled
        also: dict[str, Any] = {"force_canceled_at": clock.now()} if run.cancel_requested == "force-cancel" else {}
        if why:
            also["error_message"] = unknown.error_message(change.workspace.name, why[:_TEXT_MOST])
        await change.fire(run, Event.CANCEL, unknown_why=why, status_message="", **also)
    elif report.status == "planned":
        changes = bool(report.has_changes)
        if run.plan_only or not (changes or run.allow_empty_apply):
            await change.fire(run, Event.FINISH, has_changes=changes)
        elif run.save_plan:
            await change.fire(run, Event.SAVE, has_changes=changes)
        else:
            await change.fire(run, Event.PLAN, has_changes=changes)
            if run.auto_apply and not (change.workspace.locked or change.workspace.run_lock_reason):
                await change.confirm_by_itself(run)
    elif report.status == "applied":
        await change.fire(run, Event.APPLY, status_message="")
        await configs.applied(run.configuration_version_id)
    else:
        text = report.error_message[:_TEXT_MOST]
        if why:
            text = unknown.error_message(change.workspace.name, text or why[:_TEXT_MOST])
        await change.fire(run, Event.FAIL, unknown_why=why, error_message=text, status_message="")


async def sweep(services: Services) -> None:
    """Looks for offers that lapsed and leases that ended, and for applies that have waited long enough. Runs every 2 s."""
    expired = await database.query(
        f"SELECT id FROM run_phase WHERE lease_state IN ('offered', 'leased') AND lease_until < {clock_sql()}"  # noqa: S608
    )
    for row in expired:
        phase = await Phase.get_or_none(id=row["id"])
        if phase is not None and phase.lease_state in ("offered", "leased"):  # else it was given back meanwhile
            try:
                await _expire(services, phase)
            except TerrapodError as error:  # somebody else changed the run; the leases behind it do not wait for that
                log.warning("the lease of %s could not be ended: %s", phase.id, error.detail)
    await readers.wake_due(services)


async def _expire(services: Services, phase: Phase) -> None:
    async with Change(services, phase.workspace_id) as change:
        lost = await database.query(
            f"""
            WITH one AS (SELECT 1)
            UPDATE run_phase SET lease_number = lease_number + CASE WHEN kind = 'apply' AND lease_state = 'leased' THEN 0 ELSE 1 END,
                lease_state = CASE WHEN lease_state = 'offered' THEN 'ready' WHEN kind = 'apply' THEN 'held' ELSE 'none' END,
                lost_count = lost_count + CASE WHEN lease_state = 'leased' THEN 1 ELSE 0 END
            WHERE id = $1 AND lease_number = $2 AND lease_state = $3 AND lease_until < {clock_sql()}
            RETURNING id
            """,  # noqa: S608  as above
            [phase.id, phase.lease_number, phase.lease_state],
        )
        if not lost:
            return
        run = await get(phase.run_id)
        log.warning(
            "the lease of %s (%s) on listener %s has ended", phase.id, phase.lease_state, phase.lease_listener_id
        )
        change.wake(lapsed(phase.lease_listener_id or ""))
        if phase.lease_state == "offered":
            change.wake(f"pool:{run.pool_id}")
        elif phase.kind == "apply":
            await Run.filter(id=run.id).update(status_message=_HELD)
            change.note(run, Event.HELD, description=_HELD)
        elif run.status is Status.PLANNING:
            await _lost_plan(change, run, phase, f"listener {phase.lease_listener_id} was lost while it planned")


async def _lost_plan(change: Change, run: Run, phase: Phase, description: str) -> None:
    """Queues a plan again that nobody works on any more; `phase` is as it was before that loss."""
    if run.cancel_requested:
        await change.fire(run, Event.CANCEL, description=description)
        await change.advance()
    elif phase.lost_count >= LOST_MOST:
        message = f"the plan was begun {LOST_MOST + 1} times and no listener ended it; at last {description}"
        await change.fire(run, Event.FAIL, error_message=message, description=description, status_message="")
        await change.advance()
    else:
        await change.fire(run, Event.LOSE, description=description, status_message=description)
