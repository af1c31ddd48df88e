"""Reading SQLite by threads of its own, past the ORM's one connection and whoever writes on it.

Handing one statement to a thread costs more than most statements take. So all
that are asked for in one turn of the loop go to a thread together, and come
back together. WAL lets it read while somebody writes; each statement sees
whatever was committed before it began.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

Rows = list[tuple[Any, ...]]
_Answer = tuple[asyncio.Future[Rows], Rows | Exception]
_Asked = tuple[asyncio.Future[Rows], str, Sequence[Any]]


class Readers:
    """A slow read holds up one thread with what came along with it, and not the other."""

    def __init__(self, path: str, busy_ms: int, threads: int = 2) -> None:
        self._path, self._busy_ms = path, busy_ms
        self._loop = asyncio.get_running_loop()
        self._asked: list[_Asked] = []
        self._batches: SimpleQueue[list[_Asked]] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"read_{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def rows(self, sql: str, values: Sequence[Any]) -> Rows:
        """Raises what SQLite raises."""
        future: asyncio.Future[Rows] = self._loop.create_future()
        if not self._asked:  # whoever is ready to run now may ask too, before it goes to a thread
            self._loop.call_soon(self._hand_over)
        self._asked.append((future, sql, values))
        return await future

    async def close(self) -> None:
        """Returns once the threads have closed their connections; what waits is still answered."""
        if self._asked:
            self._hand_over()
        for _ in self._threads:
            self._batches.put([])
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _hand_over(self) -> None:
        self._batches.put(self._asked)
        self._asked = []

    def _serve(self) -> None:
        connection: sqlite3.Connection | None = None
        while batch := self._batches.get():
            answers: list[_Answer] = []
            for future, sql, values in batch:
                try:
                    connection = connection or self._connect()
                    answers.append((future, connection.execute(sql, values).fetchall()))
                except Exception as error:  # noqa: BLE001  raised where the rows are awaited
                    answers.append((future, error))
            self._loop.call_soon_threadsafe(_deliver, answers)
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._busy_ms / 1000, isolation_level=None)
        connection.execute("PRAGMA query_only = ON")
        return connection


def _deliver(answers: Sequence[_Answer]) -> None:
    for future, answer in answers:
        if future.done():  # whoever asked has gone
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
