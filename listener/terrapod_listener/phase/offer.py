"""The offer of a phase: it is accepted, or given back with the reason."""

import asyncio
import contextlib
import logging
import zipfile
from pathlib import Path
from typing import Literal

from terrapod_listener.phase import accept
from terrapod_listener.phase.context import Context
from terrapod_listener.phase.outcomes import Failed, Refused
from terrapod_listener.supervise import journal
from terrapod_shared import errors, wire

log = logging.getLogger(__name__)
#: Of an offer's time, how much its engine may take; one that takes longer is waited for under the lease.
_ENGINE_PART = 0.6
#: What may stand in the way of an engine.
_NO_ENGINE = (errors.TerrapodError, OSError, zipfile.BadZipFile)


class Offer:
    """Of one phase. `is_accepted` from the start: an earlier life of this listener accepted it."""

    def __init__(self, context: Context, *, is_accepted: bool) -> None:
        self._context = context
        self.decided = asyncio.Event()  #: it was accepted, or given back
        self.is_accepted, self.is_refused, self.is_unwilling = is_accepted, False, False
        self._engine: asyncio.Task[Path] | None = None

    async def accept(self) -> bool:
        """Takes the work, or gives it back where this host does not want it, has had it, or cannot get its engine.

        Returns whether it was taken. The engine is on its way then: `engine` waits for it, `close` gives it up.
        """
        context = self._context
        why = accept.refusal(context.config.accept, context.work)
        self.is_unwilling = bool(why)
        if why := why or await asyncio.to_thread(self._taken_before):
            with contextlib.suppress(errors.TerrapodError):
                await self.refuse(why)
            return False
        self._engine = asyncio.create_task(context.engines.path(context.work))
        self.is_accepted = await self._accept(self._engine)
        return self.is_accepted

    async def close(self) -> None:
        """Ends the search for the engine."""
        self.decided.set()
        if self._engine is not None:
            self._engine.cancel()
            with contextlib.suppress(asyncio.CancelledError, *_NO_ENGINE):
                await self._engine

    def _taken_before(self) -> str:
        """Why the work is none for this host, which has had it. To be called in a thread."""
        work = self._context.work
        try:
            is_known = journal.has_taken(self._context.home, work)
        except OSError as error:
            return f"the listener's host: {error}"
        if is_known:
            return f"this host has begun this {work.phase} before: did the server come back from a backup?"
        return ""

    async def _accept(self, engine: asyncio.Task[Path]) -> bool:
        context, work = self._context, self._context.work
        await asyncio.wait({engine}, timeout=work.lease.offer_seconds * _ENGINE_PART)
        error = engine.exception() if engine.done() else None
        status: Literal["planning", "applying"] = "planning" if work.phase == "plan" else "applying"
        try:
            if isinstance(error, _NO_ENGINE):
                await self.refuse(self._no_engine(error))
            else:
                await asyncio.to_thread(context.record.write, "offered")  # an apply that is ours has no other listener
                await asyncio.to_thread(journal.remember, context.home, work)
                await context.server.report(
                    work.run_id, wire.Report(phase=work.phase, status=status), work.lease.number
                )
        except errors.TerrapodError as refusal:
            log.warning("%s %s was not accepted: %s", work.phase, work.run_id, refusal.detail)
            await asyncio.to_thread(self.forget)
            return False
        except OSError as full:
            with contextlib.suppress(errors.TerrapodError):
                await self.refuse(f"the listener's host: {full}")
            return False
        return not self.is_refused

    def forget(self) -> None:
        """The work is not ours, and may come again. To be called in a thread."""
        with contextlib.suppress(OSError):
            journal.remember(self._context.home, self._context.work, is_ours=False)
        self._context.record.remove()

    async def refuse(self, why: str) -> None:
        """Gives the work back. Raises what the server answers."""
        work = self._context.work
        self.is_refused = True
        log.warning("%s %s is given back: %s", work.phase, work.run_id, why)
        refusal = wire.Report(phase=work.phase, status="refused", reason=why, is_unwilling=self.is_unwilling)
        await self._context.server.report(work.run_id, refusal, work.lease.number)

    async def engine(self) -> Path:
        """The program, which may still be on its way. Raises Refused where the plan can be given back, else Failed."""
        if self._engine is None:
            raise Failed("no engine was asked for")
        try:
            return await self._engine
        except errors.LeaseEnded:
            raise
        except _NO_ENGINE as error:
            why = self._no_engine(error)
            raise (Refused(why) if self._context.work.phase == "plan" else Failed(why)) from None

    def _no_engine(self, error: BaseException) -> str:
        engine = self._context.work.engine
        return f"{engine.tool} {engine.version} cannot be had: {getattr(error, 'detail', error)}"
