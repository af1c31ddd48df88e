"""Reading SQLite by threads of its own, past the ORM's one connection and whoever writes on it.

Handing one statement to a thread costs more than most statements take. So all
that are asked for in one turn of the loop go to a thread together, and come
back together. WAL lets it read while somebody writes; each statement sees
whatever was committed before it began.
"""

import asyncio
import logging
import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

#: Where the ORM names its statements.
_statements = logging.getLogger("tortoise.db_client")
Rows = list[tuple[Any, ...]]
_Future = asyncio.Future[Rows]
#: After so long another thread takes what still waits behind a slow statement.
_PATIENCE_S = 0.003


class Readers:
    """A few threads, each with a connection; one is woken for what is asked for in a turn of the loop."""

    def __init__(self, path: str, busy_ms: int, threads: int = 3) -> None:
        self._path, self._busy_ms = path, busy_ms
        self._loop = asyncio.get_running_loop()
        self._asked: deque[tuple[_Future, str, Sequence[Any]]] = deque()
        self._answered: deque[tuple[_Future, Rows | Exception]] = deque()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._handing: asyncio.Handle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._threads = [
            threading.Thread(target=self._serve, name=f"read_{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def rows(self, sql: str, values: Sequence[Any]) -> Rows:
        """Raises what SQLite raises."""
        _statements.debug("%s: %s", sql, values)
        future: _Future = self._loop.create_future()
        self._asked.append((future, sql, values))
        if self._handing is None:  # whoever is ready to run now may ask too, before a thread is woken
            self._handing = self._loop.call_soon(self._hand_over)
        return await future

    async def close(self) -> None:
        """Returns once the threads have closed their connections; what waits is still answered."""
        self._wake.put(True)
        for _ in self._threads:
            self._wake.put(False)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._deliver()
        for timer in (self._handing, self._watch):
            if timer is not None:
                timer.cancel()

    def _hand_over(self) -> None:
        self._handing = None
        self._wake.put(True)
        if self._watch is None:
            self._watch = self._loop.call_later(_PATIENCE_S, self._look_after)

    def _look_after(self) -> None:
        """What came along with a slow statement waits for it no longer."""
        self._watch = None
        self._deliver()
        if self._asked:
            self._hand_over()

    def _serve(self) -> None:
        connection: sqlite3.Connection | None = None
        while self._wake.get():
            found = False
            while self._asked:
                try:
                    future, sql, values = self._asked.popleft()
                except IndexError:  # another thread was faster
                    break
                found = True
                try:
                    connection = connection or self._connect()
                    self._answered.append((future, connection.execute(sql, values).fetchall()))
                except Exception as error:  # noqa: BLE001  raised where the rows are awaited
                    self._answered.append((future, error))
            if found:
                self._loop.call_soon_threadsafe(self._deliver)
        if connection is not None:
            connection.close()

    def _deliver(self) -> None:
        while self._answered:
            future, answer = self._answered.popleft()
            if future.done():  # whoever asked has gone
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._busy_ms / 1000, isolation_level=None)
        connection.execute("PRAGMA query_only = ON")
        return connection
