"""Events on their way out: every outlet that wants an event gets it at least once, in order for each key.

In the transaction of an event one row is written for each outlet that wants it. Rows are claimed by whichever server
process has room, delivered outside of any transaction, and deleted when that is done. An attempt that fails comes back
after a growing pause. A row that has used up its attempts, or that its outlet gives up, stays as failed and is shown.

A row is claimed only if no older live row of the same outlet and key is there: that keeps the order, and a failed row
lets its successors go. At most `Outlet.most` rows of one outlet are claimed at once by all servers together: a slow
outlet delays nobody else. Nobody leads and nobody keeps a cursor: a row that is there is not delivered yet.

A commit wakes the deliverers of its own process; all of them look every few seconds too. `attempts` is the fence: it
rises with each claim, and a deliverer that comes back after its lease changes nothing.
"""

import asyncio
import contextlib
import logging
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from terrapod_server.kit.db import database, database_errors
from terrapod_server.kit.model import Delivery
from terrapod_server.kit.work import claims
from terrapod_server.kit.work.bus import Bus, Subscription
from terrapod_shared.errors import TerrapodError

log = logging.getLogger(__name__)

TABLE: Final = "outbox"
#: Between the attempts; after the last one the row has failed.
PAUSES_S: Final = (5.0, 30.0, 120.0, 600.0, 3600.0)
#: For so long rows stay that have failed, and those of an outlet that no longer exists.
KEPT_S: Final = 30 * 86_400.0
#: How long a lease lasts beyond the time that a delivery has.
_GRACE_S: Final = 10.0
#: How often each server looks for rows of which nobody has told it.
_LOOK_S: Final = 5.0
#: How long deliveries that are under way may take to end when the server stops.
_PATIENCE_S: Final = 3.0
#: So many attempts for each that counts may be cut off by the end of a process, before the row counts as failed.
_CUT_OFF_MOST: Final = 3
#: Among so many rows that are due the first are looked for; only if all of them wait for older ones, among all.
_LOOK_MOST: Final = 200
_LAST_ID: Final = (1 << 63) - 1
#: So many rows by one statement: PostgreSQL takes 32,767 values.
_AT_ONCE: Final = 1000
#: An outlet that is away is logged once in so long, and not for each event.
_REPEATED_S: Final = 60.0
#: So many deliverers of a process claim at once, each on a connection that the requests do without: where another server
#: is paused within a claim, they wait for it.
_CLAIMING_MOST: Final = 2
#: The database's clock and this process's do not tick together.
_MARGIN_S: Final = 0.05


#: The longest pause that a receiver may ask for: what it says is not taken for more than a word.
LATER_MOST_S: Final = 86_400.0
#: No pause and no lease is that long: what says so was written by a clock that ran ahead.
_AHEAD_S: Final = 2 * LATER_MOST_S
#: So much of what a receiver said is logged.
_SAID_MOST: Final = 300


class Undeliverable(Exception):
    """Another attempt is of no use. The text is logged, so nothing secret is in it."""


class Later(Exception):
    """The receiver asked for a pause, of a day at most. The text is logged, so nothing secret is in it."""

    def __init__(self, after_s: float, why: str = "the receiver asked for a pause") -> None:
        super().__init__(why)
        self.after_s = max(after_s, 0.0) if after_s < LATER_MOST_S else LATER_MOST_S  # what is no number is long too


