"""The runs in hand: their tasks, and how long their leases last."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from terrapod_listener.link.lease import Lease
from terrapod_listener.phase.job import Job

log = logging.getLogger("terrapod.listener")
#: After a third signal: how long a killed terraform's state may take to reach the disk.
_FORCED_S = 10.0


class Jobs:
    """Of one daemon. `on_change` is called when a job begins or ends, `on_spooled` when one has left a state in the spool."""

    def __init__(self, on_change: Callable[[], None], on_spooled: Callable[[], None]) -> None:
        self._tasks: dict[asyncio.Task[None], Job] = {}
        self._leases: dict[str, Lease] = {}
        self._on_change, self._on_spooled = on_change, on_spooled
        self.changed = asyncio.Event()  #: set when a job begins or ends; whoever waits for it clears it before

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._tasks.values()))

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, job: Job, asked_s: float) -> None:
        """Runs a job. Its lease counts from `asked_s`, when the request left that brought it."""
        work = job.work
        log.info("%s %s in workspace %s", work.phase, work.run_id, work.workspace_name)
        self._leases[work.run_id] = Lease(asked_s + work.lease.seconds, work.lease.seconds)
        before = [task for task, other in self._tasks.items() if other.work.run_id == work.run_id]
        task = asyncio.create_task(_run_after(before, job), name=work.run_id)
        self._tasks[task] = job
        task.add_done_callback(self._ended)
        self._notify()

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        job.cell.isolation.let_go(job.cell)
        if all(other.work.run_id != job.work.run_id for other in self._tasks.values()):
            self._leases.pop(job.work.run_id, None)
        self._notify()
        if job.is_spooled:
            self._on_spooled()
        if not task.cancelled() and task.exception() is not None:
            log.error("run %s: the listener failed", job.work.run_id, exc_info=task.exception())

    def _notify(self) -> None:
        self.changed.set()
        self._on_change()

    def run_ids(self) -> set[str]:
        return {job.work.run_id for job in self}

    def unsettled(self) -> set[str]:
        """Ids of the runs whose state may still be on its way: what of theirs is in the spool does not wait there."""
        return {job.work.run_id for job in self if not job.settled.is_set()}

    def prolong(self, job: Job, asked_s: float, seconds: float) -> None:
        """The server, asked at `asked_s`, has prolonged the lease."""
        self._leases[job.work.run_id] = Lease(asked_s + seconds, seconds)

    def lose_ended(self) -> None:
        """Tells jobs whose lease has ended without the server's word."""
        for job in self:
            lease = self._leases.get(job.work.run_id)
            if lease and lease.move(time.monotonic(), job.work.phase) == "stop":
                job.lose()

    async def all_done(self, forced: asyncio.Event) -> None:
        """Until no work is left; once `forced` is set until terraform is gone, since the journal has the rest."""
        while self._tasks:
            waiting = asyncio.ensure_future(forced.wait())
            await asyncio.wait([*self._tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if forced.is_set():
                await asyncio.gather(*(_settled(job) for job in self))
                for task in list(self._tasks):
                    task.cancel()
                if self._tasks:
                    await asyncio.wait(list(self._tasks))
                return


async def _settled(job: Job) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(job.settled.wait(), _FORCED_S)


async def _run_after(before: list[asyncio.Task[None]], job: Job) -> None:
    """Runs a job once the earlier ones of its run have left the folder that they share.

    A plan's report lets its apply come, here too, before the plan has cleaned up.
    """
    if before:
        await asyncio.wait(before)
    await job.run()
