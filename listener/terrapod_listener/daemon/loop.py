"""The daemon: starts heartbeats, claims and deliveries, and ends them by signals and drains."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from terrapod_listener.config import Config
from terrapod_listener.daemon.claims import Claims
from terrapod_listener.daemon.context import Context
from terrapod_listener.daemon.deliveries import Deliveries
from terrapod_listener.daemon.draining import Draining
from terrapod_listener.daemon.heartbeats import Heartbeats
from terrapod_listener.daemon.jobs import Jobs
from terrapod_listener.daemon.parent import Parent
from terrapod_listener.daemon.renewal import Renewal
from terrapod_listener.daemon.status import Facts, Observer
from terrapod_listener.engine.digests import Digests
from terrapod_listener.engine.install import Engines, announced
from terrapod_listener.link.client import Server
from terrapod_listener.link.identity import Identity
from terrapod_listener.sandbox import isolation, limits, metadata
from terrapod_listener.supervise import files, journal, spool

log = logging.getLogger("terrapod.listener")


class Daemon:
    """One listener process. It ends with its `parent` where it has one."""

    def __init__(
        self,
        home: Path,
        who: Identity,
        config: Config,
        parent: Parent | None = None,
        engines: Sequence[Path] = (),
    ) -> None:
        """`engines` are programs of this host to offer besides those of the settings."""
        self._home, self._config, self._parent = home, config, parent
        self._programs = engines
        self._server = Server(who)
        self._jobs = Jobs(self._changed, self._beat_soon)
        self._draining = Draining(self._drained)
        self._renewal = Renewal(home, self._server, self._beat_soon)
        self._signals = 0
        self._forced = asyncio.Event()
        self._isolation: isolation.Isolation
        self._is_isolated = False  #: whether it is known how runs are kept apart
        self._heartbeats: Heartbeats
        self._observer = Observer(home, config, self._facts)

    async def run(self) -> None:
        """Works until SIGTERM: the first drains, the second interrupts, the third kills."""
        try:
            lock = spool.lock(self._home)
        except BlockingIOError:
            raise SystemExit(f"another listener already runs with {self._home}") from None
        with lock:
            async with self._observer():
                await self._run()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal)
        loop.add_signal_handler(signal.SIGUSR1, self._draining.begin)
        if self._parent is not None:
            self._parent.watch(self._orphaned)
        await self._isolate()
        self._is_isolated = True
        self._say()
        context = await self._context()
        heartbeats = self._heartbeats = Heartbeats(context)
        deliveries = Deliveries(context, heartbeats)
        await self._resume(deliveries)
        tasks = [asyncio.create_task(heartbeats.run()), asyncio.create_task(self._renewal.run())]
        try:
            await self._draining.run_until(heartbeats.announce())
            await self._draining.run_until(deliveries.deliver_left())
            tasks.append(asyncio.create_task(deliveries.run()))
            await Claims(context, heartbeats).run()
            await self._jobs.all_done(self._forced)
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await heartbeats.close()
            await self._server.close()

    async def _context(self) -> Context:
        digests = Digests()
        known = await announced(digests, self._config.engines, self._programs, self._isolation.can_start)
        return Context(
            home=self._home,
            config=self._config,
            server=self._server,
            isolation=self._isolation,
            engines=Engines(self._home / "engines", self._server, known, digests),
            local_engines=[engine for engine, _ in known.values()],
            jobs=self._jobs,
            draining=self._draining,
            renewal=self._renewal,
        )

    async def _resume(self, deliveries: Deliveries) -> None:
        """Goes on with all that an earlier life of this listener left, and takes away what nobody needs."""
        left = await asyncio.to_thread(journal.records, self._home)
        for record in left:
            if record.facts.left:
                log.warning("%s keeps its folder: %s", record.folder.name, record.facts.left)
                continue
            log.info("%s %s was left at %s", record.facts.work.phase, record.folder.name, record.facts.step)
            deliveries.resume(record)
        await asyncio.to_thread(self._tidy, left)

    def _tidy(self, left: list[journal.Record]) -> None:
        """Folders of runs that the journal does not know hold nothing that is needed. To be called in a thread."""
        self._isolation.clear()
        known = {record.folder.name for record in left}
        for folder in (self._home / "work").glob("*"):
            if folder.name not in known:
                files.remove_folder(folder)

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

    def _say(self) -> None:
        """What `status` is to say."""
        limited = "by systemd" if self._config.run_limits else "none"
        health = self._observer.address or "none"
        draining, isolated = self._draining.is_on, self._isolation.name
        spool.tell(self._home, draining=draining, isolation=isolated, limits=limited, health=health)

    def _changed(self) -> None:
        self._observer.tell()

    def _beat_soon(self) -> None:
        self._heartbeats.send_soon()

    def _drained(self) -> None:
        log.info("this listener drains: it takes no more work, and %d runs go on", len(self._jobs))
        if self._is_isolated:  # before, there is nothing to say yet
            self._say()
        self._observer.tell()
        if self._jobs:
            self._beat_soon()

    def _orphaned(self) -> None:
        """Ends at once, as if it were killed: applies go on under their supervisors, and the next life finds the journal."""
        log.warning(
            "the process that started this listener has ended: it ends too, and %d runs are left", len(self._jobs)
        )
        for job in self._jobs:
            if job.work.phase == "plan":
                job.lose()
        os._exit(1)

    def _signal(self) -> None:
        self._signals += 1
        if self._signals > 2:  # noqa: PLR2004
            self._forced.set()
        self._draining.begin()
        for job in self._jobs:
            if self._signals > 1:
                job.cancel("cancel" if self._signals == 2 else "force-cancel")  # noqa: PLR2004

    def _facts(self) -> Facts:
        return Facts(
            phases=[job.work.phase for job in self._jobs],
            live=self._jobs.unsettled(),
            is_draining=self._draining.is_on,
            server=self._server,
        )
