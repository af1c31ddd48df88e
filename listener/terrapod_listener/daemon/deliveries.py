"""What an earlier life of this listener, or the server's absence, left behind: runs go on, states are delivered."""

import asyncio
import contextlib
import logging
import random
import time

import msgspec

from terrapod_listener.daemon import recover
from terrapod_listener.daemon.context import Context
from terrapod_listener.daemon.heartbeats import Heartbeats
from terrapod_listener.phase.delivery import send
from terrapod_listener.phase.job import Job
from terrapod_listener.supervise import journal
from terrapod_shared import errors, wire

log = logging.getLogger("terrapod.listener")
#: How often what the server refused is offered to it again.
_AGAIN_S = 60.0


class Deliveries:
    """Of one daemon."""

    def __init__(self, context: Context, heartbeats: Heartbeats) -> None:
        self._context, self._heartbeats = context, heartbeats

    def resume(self, record: journal.Record) -> None:
        """Goes on with a run that the journal knows."""
        context, work = self._context, record.facts.work
        cell = context.isolation.cell(context.home / "work" / work.run_id, slot=record.facts.slot)
        job = Job(context.home, context.server, context.engines, context.config, work, cell, record)
        context.jobs.start(job, time.monotonic())

    async def deliver_left(self) -> None:
        """What an earlier life of this listener could not deliver, once, before any new work.

        Applies that go on under their supervisors are not waited for.
        """
        ended = [job for job in self._context.jobs if not job.is_under_supervisor]
        await asyncio.gather(*(job.settled.wait() for job in ended))
        await self._deliver_spool()
        await self._drop_settled(await asyncio.to_thread(journal.records, self._context.home))

    async def run(self) -> None:
        """The same again and again, for as long as something is left: a server is repaired, a listener joins again."""
        rejoined, jobs = self._context.renewal.rejoined, self._context.jobs
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(rejoined.wait(), _AGAIN_S * random.uniform(0.5, 1.0))  # noqa: S311
            is_rejoined = rejoined.is_set()
            rejoined.clear()
            live = jobs.run_ids()
            left = await asyncio.to_thread(journal.records, self._context.home)
            live |= jobs.run_ids()  # begun or ended while the journal was read
            for record in left:
                if record.folder.name not in live and not record.facts.left:
                    self.resume(record)
            await self._deliver_spool(is_rejoined=is_rejoined)
            await self._drop_settled(left)

    async def _drop_settled(self, records: list[journal.Record]) -> None:
        """Drops what stays here for people's sake, once the server says that a person has settled it."""
        over = {record.folder.name: record for record in records if record.facts.left}
        if not over:
            return
        beat = msgspec.structs.replace(await self._heartbeats.beat(), left=sorted(over)[: wire.LEFT_MOST])
        asked = time.monotonic()
        try:
            pulse = await self._context.server.beat(beat)
        except errors.TerrapodError as error:
            log.warning("the server does not say what became of %s: %s", ", ".join(over), error.detail)
            return
        self._heartbeats.obey(pulse, asked)
        for run_id in pulse.settled:
            if record := over.get(run_id):
                log.info("%s is settled: its folder goes", run_id)
                await asyncio.to_thread(recover.forget, self._context.home, record)

    async def _deliver_spool(self, *, is_rejoined: bool = False) -> None:
        """But for what was refused for good, which another server may take, and a person may send."""
        for facts in await asyncio.to_thread(self._heartbeats.spooled):
            if facts["is_final"] and not is_rejoined:
                continue
            if await send(self._context.server, self._context.home, facts):
                self._heartbeats.send_soon()
