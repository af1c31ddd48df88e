"""Changes of runs: `Change.fire` is the one writer of a run's status in the program."""

import dataclasses
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from terrapod_server.configs import actions as configs
from terrapod_server.kit.db import database
from terrapod_server.kit.db.database import in_transaction
from terrapod_server.kit.services import Services
from terrapod_server.runs import logs, readers, states, unknown
from terrapod_server.runs.events import Entry, Event
from terrapod_server.runs.model import Phase, Run, RunEvent
from terrapod_server.runs.states import Status
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, TerrapodError

log = logging.getLogger(__name__)

_COLUMNS = ("run_id", "workspace_id", "event", "status", "user_id", "description", "at")
#: So many events by one statement: PostgreSQL takes 32,767 values.
_AT_ONCE = 1000
_PHASE_STAMPS = {
    "queued": "queued-at",
    "running": "started-at",
    "finished": "finished-at",
    "errored": "errored-at",
    "canceled": "canceled-at",
}
_UNFINISHED = " UNION ALL ".join(
    f"SELECT min(id) AS id FROM run WHERE workspace_id = $1 AND plan_only = FALSE AND status = '{status.value}'"  # noqa: S608
    for status in sorted(states.UNFINISHED)
)
_OLDEST = f"(SELECT min(id) FROM ({_UNFINISHED}) AS first)"  # noqa: S608  our own words, as in all of these
_MINE = "run r WHERE r.workspace_id = $1"
_READY = f"""
    SELECT r.id FROM {_MINE} AND r.status = 'pending' AND {configs.status_of("r.configuration_version_id")} = 'uploaded'
"""  # noqa: S608
#: Of each workspace's runs an index gives the first of a status, so nothing here grows with the queue.
_LOOK_AHEAD = f"""
    WITH holding AS (SELECT r.id, r.status, r.auto_apply, r.cancel_requested FROM {_MINE} AND r.holds_queue = TRUE LIMIT 1
    ), ready AS ({_READY} AND r.plan_only = FALSE ORDER BY r.id LIMIT 1)
    SELECT (SELECT id FROM holding) AS holder,
        EXISTS (SELECT 1 FROM holding WHERE status = 'planned' AND auto_apply AND cancel_requested = '') AS confirms_itself,
        CASE WHEN NOT EXISTS (SELECT 1 FROM holding) THEN (SELECT min(id) FROM (
            SELECT id FROM ready
            UNION ALL SELECT min(r.id) FROM {_MINE} AND r.plan_only = FALSE AND r.status = 'confirmed') AS line) END AS next,
        EXISTS ({_READY} AND r.plan_only = TRUE) AS plans,
        {_OLDEST} AS oldest, (SELECT max(r.id) FROM {_MINE}) AS newest,
        {configs.status_of("$2")} AS configuration,
        CASE WHEN $3 <> '' THEN (SELECT min(r.id) FROM {_MINE} AND r.id >= $6 AND r.request_hash = $3
            AND r.created_by_token = $4 AND r.created_at > $5 AND r.status IN ('pending', 'plan_queued')) END AS repeated
"""  # noqa: S608
_PLANS = f"{_READY} AND r.plan_only = TRUE ORDER BY r.id"
_CURRENT = f"SELECT {_OLDEST} AS oldest, (SELECT max(r.id) FROM {_MINE}) AS newest"  # noqa: S608
#: A run's id may be older than its row by the time for which a release site is waited for.
_BEFORE_MS = 10_000


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Which run a request to make one repeats: one of the same bytes and token since then that has not begun."""

    digest: str = ""
    token_id: str = ""
    since: datetime = datetime(2000, 1, 1, tzinfo=UTC)


class Change:
    """One transaction on the runs of one workspace, under its row's lock; wakes others after the commit.

    async with Change(services, workspace_id) as change:
        await change.fire(run, Event.CONFIRM)
    """

    def __init__(self, services: Services, workspace_id: str) -> None:
        self._services, self._workspace_id = services, workspace_id
        self._topics: set[str] = set()
        self._events: list[Entry] = []
        self._later: dict[str, float] = {}
        self._unsealed: set[str] = set()
        self._ended: list[str] = []
        self._transaction = in_transaction()
        #: The rows that this change has moved, by id: whoever meets one of these runs again gets the same object.
        self._moved: dict[str, Run] = {}
        #: The current run, where it is known already.
        self._current: str | None = None
        self.workspace: workspaces.Row

    async def __aenter__(self) -> Self:
        await self._transaction.__aenter__()
        try:
            self.workspace = await workspaces.held(self._workspace_id)
        except BaseException as error:
            await self._transaction.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_wanted = False
        if error is None:
            try:
                await self._settle()
                is_wanted = await write(self._services, self._events)
            except BaseException as late:
                await self._transaction.__aexit__(type(late), late, late.__traceback__)
                raise
        await self._transaction.__aexit__(kind, error, trace)
        if error is None:
            self._services.measured.ended_runs.update(self._ended)
            if is_wanted:
                self._services.outbox.wake()
            await self._services.bus.publish(*sorted(self._topics))
            for topic, seconds in self._later.items():
                self._services.bus.publish_later(seconds, topic)
            for phase_id in self._unsealed:
                try:
                    await logs.seal(self._services, phase_id)
                except TerrapodError as late:  # the change stands, and the job that seals what is left comes by
                    log.warning("cannot seal the log of %s: %s", phase_id, late)

    def wake(self, topic: str) -> None:
        """Publishes a topic after the commit."""
        self._topics.add(topic)

    async def fire(
        self, run: Run, event: Event, *, user_id: str = "", description: str = "", unknown_why: str = "", **also: Any
    ) -> Run:
        """Moves a run along its table, once, however many callers try; the row given is brought up to date.

        `unknown_why` tells why nobody knows what its apply has made: the run keeps the workspace's lock.
        The UPDATE names the status it read: of two callers one moves the row.
        Raises IllegalTransition, or Conflict for who lost.
        """
        status = states.after(run.status, event)
        stamp = clock.stamp(clock.now())
        values: dict[str, Any] = {
            "status": status,
            "status_timestamps": {**run.status_timestamps, states.timestamp_name(status): stamp},
            "holds_queue": self._holds(run, status),
            **also,
        }
        if not await Run.filter(id=run.id, status=run.status).update(**values):
            message = f"run {run.id} was changed by somebody else meanwhile"
            raise Conflict(message)
        plan, apply = states.phases_after(run.status, event)
        for phase_id, word in ((run.plan_id, plan), (run.apply_id, apply)):
            if word is not None:
                await self._phase(phase_id, word, stamp)
        for name, value in values.items():
            setattr(run, name, value)
        self._moved[run.id], self._current = run, None
        self._write(run, event, user_id, description)
        if status in states.FINAL:
            self._ended.append(status.value)
        await self._lock(run, unknown_why)
        if event in (Event.QUEUE, Event.QUEUE_APPLY, Event.LOSE):
            self.wake(f"pool:{run.pool_id}")
        return run

    @staticmethod
    def _holds(run: Run, status: Status) -> bool:
        if run.plan_only or status in states.FINAL or status is Status.PLANNED_AND_SAVED:
            return False
        waits = status is Status.CONFIRMED and run.status is Status.PLANNED_AND_SAVED
        return not waits and status is not Status.PENDING

    async def _phase(self, phase_id: str, word: str, stamp: str) -> None:
        phase = await Phase.get(id=phase_id)
        values: dict[str, Any] = {"status": word}
        if word in _PHASE_STAMPS:
            values["status_timestamps"] = {**phase.status_timestamps, _PHASE_STAMPS[word]: stamp}
        if word == "queued":
            values |= {"lease_state": "ready", "lease_listener_id": None, "lease_until": 0.0, "digests": {}}
        elif word != "running":
            values |= {"lease_state": "ended" if phase.lease_number else "none"}
            if phase.lease_state in ("ready", "offered"):
                values["lease_number"] = phase.lease_number + 1  # whoever still holds the offer is fenced off
            if phase.lease_number and phase.log_size < 0:  # no listener said where the log ends: it ends here
                here = await logs.size(self._services, phase)
                if here or phase.status == "running":
                    values["log_size"] = here
                    self._unsealed.add(phase_id)
        await Phase.filter(id=phase_id).update(**values)

    async def _lock(self, run: Run, unknown_why: str) -> None:
        """The run's lock: from the confirmation of the run that holds the queue to its end, or until its state is known."""
        if run.status in states.LOCKING and run.holds_queue:
            await workspaces.lock_for_run(run.workspace_id, run.id)
        elif run.is_final and unknown_why:
            reason = unknown.lock_reason(run.id, self.workspace.name, unknown_why)
            if await workspaces.keep_run_lock(run.workspace_id, run.id, reason):
                self.workspace.run_lock_reason = reason
            self.note(run, Event.STATE_UNKNOWN, description=unknown_why)
        elif run.is_final:
            await workspaces.end_run_lock(run.workspace_id, run.id)

    async def free_lock(self) -> str:
        """Frees the lock that a run has kept since its state is unknown; the run's id, empty where there is none."""
        run_id = self.workspace.run_lock_id
        if not run_id or not await workspaces.free_run_lock(self._workspace_id, run_id):
            return ""
        self.workspace.run_lock_id, self.workspace.run_lock_reason = None, ""
        return str(run_id)

    def note(self, run: Run | None, event: Event, *, user_id: str = "", description: str = "") -> None:
        """Writes an event that moves nothing; one without a run is about the workspace alone.

        Raises ValueError for an event that moves a run: that is `fire`'s.
        """
        if event in states.MOVES:
            raise ValueError(event)
        self._write(run, event, user_id, description)

    def _write(self, run: Run | None, event: Event, user_id: str, description: str) -> None:
        """Events are written at the end of the transaction, all by one statement."""
        about = self._workspace_id if run is None else run
        self._events.append(entry(about, event, user_id=user_id, description=description))
        self.wake(f"workspace:{self._workspace_id}")

    async def confirm(self, run: Run, *, user_id: str = "", **also: Any) -> None:
        """Confirms, and queues the apply unless something holds it."""
        await self.fire(run, Event.CONFIRM, user_id=user_id, **also)
        if run.holds_queue:
            await self.fire(run, Event.QUEUE_APPLY)

    async def confirm_by_itself(self, run: Run) -> None:
        """Confirms a run that nobody has to; who reads its plan's log may first read on."""
        await self.confirm(run)
        seconds = await readers.hold(run)
        if seconds:
            self._later[f"pool:{run.pool_id}"] = seconds

    async def add(self, run: Run, *, repeats: Repeats | None = None) -> Run:
        """Makes a run of a new row and its two phases, and lets it go as far as it may. A repeat gives the first run.

        Where nothing stands in its way it is queued at once, by the statements that make it.
        """
        ahead = await self._look_ahead(run.configuration_version_id, repeats)
        if ahead["repeated"]:
            return await self._row(ahead["repeated"])
        self._write(run, Event.CREATE, run.created_by_id, "")
        phases = [
            Phase(id=key, run_id=run.id, workspace_id=run.workspace_id, pool_id=run.pool_id, kind=kind)
            for kind, key in (("plan", run.plan_id), ("apply", run.apply_id))
        ]
        is_held = self.workspace.locked or self.workspace.run_lock_reason or ahead["holder"] or ahead["next"]
        if ahead["configuration"] == "uploaded" and (run.plan_only or not is_held):
            self._queue_new(run, phases[0])
        await database.insert([run])
        await database.insert(phases)
        self._moved[run.id] = run
        unfinished = [each for each in (ahead["oldest"], "" if run.plan_only else run.id) if each]
        self._current = min(unfinished, default=max(ahead["newest"] or "", run.id))
        if ahead["stirs"] or (ahead["next"] and not ahead["holder"]):
            await self._advance(ahead)
        return run

    def _queue_new(self, run: Run, plan: Phase) -> None:
        """What `fire` does when it queues a run, on rows that are not written yet."""
        status, stamp = states.after(run.status, Event.QUEUE), clock.stamp(clock.now())
        run.holds_queue, run.status = self._holds(run, status), status
        run.status_timestamps = {**run.status_timestamps, states.timestamp_name(status): stamp}
        plan.status, plan.status_timestamps, plan.lease_state = "queued", {_PHASE_STAMPS["queued"]: stamp}, "ready"
        self._write(run, Event.QUEUE, "", "")
        self.wake(f"pool:{run.pool_id}")

    async def advance(self) -> None:
        """Lets the next runs go: what may run beside others at once, of the others the first in line."""
        await self._advance(await self._look_ahead())

    async def _advance(self, ahead: dict[str, Any]) -> None:
        if ahead["plans"]:
            for row in await database.query(_PLANS, [self._workspace_id]):
                await self.fire(await self._row(row["id"]), Event.QUEUE)
        if self.workspace.locked or self.workspace.run_lock_reason:
            return
        if ahead["holder"]:
            if ahead["confirms_itself"]:
                await self.confirm_by_itself(await self._row(ahead["holder"]))
        elif ahead["next"]:
            run = await self._row(ahead["next"])
            await self.fire(run, Event.QUEUE_APPLY if run.status is Status.CONFIRMED else Event.QUEUE)

    async def _row(self, run_id: str) -> Run:
        return self._moved.get(run_id) or await Run.get(id=run_id)

    async def _look_ahead(self, configuration_id: str = "", repeats: Repeats | None = None) -> dict[str, Any]:
        """What decides who goes next, by one statement. However many runs wait, each part reads a few rows of an index.

        `holder`: the run that holds the queue; `confirms_itself`: it waits for nobody; `next`: the first of those in line
        that may go; `plans`: whether plan-only runs may go; `oldest`: the first that is not over; `configuration`: the
        status of that version; `repeated`: the run that a request repeats; `stirs`: whether somebody waits for nothing.
        """
        repeats = repeats or Repeats()
        found = await database.query(_LOOK_AHEAD, [
            self._workspace_id, configuration_id, repeats.digest, repeats.token_id, repeats.since,
            ids.first_at("run", int(repeats.since.timestamp() * 1000) - _BEFORE_MS),
        ])  # fmt: skip
        ahead = found[0]
        ahead["stirs"] = ahead["plans"] or ahead["confirms_itself"]
        return ahead

    async def _settle(self) -> None:
        """Brings the workspace's `current-run` up to date: the oldest that is unfinished, else the newest."""
        if self._current is None:
            found = await database.query(_CURRENT, [self._workspace_id])
            self._current = found[0]["oldest"] or found[0]["newest"]
        if self._current != self.workspace.current_run_id:
            await workspaces.set_current_run(self._workspace_id, self._current)


