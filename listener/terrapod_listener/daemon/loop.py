"""The daemon: takes work while a slot is free, keeps its leases, delivers what an earlier life left behind."""

import asyncio
import contextlib
import logging
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from terrapod_listener import __version__
from terrapod_listener.config import Config
from terrapod_listener.daemon import recover
from terrapod_listener.daemon.parent import Parent
from terrapod_listener.daemon.status import Facts, Observer
from terrapod_listener.engine.install import Engines, announced
from terrapod_listener.link import identity, join
from terrapod_listener.link.client import Server, pause_s
from terrapod_listener.link.lease import Lease
from terrapod_listener.phase.delivery import send
from terrapod_listener.phase.job import Job
from terrapod_listener.sandbox import isolation, limits, metadata
from terrapod_listener.supervise import files, journal, spool
from terrapod_shared import errors, programs, wire

log = logging.getLogger("terrapod.listener")
#: How long an answer that may carry work is waited for while the listener drains.
_CROSSING_S = 0.4
#: How often what the server refused is offered to it again.
_AGAIN_S = 60.0
#: After a third signal: how long a killed terraform's state may take to reach the disk.
_FORCED_S = 10.0


class Daemon:
    """One listener process. It ends with its `parent` where it has one."""

    def __init__(
        self,
        home: Path,
        who: identity.Identity,
        config: Config,
        parent: Parent | None = None,
        engines: Sequence[Path] = (),
    ) -> None:
        """`engines` are programs of this host to offer besides those of the settings."""
        self._home, self._config, self._parent = home, config, parent
        self._programs = engines
        self._server = Server(who)
        self._jobs: dict[asyncio.Task[None], Job] = {}
        self._leases: dict[str, Lease] = {}
        self._told: list[wire.LocalEngine] = []
        self._changed = asyncio.Event()
        self._draining = asyncio.Event()
        self._renew_asked = asyncio.Event()
        self._rejoined = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None
        self._signals = 0
        self._forced = asyncio.Event()
        self._isolation: isolation.Isolation
        self._observer = Observer(home, config, self._facts)

    async def run(self) -> None:
        """Works until SIGTERM: the first drains, the second interrupts, the third kills."""
        try:
            lock = spool.lock(self._home)
        except BlockingIOError:
            message = f"another listener already runs with {self._home}"
            raise SystemExit(message) from None
        with lock:
            async with self._observer():
                await self._run()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal)
        loop.add_signal_handler(signal.SIGUSR1, self.drain)
        if self._parent is not None:
            self._parent.watch(self._orphaned)
        await self._isolate()
        self._say(draining=False)
        known = await announced(self._config.engines, self._programs, self._isolation.can_start)
        self._told = [told for told, _ in known.values()]
        engines = Engines(self._home / "engines", self._server, known)
        left = await asyncio.to_thread(journal.records, self._home)
        for record in left:
            if record.facts.left:
                log.warning("%s keeps its folder: %s", record.folder.name, record.facts.left)
                continue
            log.info("%s %s was left at %s", record.facts.work.phase, record.folder.name, record.facts.step)
            self._go_on(record, engines)
        await asyncio.to_thread(self._tidy, left)
        beating = asyncio.create_task(self._beats())
        renewing = asyncio.create_task(self._renewals())
        delivering: asyncio.Task[None] | None = None
        try:
            await self._until_draining(self._announce())
            await self._until_draining(self._deliver_left())
            delivering = asyncio.create_task(self._deliveries(engines))
            await self._take(engines)
            await self._all_done()
        finally:
            for task in filter(None, (beating, renewing, self._telling, delivering)):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self._server.close()

    def _tidy(self, left: list[journal.Record]) -> None:
        """Folders of runs that the journal does not know hold nothing that is needed. To be called in a thread."""
        self._isolation.clear()
        known = {record.folder.name for record in left}
        for folder in (self._home / "work").glob("*"):
            if folder.name not in known:
                files.remove_folder(folder)

    def _go_on(self, record: journal.Record, engines: Engines) -> None:
        work = record.facts.work
        cell = self._isolation.cell(self._home / "work" / work.run_id, slot=record.facts.slot)
        self._start(Job(self._home, self._server, engines, self._config, work, cell, record), time.monotonic())

    async def _all_done(self) -> None:
        """Until no work is left; after a third signal until terraform is gone, since the journal has the rest."""
        while self._jobs:
            await asyncio.wait(
                [*self._jobs, forced := asyncio.ensure_future(self._forced.wait())], return_when=asyncio.FIRST_COMPLETED
            )
            forced.cancel()
            if self._forced.is_set():
                await asyncio.wait(
                    [asyncio.create_task(_within(job.settled, _FORCED_S)) for job in self._jobs.values()]
                    or [asyncio.create_task(asyncio.sleep(0))]
                )
                for task in list(self._jobs):
                    task.cancel()
                if self._jobs:
                    await asyncio.wait(list(self._jobs))
                return

    async def _isolate(self) -> None:
        """Says how runs are kept apart from now on; SystemExit where what the settings ask for cannot be had."""
        config = self._config
        wanted = isolation.Settings(
            config.isolation, config.run_uid, config.capacity,
            tuple(config.readable), tuple(config.writable), tuple(config.hide),
        )  # fmt: skip
        try:
            self._isolation = await asyncio.to_thread(isolation.find, self._home, wanted)
            if config.block_metadata:
                await asyncio.to_thread(metadata.block, self._isolation)
        except isolation.Unavailable as error:
            raise SystemExit(str(error)) from None
        why = self._isolation.why or "by the settings"
        if self._isolation.kind == "none":
            log.warning("runs are not kept from this listener's files or from one another: %s", why)
        else:
            log.info(
                "runs are isolated by %s%s",
                self._isolation.name,
                f" ({self._isolation.why})" * bool(self._isolation.why),
            )
        if config.run_limits and not await asyncio.to_thread(limits.is_offered):
            self._config = msgspec.structs.replace(config, run_limits=False)

    def _say(self, *, draining: bool) -> None:
        """What `status` is to say."""
        limited = "by systemd" if self._config.run_limits else "none"
        health = self._observer.address or "none"
        spool.tell(self._home, draining=draining, isolation=self._isolation.name, limits=limited, health=health)

    def drain(self) -> None:
        """Takes no more work; however often it is called."""
        if not self._draining.is_set():
            log.info("this listener drains: it takes no more work, and %d runs go on", len(self._jobs))
            self._draining.set()
            self._say(draining=True)
            self._observer.tell()
            if self._jobs:
                self._tell()

    def _orphaned(self) -> None:
        """Ends at once, as if it were killed: applies go on under their supervisors, and the next life finds the journal."""
        log.warning(
            "the process that started this listener has ended: it ends too, and %d runs are left", len(self._jobs)
        )
        for job in self._jobs.values():
            if job.work.phase == "plan":
                job.lose()
        os._exit(1)

    def _signal(self) -> None:
        self._signals += 1
        if self._signals > 2:  # noqa: PLR2004
            self._forced.set()
        self.drain()
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

    async def _beat(self) -> wire.Beat:
        system, arch = programs.here()
        return wire.Beat(
            leases=[job.held for job in self._jobs.values() if job.offer.is_accepted],
            free_slots=self._config.capacity - len(self._jobs),
            capacity=self._config.capacity,
            local_engines=self._told,
            version=__version__,
            os=system,
            isolation=self._isolation.name,
            arch=arch,
            draining=self._draining.is_set(),
            spooled=await asyncio.to_thread(self._spooled),
            accepts=self._config.accept,
        )

    async def _announce(self) -> None:
        attempt = 0
        while True:
            asked = time.monotonic()
            try:
                self._obey(await self._server.beat(await self._beat()), asked)
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
                work = await self._offer()
                attempt = 0
            except errors.TerrapodError as error:
                log.warning("no work: %s", error.detail)
                self._look_again(error)
                await self._until_draining(asyncio.sleep(pause_s(attempt)))
                attempt += 1
                continue
            if work is None and self._server.is_told_to_drain:
                self.drain()
            elif work is not None and self._draining.is_set():
                await self._give_back(work, "the listener takes no more work")
            elif work is not None:
                try:
                    cell = await asyncio.to_thread(self._isolation.cell, self._home / "work" / work.run_id)
                except (isolation.Unavailable, OSError) as error:
                    await self._give_back(work, f"the listener's host: {error}")
                    await self._until_draining(asyncio.sleep(pause_s(attempt := attempt + 1)))
                    continue
                job = Job(self._home, self._server, engines, self._config, work, cell)
                self._start(job, asked)
                await self._until_draining(_within(job.offer.decided, work.lease.offer_seconds))
                refused = refused + 1 if job.offer.is_refused else 0
                if job.offer.is_unwilling:  # the server is to know, or it would come with it again
                    self._tell()
                if refused:  # another listener may be able to take what this one cannot: it is to come first
                    await self._until_draining(asyncio.sleep(pause_s(min(refused, 4) - 1)))

    async def _offer(self) -> wire.Work | None:
        """Work, or None. An answer that crosses a drain is not thrown away: it may carry an offer."""
        poll = asyncio.ensure_future(self._server.next_work(self._config.poll_s))
        stop = asyncio.ensure_future(self._draining.wait())
        await asyncio.wait({poll, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not poll.done():
            self._tell()
            await asyncio.wait({poll}, timeout=_CROSSING_S)
        if not poll.done():
            poll.cancel()
            with contextlib.suppress(asyncio.CancelledError, errors.TerrapodError):
                return await poll
            return None
        return await poll

    async def _give_back(self, work: wire.Work, why: str) -> None:
        log.warning("%s %s is given back: %s", work.phase, work.run_id, why)
        refusal = wire.Report(phase=work.phase, status="refused", reason=why)
        with contextlib.suppress(errors.TerrapodError, TimeoutError):
            async with asyncio.timeout(_CROSSING_S):
                await self._server.report(work.run_id, refusal, work.lease.number)

    def _start(self, job: Job, asked: float) -> None:
        work = job.work
        log.info("%s %s in workspace %s", work.phase, work.run_id, work.workspace_name)
        self._leases[work.run_id] = Lease(asked + work.lease.seconds, work.lease.seconds)
        before = [task for task, other in self._jobs.items() if other.work.run_id == work.run_id]
        task = asyncio.create_task(_after(before, job), name=work.run_id)
        self._jobs[task] = job
        task.add_done_callback(self._ended)
        self._changed.set()
        self._observer.tell()

    def _ended(self, task: asyncio.Task[None]) -> None:
        job = self._jobs.pop(task)
        self._isolation.let_go(job.cell)
        if all(other.work.run_id != job.work.run_id for other in self._jobs.values()):
            self._leases.pop(job.work.run_id, None)
        self._changed.set()
        self._observer.tell()
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
                pulse = await self._server.beat(await self._beat(), wire.BEAT_S)
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
            self.drain()
        if pulse.renew:
            self._renew_asked.set()

    def _look_again(self, error: errors.TerrapodError | None = None) -> None:
        """Goes on as who `terrapod-listener join` has made it meanwhile; the work that is under way is kept."""
        if error is not None and not isinstance(error, errors.Unauthorized | errors.NotFound):
            return
        found, mine = identity.load(self._home), self._server.identity.kept
        if mine.next_key and isinstance(error, errors.Unauthorized):
            self._renew_asked.set()  # the answer to a renewal was lost: the server may know the next key alone
        if found is None or found.kept.certificate == mine.certificate or found.kept.server != mine.server:
            return
        log.warning("this listener joined again: it is %s from now on", found.kept.listener_id)
        self._server.identity = found
        self._rejoined.set()
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
                await join.renew(self._server)
                log.info("the certificate is renewed until %s", self._server.identity.expires())
            except errors.TerrapodError as error:
                log.warning("the certificate could not be renewed: %s", error.detail)
                await asyncio.sleep(30)

    def _spooled(self) -> list[dict[str, Any]]:
        """What waits in the spool; an apply that goes on keeps its copy there too."""
        live = self._live()
        return [facts for facts in spool.spooled(self._home) if facts["run_id"] not in live]

    def _live(self) -> set[str]:
        return {job.work.run_id for job in self._jobs.values() if not job.settled.is_set()}

    def _facts(self) -> Facts:
        return Facts(
            phases=[job.work.phase for job in self._jobs.values()],
            live=self._live(),
            is_draining=self._draining.is_set(),
            server=self._server,
        )

    async def _deliver_left(self) -> None:
        """What an earlier life of this listener could not deliver, once, before any new work; keepers go on meanwhile."""
        ended = [job for job in self._jobs.values() if not job.is_under_supervisor]
        await asyncio.gather(*(job.settled.wait() for job in ended))
        await self._deliver_spool()
        await self._drop_settled(await asyncio.to_thread(journal.records, self._home))

    async def _deliveries(self, engines: Engines) -> None:
        """The same again and again, for as long as something is left: a server is repaired, a listener joins again."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._rejoined.wait(), _AGAIN_S * random.uniform(0.5, 1.0))  # noqa: S311
            is_rejoined = self._rejoined.is_set()
            self._rejoined.clear()
            live = {job.work.run_id for job in self._jobs.values()}
            left = await asyncio.to_thread(journal.records, self._home)
            live |= {job.work.run_id for job in self._jobs.values()}  # begun or ended while the journal was read
            for record in left:
                if record.folder.name not in live and not record.facts.left:
                    self._go_on(record, engines)
            await self._deliver_spool(is_rejoined=is_rejoined)
            await self._drop_settled(left)

    async def _drop_settled(self, records: list[journal.Record]) -> None:
        """Drops what stays here for people's sake, once the server says that a person has settled it."""
        over = {record.folder.name: record for record in records if record.facts.left}
        if not over:
            return
        beat = msgspec.structs.replace(await self._beat(), left=sorted(over)[: wire.LEFT_MOST])
        asked = time.monotonic()
        try:
            pulse = await self._server.beat(beat)
        except errors.TerrapodError as error:
            log.warning("the server does not say what became of %s: %s", ", ".join(over), error.detail)
            return
        self._obey(pulse, asked)
        for run_id in pulse.settled:
            if record := over.get(run_id):
                log.info("%s is settled: its folder goes", run_id)
                await asyncio.to_thread(recover.forget, self._home, record)

    async def _deliver_spool(self, *, is_rejoined: bool = False) -> None:
        """But for what was refused for good, which another server may take, and a person may send."""
        for facts in await asyncio.to_thread(self._spooled):
            if facts["is_final"] and not is_rejoined:
                continue
            if await send(self._server, self._home, facts):
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
