"""Takes work: long polls while a slot is free, and gives back what cannot be begun."""

import asyncio
import contextlib
import logging
import time

from terrapod_listener.daemon.context import Context
from terrapod_listener.daemon.heartbeats import Heartbeats
from terrapod_listener.link.client import pause_s
from terrapod_listener.phase.job import Job
from terrapod_listener.sandbox.isolation import Unavailable
from terrapod_shared import errors, wire

log = logging.getLogger("terrapod.listener")
#: How long an answer that may carry work is waited for while the listener drains.
_CROSSING_S = 0.4
_REFUSALS_MOST = 4


class Claims:
    """Of one daemon."""

    def __init__(self, context: Context, heartbeats: Heartbeats) -> None:
        self._context, self._heartbeats = context, heartbeats
        self._failed = self._refused = 0  # in a row

    async def run(self) -> None:
        """Takes work until the listener drains."""
        jobs, draining = self._context.jobs, self._context.draining
        while not draining.is_on:
            if len(jobs) >= self._context.config.capacity:
                jobs.changed.clear()
                await draining.run_until(jobs.changed.wait())
                continue
            asked = time.monotonic()
            try:
                work = await self._poll()
                self._failed = 0
            except errors.TerrapodError as error:
                log.warning("no work: %s", error.detail)
                self._context.renewal.look_again(error)
                await self._pause()
                continue
            if work is None and self._context.server.is_told_to_drain:
                draining.begin()
            elif work is not None and draining.is_on:
                await self._give_back(work, "the listener takes no more work")
            elif work is not None:
                await self._begin(work, asked)

    async def _pause(self) -> None:
        await self._context.draining.run_until(asyncio.sleep(pause_s(self._failed)))
        self._failed += 1

    async def _poll(self) -> wire.Work | None:
        """Work, or None. An answer that crosses a drain is not thrown away: it may carry an offer."""
        poll = asyncio.ensure_future(self._context.server.next_work(self._context.config.poll_s))
        stop = asyncio.ensure_future(self._context.draining.wait())
        await asyncio.wait({poll, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not poll.done():
            self._heartbeats.send_soon()
            await asyncio.wait({poll}, timeout=_CROSSING_S)
        if not poll.done():
            poll.cancel()
            with contextlib.suppress(asyncio.CancelledError, errors.TerrapodError):
                return await poll
            return None
        return await poll

    async def _begin(self, work: wire.Work, asked_s: float) -> None:
        """Starts the work, and waits until it is accepted or given back."""
        context = self._context
        try:
            cell = await asyncio.to_thread(context.isolation.cell, context.home / "work" / work.run_id)
        except (Unavailable, OSError) as error:
            await self._give_back(work, f"the listener's host: {error}")
            self._failed += 1
            await context.draining.run_until(asyncio.sleep(pause_s(self._failed)))
            return
        job = Job(context.home, context.server, context.engines, context.config, work, cell)
        context.jobs.start(job, asked_s)
        await context.draining.run_until(_within(job.offer.decided, work.lease.offer_seconds))
        self._refused = self._refused + 1 if job.offer.is_refused else 0
        if job.offer.is_unwilling:  # the server is to know, or it would come with it again
            self._heartbeats.send_soon()
        if self._refused:  # another listener may be able to take what this one cannot: it is to come first
            await context.draining.run_until(asyncio.sleep(pause_s(min(self._refused, _REFUSALS_MOST) - 1)))

    async def _give_back(self, work: wire.Work, why: str) -> None:
        log.warning("%s %s is given back: %s", work.phase, work.run_id, why)
        refusal = wire.Report(phase=work.phase, status="refused", reason=why)
        with contextlib.suppress(errors.TerrapodError, TimeoutError):
            async with asyncio.timeout(_CROSSING_S):
                await self._context.server.report(work.run_id, refusal, work.lease.number)


async def _within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
