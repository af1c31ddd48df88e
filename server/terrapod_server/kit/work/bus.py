"""Wake-ups between tasks, and between server processes where the database is PostgreSQL.

A wake-up carries no data: who is woken looks at the database. So a lost one
costs a waiter its time-out and nothing else. Subscribe first, then look, then
wait: whatever is published after the subscription is seen.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

from tortoise import connections
from tortoise.exceptions import BaseORMException

log = logging.getLogger(__name__)
CHANNEL = "terrapod"
_RETRY_S = 1.0


class Subscription:
    """`wait` answers True once for any number of wake-ups since the last."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Whether something was published; False when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):  # `wait_for` may lose a cancellation that comes with a wake-up
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True

    def take(self) -> bool:
        """The same without waiting."""
        was_woken = self._event.is_set()
        self._event.clear()
        return was_woken


class Bus:
    """In process; `dsn` adds the other processes on the same PostgreSQL."""

    def __init__(self, dsn: str | None = None) -> None:
        self._dsn = dsn
        self._waiting: dict[str, set[Subscription]] = defaultdict(set)
        self._watching: list[Callable[[str], None]] = []
        self._task: asyncio.Task[None] | None = None
        self._later: set[asyncio.Task[None]] = set()
        self.is_closing = False

    async def start(self) -> None:
        if self._dsn:
            ready = asyncio.Event()
            self._task = asyncio.create_task(self._listen(ready))
            await asyncio.wait_for(ready.wait(), 10)

    async def stop(self) -> None:
        self.close()
        for later in list(self._later):
            later.cancel()
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def close(self) -> None:
        """Wakes everybody for good: long polls end with nothing, streams end."""
        self.is_closing = True
        for waiting in list(self._waiting.values()):
            for subscription in list(waiting):
                subscription.wake()

    async def publish(self, *topics: str) -> None:
        """Wakes who waits for any of the topics. To be called after the commit, so that it never fails.

        Who is not woken looks by itself in the end.
        """
        for topic in topics:
            self._deliver(topic)
        if self._dsn and topics:
            import asyncpg  # noqa: PLC0415  3 MiB that a server on SQLite does without

            connection = connections.get("default")
            try:
                told = "SELECT pg_notify($1, topic) FROM unnest($2::text[]) AS topic"
                await connection.execute_query(told, [CHANNEL, list(topics)])
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, BaseORMException) as error:
                log.warning("a wake-up does not reach the other processes: %s", error)

    def wake(self, topic: str) -> None:
        """Wakes who waits in this process alone. It reaches nobody else, and costs nothing."""
        self._deliver(topic)

    def publish_later(self, after_s: float, *topics: str) -> None:
        """Publishes when a time is over, if this process still runs then."""

        async def publish() -> None:
            await asyncio.sleep(after_s)
            await self.publish(*topics)

        task = asyncio.create_task(publish())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    @contextlib.asynccontextmanager
    async def subscribe(self, *topics: str) -> AsyncIterator[Subscription]:
        subscription = Subscription()
        for topic in topics:
            self.add(topic, subscription)
        if self.is_closing:
            subscription.wake()
        try:
            yield subscription
        finally:
            for topic in topics:
                self.remove(topic, subscription)

    def add(self, topic: str, subscription: Subscription) -> None:
        """For who does more than wait: its `wake` is called from the loop, and must not raise."""
        self._waiting[topic].add(subscription)

    def watch(self, told: Callable[[str], None]) -> None:
        """For who remembers things: `told` gets every topic, is called from the loop, and must not raise."""
        self._watching.append(told)

    def remove(self, topic: str, subscription: Subscription) -> None:
        waiting = self._waiting[topic]
        waiting.discard(subscription)
        if not waiting:
            del self._waiting[topic]

    def _deliver(self, topic: str) -> None:
        for told in self._watching:
            told(topic)
        for subscription in list(self._waiting.get(topic, ())):
            subscription.wake()

    def _heard(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        self._deliver(str(payload))

    async def _listen(self, ready: asyncio.Event) -> None:
        """Holds one connection that LISTENs; after a break everybody looks once, since wake-ups were missed."""
        import asyncpg  # noqa: PLC0415  as above

        while True:
            lost = asyncio.Event()
            try:
                connection = await asyncpg.connect(self._dsn)
            except (OSError, asyncpg.PostgresError) as error:
                log.warning("cannot listen for wake-ups: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            connection.add_termination_listener(lambda _c, lost=lost: lost.set())
            try:
                await connection.add_listener(CHANNEL, self._heard)
                for topic in list(self._waiting):
                    self._deliver(topic)
                ready.set()
                await lost.wait()
            finally:
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await connection.close(timeout=1)