def entry(about: Run | str, event: Event, *, user_id: str = "", description: str = "") -> Entry:
    """An event of a run as it is now, or of a workspace alone, whose id is given then."""
    run = None if isinstance(about, str) else about
    return Entry(
        workspace_id=run.workspace_id if run else str(about),
        run_id=run.id if run else None,
        event=event.value,
        status=run.status.value if run else "",
        user_id=user_id,
        description=description,
    )


async def write(services: Services, entries: Sequence[Entry]) -> bool:
    """Writes events in their order, and what outlets want of them into the outbox; whether one wants any.

    For whoever is inside a transaction that holds the workspace's row lock and is no `Change`: within a workspace ids
    are in the order of commits. After the commit `services.outbox.wake` is to be called.
    """
    written: list[Entry] = []
    for at in range(0, len(entries), _AT_ONCE):
        part = entries[at : at + _AT_ONCE]
        width = len(_COLUMNS)
        marks = (f"({', '.join(f'${row * width + place + 1}' for place in range(width))})" for row in range(len(part)))
        rows = await database.query(
            f"""
            WITH one AS (SELECT 1)
            INSERT INTO run_event ({", ".join(_COLUMNS)}) VALUES {", ".join(marks)} RETURNING id
            """,  # noqa: S608  our own columns and marks
            [getattr(each, column) for each in part for column in _COLUMNS],
        )
        numbers = sorted(int(row["id"]) for row in rows)
        written += [dataclasses.replace(each, id=number) for each, number in zip(part, numbers, strict=True)]
    return await services.outbox.add(written)


async def load(event_ids: Sequence[int]) -> dict[int, Entry]:
    """Events by id, for outlets; those that are gone are left out."""
    rows = await RunEvent.filter(id__in=list(event_ids)).values("id", *_COLUMNS)
    return {row["id"]: Entry(**row) for row in rows}
