"""The daemon: takes work while a slot is free, keeps its leases, delivers what an earlier life left behind."""

import asyncio
import contextlib
import json
import logging
import platform
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from terrapod_listener import __version__, identity, joining, kept
from terrapod_listener.client import Server, pause_s
from terrapod_listener.config import Config
from terrapod_listener.install import Engines, announced
from terrapod_listener.lease import Lease
from terrapod_listener.phases import Job
from terrapod_shared import errors, wire

log = logging.getLogger("terrapod.listener")
_ARCHES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class Daemon:
    """One listener process."""

    def __init__(self, home: Path, who: identity.Identity, config: Config) -> None:
        self._home, self._config = home, config
        self._server = Server(who)
        self._jobs: dict[asyncio.Task[None], Job] = {}
        self._leases: dict[str, Lease] = {}
        self._told: list[wire.LocalEngine] = []
        self._changed = asyncio.Event()
        self._draining = asyncio.Event()
        self._renew_asked = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None
        self._signals = 0

    async def run(self) -> None:
        """Works until SIGTERM: the first drains, the second interrupts, the third kills."""
        try:
            lock = kept.lock(self._home)
        except BlockingIOError:
            message = f"another listener already runs with {self._home}"
            raise SystemExit(message) from None
        with lock:
            await self._run()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal)
        known = await announced(self._config.engines)
        self._told = [told for told, _ in known.values()]
        engines = Engines(self._home / "engines", self._server, known)
        await asyncio.to_thread(kept.recover_all, self._home)
        beating = asyncio.create_task(self._beats())
        renewing = asyncio.create_task(self._renewals())
        try:
            await self._until_draining(self._announce())
            await self._until_draining(self._deliver_spool())
            await self._take(engines)
            while self._jobs:
                await asyncio.wait(self._jobs)
        finally:
            for task in filter(None, (beating, renewing, self._telling)):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self._server.close()

    def _signal(self) -> None:
        self._signals += 1
        self._draining.set()
        for job in self._jobs.values():
            if self._signals > 1:
                job.cancel("cancel" if self._signals == 2 else "force-cancel")  # noqa: PLR2004

    async def _until_draining(self, work: Any) -> Any:
        """The result, or None where a drain came first."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._draining.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await task
        return None

    def _beat(self) -> wire.Beat:
        system = platform.system().lower()
        return wire.Beat(
            leases=[job.held for job in self._jobs.values() if job.is_accepted],
            free_slots=self._config.capacity - len(self._jobs),
            capacity=self._config.capacity,
            local_engines=self._told,
            version=__version__,
            os=system,
            arch=_ARCHES.get(platform.machine(), platform.machine()),
            draining=self._draining.is_set(),
            spooled=self._spooled(),
        )

    async def _announce(self) -> None:
        attempt = 0
        while True:
            asked = time.monotonic()
            try:
                self._obey(await self._server.beat(self._beat()), asked)
            except errors.TerrapodError as error:
                log.warning("the server does not take this listener yet: %s", error.detail)
                self._look_again(error)
                await asyncio.sleep(pause_s(attempt))
                attempt += 1
            else:
                return

    def _tell(self) -> None:
        """A heartbeat out of turn: an idle listener sends none, and the server is to know of its engines and spool."""
        if self._telling is not None:
            self._telling.cancel()
        self._telling = asyncio.create_task(self._announce())

    async def _take(self, engines: Engines) -> None:
        """Long polls while a slot is free."""
        attempt = refused = 0
        while not self._draining.is_set():
            if len(self._jobs) >= self._config.capacity:
                self._changed.clear()
                await self._until_draining(self._changed.wait())
                continue
            asked = time.monotonic()
            try:
                work = await self._until_draining(self._server.next_work(self._config.poll_s))
                attempt = 0
            except errors.TerrapodError as error:
                log.warning("no work: %s", error.detail)
                self._look_again(error)
                await self._until_draining(asyncio.sleep(pause_s(attempt)))
                attempt += 1
                continue
            if work is not None:
                job = Job(self._home, self._server, engines, self._config, work)
                self._start(job, asked)
                await self._until_draining(_within(job.decided, work.lease.offer_seconds))
                refused = refused + 1 if job.is_refused else 0
                if refused:  # another listener may be able to take what this one cannot: it is to come first
                    await self._until_draining(asyncio.sleep(pause_s(min(refused, 4) - 1)))

    def _start(self, job: Job, asked: float) -> None:
        work = job.work
        log.info("%s %s in workspace %s", work.phase, work.run_id, work.workspace_name)
        self._leases[work.run_id] = Lease(asked + work.lease.seconds, work.lease.seconds)
        before = [task for task, other in self._jobs.items() if other.work.run_id == work.run_id]
        task = asyncio.create_task(_after(before, job), name=work.run_id)
        self._jobs[task] = job
        task.add_done_callback(self._ended)
        self._changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._jobs.pop(task)
        if all(other.work.run_id != job.work.run_id for other in self._jobs.values()):
            self._leases.pop(job.work.run_id, None)
        self._changed.set()
        if job.is_spooled:
            self._tell()
        if not task.cancelled() and task.exception() is not None:
            log.error("run %s: the listener failed", job.work.run_id, exc_info=task.exception())

    async def _beats(self) -> None:
        """Keeps the leases, in a task of its own; by long poll, so that a cancel arrives at once."""
        while True:
            if not self._jobs:
                self._changed.clear()
                await self._changed.wait()
                continue
            asked = time.monotonic()
            try:
                pulse = await self._server.beat(self._beat(), wire.BEAT_S)
            except errors.TerrapodError as error:
                log.warning("no heartbeat: %s", error.detail)
                self._look_again(error)
                await asyncio.sleep(1.0)
            else:
                self._obey(pulse, asked)
            for job in list(self._jobs.values()):
                lease = self._leases.get(job.work.run_id)
                if lease and lease.move(time.monotonic(), job.work.phase) == "stop":
                    job.lose()

    def _obey(self, pulse: wire.Pulse, asked: float) -> None:
        jobs = {job.work.run_id: job for job in self._jobs.values()}
        for verdict in pulse.leases:
            job = jobs.get(verdict.run_id)
            if job is None or job.work.lease.number != verdict.number:
                continue
            if verdict.verdict in ("ok", "resumed"):
                self._leases[verdict.run_id] = Lease(asked + verdict.seconds, verdict.seconds)
            elif verdict.verdict == "lost":
                job.lose()
        for run_id, how in pulse.cancels.items():
            if run_id in jobs:
                jobs[run_id].cancel(how)
        if pulse.drain:
            self._draining.set()
        if pulse.renew:
            self._renew_asked.set()

    def _look_again(self, error: errors.TerrapodError | None = None) -> None:
        """Goes on as who `terrapod-listener join` has made it meanwhile; the work that is under way is kept."""
        if error is not None and not isinstance(error, errors.Unauthorized | errors.NotFound):
            return
        found, mine = identity.load(self._home), self._server.identity.kept
        if found is None or found.kept.certificate == mine.certificate or found.kept.server != mine.server:
            return
        log.warning("this listener joined again: it is %s from now on", found.kept.listener_id)
        self._server.identity = found
        self._tell()

    async def _renewals(self) -> None:
        while True:
            left = self._server.identity.renew_at() - time.time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._renew_asked.wait(), min(max(left, 0.0), 3600.0))
            if left > 0 and not self._renew_asked.is_set():
                continue
            self._renew_asked.clear()
            self._look_again()
            try:
                await joining.renew(self._server)
                log.info("the certificate is renewed until %s", self._server.identity.expires())
            except errors.TerrapodError as error:
                log.warning("the certificate could not be renewed: %s", error.detail)
                await asyncio.sleep(30)

    def _spooled(self) -> list[dict[str, Any]]:
        return spooled(self._home)

    async def _deliver_spool(self) -> None:
        """States that an earlier life of this listener could not deliver; before any new work."""
        for facts in self._spooled():
            state = self._home / "spool" / facts["run_id"] / f"state-{facts['number']}"
            query = f"serial={facts['serial']}&lineage={quote(facts['lineage'], safe='')}&md5={facts['md5']}"
            path = f"{self._server.base}/runs/{facts['run_id']}/state?{query}"
            try:
                await self._server.persist("PUT", path, file=state, lease=facts["number"], timeout_s=600.0)
                report = wire.Report(
                    phase="apply",
                    status="errored",
                    state="uploaded",
                    error_message="the listener was restarted while it applied; the state that it left is here",
                )
                with contextlib.suppress(errors.LeaseEnded, errors.NotFound):
                    await self._server.report(facts["run_id"], report, facts["number"])
            except errors.TerrapodError as error:
                log.error("the state of %s stays in the spool: %s", facts["run_id"], error.detail)  # noqa: TRY400
                continue
            await asyncio.to_thread(kept.drop, state)
            self._tell()


async def _within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


async def _after(before: list[asyncio.Task[None]], job: Job) -> None:
    """Runs a job once the earlier ones of its run have left the folder that they share.

    A plan's report lets its apply come, here too, before the plan has cleaned up.
    """
    if before:
        await asyncio.wait(before)
    await job.run()


def spooled(home: Path) -> list[dict[str, Any]]:
    """What is in the spool."""
    found = []
    for about in sorted((home / "spool").glob("*/state-*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(about.read_text()))
    return found
