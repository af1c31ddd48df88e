"""Work that each server process does every so often.

Servers do it side by side, and none leads: a job is an idempotent statement, or it claims rows (`kit.work.claims`). No
job runs inside a transaction, so one that waits for a slow host loses nothing that it has written.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from terrapod_server.kit.db import database_errors

log = logging.getLogger(__name__)
#: How long a job that is at work may take to end by itself.
_PATIENCE_S = 3.0
#: What all jobs are given: the services of the server, which this module does not know.
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True)
class Job(Generic[T_contra]):
    name: str
    every_s: float
    do: Callable[[T_contra], Awaitable[None]]


class Periodic(Generic[T_contra]):
    """Runs jobs until `stop`; a job that fails is logged and tried again at its next turn."""

    def __init__(
        self, jobs: Iterable[Job[T_contra]], services: T_contra, turned: Callable[[str], None], url: str
    ) -> None:
        """`turned` is told of each turn that ended well; `url` is the database's, for what is logged."""
        self._jobs = tuple(jobs)
        self._services, self._turned, self._url = services, turned, url
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._repeat(job), name=job.name) for job in self._jobs]

    async def stop(self) -> None:
        """Lets jobs that are at work end: one that is cancelled within a statement leaves its connection behind."""
        self._stopping.set()
        left = set(self._tasks)
        if left:
            _, left = await asyncio.wait(left, timeout=_PATIENCE_S)
        while left:  # a cancellation may be lost in a library that waits with a time-out: it is said again
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=0.5)

    async def _repeat(self, job: Job[T_contra]) -> None:
        pause_s = random.uniform(0, min(job.every_s, 1.0))  # noqa: S311
        while not await self._is_over(pause_s):
            try:
                await job.do(self._services)
                self._turned(job.name)
            except Exception as error:  # noqa: BLE001  one of the edges: it is logged, and the job has another turn
                database_errors.log_failure(log, f"job {job.name}", error, self._url)
            pause_s = job.every_s

    async def _is_over(self, pause_s: float) -> bool:
        """Waits for the next turn; whether `stop` came first."""
        try:
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True