class Event(Protocol):
    """What the outbox knows of an event."""

    @property
    def id(self) -> int: ...
    @property
    def run_id(self) -> str | None: ...
    @property
    def workspace_id(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Outlet:
    """Where events go.

    `wants(event)` is asked inside the event's transaction: it decides by the event alone and reads nothing.
    `deliver(services, event)` is called outside of any. It is idempotent, since it may be called again for what it has
    done. It raises Undeliverable where another attempt is of no use, Later to be asked again after a pause of its
    choice; after anything else it is asked again by `pauses_s`.
    """

    name: str
    wants: Callable[[Any], bool]
    deliver: Callable[[Any, Any], Awaitable[None]]
    most: int = 8  #: of its rows are claimed at once, by all servers together
    timeout_s: float = 30.0  #: then an attempt is cancelled
    pauses_s: tuple[float, ...] = PAUSES_S


@dataclass(frozen=True, kw_only=True)
class FanOut:
    """The receivers of an outlet that has many: a table of its own, with a row for each receiver and event.

    `name` is the table. The outlet's `deliver` writes the rows (`Outbox.fan_out`); `deliver(services, receiver, event)` is called for each of
    them. Order, leases, attempts and pauses are those of an outlet, for each receiver by itself: a slow one delays no
    other. The table has the columns of `kit.model.Delivery`, and `outlet` is the receiver.
    """

    name: str
    deliver: Callable[[Any, str, Any], Awaitable[None]]
    most: int = 1  #: rows of one receiver are claimed at once, by all servers together
    most_here: int = 32  #: rows of all receivers, by one server
    timeout_s: float = 30.0
    pauses_s: tuple[float, ...] = PAUSES_S


@dataclass(frozen=True)
class _Row:
    id: int
    event_id: int
    outlet: str
    key: str
    attempts: int


class Outbox:
    """The outlets of a server: writes their rows, and delivers them between `start` and `stop`."""

    def __init__(
        self,
        outlets: Iterable[Outlet | FanOut],
        load: Callable[[Sequence[int]], Awaitable[Mapping[int, Any]]],
        bus: Bus,
        url: str,
    ) -> None:
        """`load` gives events by id; `url` is the database's, for what is logged."""
        each = tuple(outlets)
        self.outlets = tuple(outlet for outlet in each if isinstance(outlet, Outlet))
        self._fan_outs = tuple(outlet for outlet in each if isinstance(outlet, FanOut))
        self._load, self._bus, self._url = load, bus, url
        self._deliverers: list[_Deliverer] = []
        self._tables = (TABLE, *(claims.named(fan_out.name) for fan_out in self._fan_outs))
        self._said_at: dict[str, float] = {}
        self._claiming = asyncio.Semaphore(_CLAIMING_MOST)

    async def add(self, events: Sequence[Event]) -> bool:
        """Writes a row for each outlet that wants an event, in the event's transaction; whether there was one.

        One statement for all of them, none where nobody wants any. After the commit `wake` is to be called.
        """
        rows = [
            (event.id, outlet.name, event.run_id or event.workspace_id)
            for event in events
            for outlet in self.outlets
            if self._is_wanted(outlet, event)
        ]
        await _insert(TABLE, rows)
        return bool(rows)

    def _is_wanted(self, outlet: Outlet, event: Event) -> bool:
        try:
            return outlet.wants(event)
        except Exception as error:  # noqa: BLE001
            # a fault of an outlet does not undo what has happened, nor does the outlet lose it
            if time.monotonic() > self._said_at.get(outlet.name, 0.0):
                self._said_at[outlet.name] = time.monotonic() + _REPEATED_S
                text = "outlet %s cannot say whether it wants event %d, and gets it: %s"
                log.warning(text, outlet.name, event.id, _said(error))
            return True

    def wake(self) -> None:
        """Has this process look for rows at once."""
        self._bus.wake(_topic(TABLE))

    async def fan_out(self, table: str, event: Event, receivers: Sequence[str]) -> None:
        """Writes a row for each receiver of an event; one that has its row already is left as it is."""
        key = event.run_id or event.workspace_id
        await _insert(table, [(event.id, receiver, key) for receiver in receivers])
        self._bus.wake(_topic(table))

    async def figures(self) -> dict[str, tuple[int, int]]:
        """Of each outlet, and of each table of receivers: rows that wait, and rows that have failed."""
        found = dict.fromkeys((*(outlet.name for outlet in self.outlets), *self._tables[1:]), (0, 0))
        for table in self._tables:
            rows = await database.rows(f"SELECT outlet, count(*), count(failed_at) FROM {table} GROUP BY outlet")  # noqa: S608
            for outlet, all_, failed in rows:
                name = table if table != TABLE else str(outlet) if outlet in found else "(others)"
                waiting_before, failed_before = found.get(name, (0, 0))
                found[name] = (waiting_before + int(all_) - int(failed), failed_before + int(failed))
        return found

    async def purge(self) -> None:
        """Removes what failed long ago, and what waits for an outlet that no longer exists; frees what a clock that ran
        ahead has put off.

        Servers of two releases run side by side, so a row of an outlet that this one does not know is left alone at first.
        """
        for table in self._tables:
            old = f"{claims.now_sql()} - {KEPT_S}"
            await database.query(
                f"WITH one AS (SELECT 1) DELETE FROM {table} WHERE failed_at < {old} RETURNING id"  # noqa: S608
            )
            ahead = f"{claims.now_sql()} + {_AHEAD_S}"
            freed = await database.query(
                f"""
                WITH one AS (SELECT 1)
                UPDATE {table} SET due_at = {claims.now_sql()}, leased_until = 0
                WHERE failed_at IS NULL AND (due_at > {ahead} OR leased_until > {ahead}) RETURNING id
                """  # noqa: S608  our own name
            )
            if freed:
                log.warning("%d events were put off by a clock that ran ahead: they go on now", len(freed))
        marks = "".join(f", ${number}" for number, _ in enumerate(self.outlets, 1))
        gone = await database.query(
            f"""
            WITH one AS (SELECT 1)
            DELETE FROM outbox WHERE due_at < {claims.now_sql()} - {KEPT_S} AND outlet NOT IN (''{marks}) RETURNING id
            """,  # noqa: S608  our own marks
            [outlet.name for outlet in self.outlets],
        )
        if gone:
            log.warning("%d events for outlets that no longer exist were removed", len(gone))

    async def start(self, services: Any) -> None:
        """Begins to deliver. `services` are what the outlets are given."""
        for table in self._tables if not database.is_postgres() else ():
            # its one server is this one: whoever held a lease has ended
            await database.query(
                f"WITH one AS (SELECT 1) UPDATE {table} SET leased_until = 0 WHERE leased_until > 0 RETURNING id"  # noqa: S608
            )
        self._deliverers = [
            *(_Deliverer(self._load, services, self._url, outlet, self._claiming) for outlet in self.outlets),
            *(_Deliverer(self._load, services, self._url, fan_out, self._claiming) for fan_out in self._fan_outs),
        ]
        for each in self._deliverers:
            each.start(self._bus)

    async def stop(self) -> None:
        """Lets deliveries that are under way end for a moment; what is cut off is free for other servers at once."""
        await asyncio.gather(*(each.stop() for each in self._deliverers))
        self._deliverers = []


def waits_for(column: str) -> str:
    """A condition in SQL: the event whose id stands in `column` is still to be delivered to somebody."""
    tables = [model._meta.db_table for model in Delivery.__subclasses__()]  # noqa: SLF001  the ORM has no public word for it
    each = (
        f"EXISTS (SELECT 1 FROM {table} o WHERE o.event_id = {column} AND o.failed_at IS NULL)"  # noqa: S608  our own words
        for table in tables
    )
    return f"({' OR '.join(each)})"


async def _insert(table: str, rows: Sequence[tuple[int, str, str]]) -> None:
    for at in range(0, len(rows), _AT_ONCE):
        part = rows[at : at + _AT_ONCE]
        marks = ", ".join(f"(${n}, ${n + 1}, ${n + 2}, {claims.now_sql()})" for n in range(1, 3 * len(part), 3))
        await database.query(
            f"""
            WITH one AS (SELECT 1)
            INSERT INTO {claims.named(table)} (event_id, outlet, key, due_at) VALUES {marks}
            ON CONFLICT (event_id, outlet) DO NOTHING RETURNING id
            """,  # noqa: S608  our own name and marks
            [value for row in part for value in row],
        )


def _topic(table: str) -> str:
    return f"outbox:{table}"


class _Deliverer:
    """Delivers the rows of one outlet, or of all receivers of a table."""

    def __init__(
        self,
        load: Callable[[Sequence[int]], Awaitable[Mapping[int, Any]]],
        services: Any,
        url: str,
        to: Outlet | FanOut,
        claiming: asyncio.Semaphore,
    ) -> None:
        self._load, self._services, self._url, self._to = load, services, url, to
        self._claiming = claiming
        self._name = to.name
        self._table = TABLE if isinstance(to, Outlet) else to.name
        self._most_here = to.most if isinstance(to, Outlet) else to.most_here
        self._tasks: dict[asyncio.Task[None], _Row] = {}
        self._delivered: list[_Row] = []
        self._again_at = 0.0  #: monotonic time of the next attempt of which this process knows
        self._said_at = 0.0
        self._loop: asyncio.Task[None] | None = None
        self._woken: Subscription | None = None
        self._is_stopping = False

    def start(self, bus: Bus) -> None:
        self._loop = asyncio.create_task(self._turn_over(bus), name=f"outbox {self._name}")

    async def stop(self) -> None:
        self._is_stopping = True
        if self._woken is not None:
            self._woken.wake()
        if self._loop is not None:
            _, late = await asyncio.wait([self._loop], timeout=_PATIENCE_S)
            for loop in late:  # it waits for a server that is paused within a claim, or for a database that is
                loop.cancel()
                await asyncio.wait(late, timeout=0.5)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_PATIENCE_S)
        left = dict(self._tasks)
        for task in left:
            task.cancel()
        _, stuck = await asyncio.wait(left, timeout=0.5) if left else (set(), set())
        if stuck:
            log.error("outlet %s does not end when it is cancelled, and keeps the server from its end", self._name)
        try:
            await self._delete()
            for row in left.values():
                await self._set(row, "leased_until = 0")
        except Exception as error:  # noqa: BLE001  the lease ends by itself
            database_errors.log_failure(log, f"outlet {self._name}: to let go of its events", error, self._url)

    async def _turn_over(self, bus: Bus) -> None:
        async with bus.subscribe(_topic(self._table)) as self._woken:
            while not self._is_stopping:
                try:
                    await self._delete()
                    await self._fill()
                    pause_s = min(_LOOK_S, max(0.05, self._again_at - time.monotonic()) if self._again_at else _LOOK_S)
                except Exception as error:  # noqa: BLE001  an edge, as that of a periodic job: it is logged and tried again
                    database_errors.log_failure(log, f"outlet {self._name}", error, self._url)
                    pause_s = _LOOK_S
                await self._woken.wait(pause_s)

    async def _fill(self) -> None:
        """Claims as many rows as there is room for, and begins to deliver them."""
        self._again_at = 0.0 if self._again_at <= time.monotonic() else self._again_at
        for outlet in await self._outlets() if len(self._tasks) < self._most_here else ():
            free = self._most_here - len(self._tasks)
            if free <= 0:
                return
            rows = await self._claim(outlet, free)
            events = await self._load([row.event_id for row in rows]) if rows else {}
            for row in rows:
                attempt = self._attempt(row, events.get(row.event_id))
                task = asyncio.create_task(attempt, name=f"outbox {self._name} {row.id}")
                self._tasks[task] = row
                task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if self._woken is not None:
            self._woken.wake()

    async def _outlets(self) -> list[str]:
        """Whose rows to claim: of a table of receivers each that has one, in no order, so that none is always the last."""
        if isinstance(self._to, Outlet):
            return [self._to.name]
        now = claims.now_sql()
        rows = await database.rows(
            f"""
            SELECT DISTINCT outlet FROM {self._table}
            WHERE failed_at IS NULL AND due_at <= {now} AND leased_until <= {now}
            """  # noqa: S608  our own name
        )
        found = [str(row[0]) for row in rows]
        random.shuffle(found)
        return found

    async def _claim(self, outlet: str, free: int) -> list[_Row]:
        """Rows of one outlet that nobody delivers, each the oldest of its key, under a new lease."""
        now = claims.now_sql()
        look = f"""
            SELECT (SELECT count(*) FROM {self._table} l WHERE l.outlet = $1 AND l.leased_until > {now}) AS leased,
                max(id) AS last, count(*) AS due
            FROM (
                SELECT w.id FROM {self._table} w
                WHERE w.outlet = $1 AND w.failed_at IS NULL AND w.due_at <= {now} AND w.leased_until + 0 <= {now}
                ORDER BY w.id LIMIT {_LOOK_MOST}
            ) AS first
        """  # noqa: S608  our own name
        async with self._claiming, _one_claimer(f"{self._table} {outlet}"):
            found = (await database.query(look, [outlet]))[0]
            room = min(free, self._to.most - found["leased"])
            if room <= 0 or not found["due"]:
                return []
            rows = await self._claim_up_to(outlet, room, found["last"])
            if not rows and found["due"] == _LOOK_MOST:  # all of these wait for an older one
                rows = await self._claim_up_to(outlet, room, _LAST_ID)
        return [_Row(row["id"], row["event_id"], row["outlet"], row["key"], row["attempts"]) for row in rows]

    async def _claim_up_to(self, outlet: str, room: int, last: int) -> list[dict[str, Any]]:
        older = f"""
            SELECT 1 FROM {self._table} o
            WHERE o.outlet = t.outlet AND o.key = t.key AND o.id < t.id AND o.failed_at IS NULL
        """  # noqa: S608  our own name
        return await claims.claim(
            self._table,
            "$2",
            "$3",
            [outlet, self._to.timeout_s + _GRACE_S, room, last],
            order="t.id",
            where=f"AND t.outlet = $1 AND t.id <= $4 AND t.failed_at IS NULL AND NOT EXISTS ({older})",
            also=", attempts = attempts + 1",
            gives=", event_id, outlet, key, attempts",
        )

    async def _deliver(self, row: _Row, event: Any) -> None:
        if event is None:
            return  # it went with its workspace
        if isinstance(self._to, Outlet):
            await self._to.deliver(self._services, event)
        else:
            await self._to.deliver(self._services, row.outlet, event)

    async def _attempt(self, row: _Row, event: Any) -> None:
        try:
            if row.attempts > _CUT_OFF_MOST * (len(self._to.pauses_s) + 1):
                await self._fail(row, f"the server ended within {row.attempts - 1} attempts")
                return
            limit = asyncio.timeout(self._to.timeout_s)
            try:
                async with limit:
                    await self._deliver(row, event)
            except Undeliverable as error:
                await self._fail(row, str(error))
            except Later as error:
                await self._postpone(row, str(error), error.after_s)
            except BaseException as error:  # whatever an outlet raises, there is another attempt
                task = asyncio.current_task()
                if isinstance(error, GeneratorExit) or (task is not None and task.cancelling()):
                    raise  # the server stops: an outlet does not end it, nor an attempt without a word
                await self._postpone(
                    row, f"no end within {self._to.timeout_s:g} s" if limit.expired() else _said(error)
                )
            else:
                self._delivered.append(row)
        except Exception as error:  # noqa: BLE001  the database cannot be told: the lease ends, and there is another attempt
            database_errors.log_failure(log, f"outlet {self._name}: to end an attempt", error, self._url)

    async def _delete(self) -> None:
        """Removes what was delivered; kept for the next turn where the database cannot be told."""
        while part := self._delivered[: self._most_here]:
            pairs = " OR ".join(f"(id = ${n} AND attempts = ${n + 1})" for n in range(1, 2 * len(part), 2))
            await database.query(
                f"WITH one AS (SELECT 1) DELETE FROM {self._table} WHERE {pairs} RETURNING id",  # noqa: S608  our own marks
                [value for row in part for value in (row.id, row.attempts)],
            )
            del self._delivered[: len(part)]

    async def _postpone(self, row: _Row, why: str, after_s: float | None = None) -> None:
        if row.attempts > len(self._to.pauses_s):
            await self._fail(row, why)
            return
        pause_s = self._to.pauses_s[row.attempts - 1] * random.uniform(0.8, 1.2) if after_s is None else after_s  # noqa: S311
        at = time.monotonic() + pause_s + _MARGIN_S
        self._again_at = min(self._again_at or at, at)
        if time.monotonic() > self._said_at:
            self._said_at = time.monotonic() + _REPEATED_S
            text = "outlet %s did not take event %d, attempt %d: %s; again in %.0f s"
            log.warning(text, self._name, row.event_id, row.attempts, _in_one_line(why), pause_s)
        await self._set(row, f"due_at = {claims.now_sql()} + $3, leased_until = 0", pause_s)

    async def _fail(self, row: _Row, why: str) -> None:
        text = "outlet %s did not take event %d of %s after %d attempts, and it is given up: %s"
        if await self._set(row, f"failed_at = {claims.now_sql()}, leased_until = 0"):
            log.error(text, self._name, row.event_id, row.key, row.attempts, _in_one_line(why))

    async def _set(self, row: _Row, what: str, *values: Any) -> bool:
        """Changes a row that this claim still holds; whether it does."""
        rows = await database.query(
            f"WITH one AS (SELECT 1) UPDATE {self._table} SET {what} WHERE id = $1 AND attempts = $2 RETURNING id",  # noqa: S608
            [row.id, row.attempts, *values],
        )
        return bool(rows)


def _in_one_line(text: str) -> str:
    """What a receiver said, so that it makes no line of the log of its own and moves no terminal."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * _SAID_MOST]).split())
    return words if len(words) <= _SAID_MOST else words[:_SAID_MOST] + "..."


def _said(error: BaseException) -> str:
    """What a log may say of an error: what it is and where it was raised. Its text may hold a secret, unless it is ours."""
    if isinstance(error, TerrapodError):
        return error.detail
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


@contextlib.asynccontextmanager
async def _one_claimer(name: str) -> AsyncIterator[None]:
    """Servers claim rows of one outlet one after the other: so they count together."""
    if not database.is_postgres():
        yield
        return
    async with database.in_transaction() as connection:
        # what is known of a table that fills and empties is never true: without these two words PostgreSQL may sort all
        # rows for the few that it takes from the front of an index
        plan = "set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true)"
        lock = f"SELECT pg_advisory_xact_lock($1), {plan}"
        await connection.execute_query(lock, [database.lock_number(name)])
        yield
