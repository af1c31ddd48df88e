"""Heartbeats: the server is told what this listener has in hand, and its answer is obeyed."""

import asyncio
import contextlib
import logging
import time
from typing import Any

from terrapod_listener import __version__
from terrapod_listener.daemon.context import Context
from terrapod_listener.link.client import pause_s
from terrapod_listener.supervise import spool
from terrapod_shared import errors, programs, wire

log = logging.getLogger("terrapod.listener")
_AFTER_ERROR_S = 1.0


class Heartbeats:
    """Of one daemon."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._extra: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keeps the leases until it is cancelled; by long poll, so that a cancel arrives at once.

        Without runs in hand the poll for work is the heartbeat.
        """
        jobs, server = self._context.jobs, self._context.server
        while True:
            if not jobs:
                jobs.changed.clear()
                await jobs.changed.wait()
                continue
            asked = time.monotonic()
            try:
                pulse = await server.beat(await self.beat(), wire.BEAT_S)
            except errors.TerrapodError as error:
                log.warning("no heartbeat: %s", error.detail)
                self._context.renewal.look_again(error)
                await asyncio.sleep(_AFTER_ERROR_S)
            else:
                self.obey(pulse, asked)
            jobs.lose_ended()

    async def announce(self) -> None:
        """One heartbeat, repeated until the server has taken it."""
        attempt = 0
        while True:
            asked = time.monotonic()
            try:
                self.obey(await self._context.server.beat(await self.beat()), asked)
            except errors.TerrapodError as error:
                log.warning("the server does not take this listener yet: %s", error.detail)
                self._context.renewal.look_again(error)
                await asyncio.sleep(pause_s(attempt))
                attempt += 1
            else:
                return

    def send_soon(self) -> None:
        """A heartbeat out of turn: an idle listener sends none, and the server is to know of its engines and spool."""
        if self._extra is not None:
            self._extra.cancel()
        self._extra = asyncio.create_task(self.announce())

    async def close(self) -> None:
        """Gives up a heartbeat that is on its way out of turn."""
        if self._extra is not None:
            self._extra.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._extra

    async def beat(self) -> wire.Beat:
        """What this listener is and has, at this moment."""
        context = self._context
        system, arch = programs.here()
        return wire.Beat(
            leases=[job.held for job in context.jobs if job.offer.is_accepted],
            free_slots=context.config.capacity - len(context.jobs),
            capacity=context.config.capacity,
            local_engines=list(context.local_engines),
            version=__version__,
            os=system,
            isolation=context.isolation.name,
            arch=arch,
            draining=context.draining.is_on,
            spooled=await asyncio.to_thread(self.spooled),
            accepts=context.config.accept,
        )

    def spooled(self) -> list[dict[str, Any]]:
        """What waits in the spool; an apply that goes on keeps its copy there too. To be called in a thread."""
        unsettled = self._context.jobs.unsettled()
        return [facts for facts in spool.spooled(self._context.home) if facts["run_id"] not in unsettled]

    def obey(self, pulse: wire.Pulse, asked_s: float) -> None:
        """Does what the server says in its answer to a heartbeat that left at `asked_s`."""
        jobs = {job.work.run_id: job for job in self._context.jobs}
        for verdict in pulse.leases:
            job = jobs.get(verdict.run_id)
            if job is None or job.work.lease.number != verdict.number:
                continue
            if verdict.verdict in ("ok", "resumed"):
                self._context.jobs.prolong(job, asked_s, verdict.seconds)
            elif verdict.verdict == "lost":
                job.lose()
        for run_id, how in pulse.cancels.items():
            if run_id in jobs:
                jobs[run_id].cancel(how)
        if pulse.drain:
            self._context.draining.begin()
        if pulse.renew:
            self._context.renewal.asked.set()
