"""The step that cannot be undone: terraform's apply under a keeper, begun here or found again after a restart."""

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from terrapod_listener.link.client import Server
from terrapod_listener.phase.logs import LogSpool
from terrapod_listener.phase.outcomes import CutOff, NotBegun
from terrapod_listener.supervise import handle, spool, statefile
from terrapod_listener.supervise.handle import Keeper
from terrapod_listener.supervise.journal import Record
from terrapod_listener.supervise.supervisor import RESERVE
from terrapod_shared import errors

log = logging.getLogger(__name__)
_LOOK_S = 0.08
#: A state that changes is sent to the server at most so often while the apply goes on.
_INTERMEDIATE_S = 20.0


class Apply:
    """One apply. `interrupt` and `kill` may be called at any time."""

    def __init__(self, home: Path, server: Server, record: Record, log_spool: LogSpool) -> None:
        self._server, self._record, self._log = server, record, log_spool
        work = record.facts.work
        self._spooled = spool.place(home, work.run_id, work.lease.number)
        self._keeper: Keeper | None = None
        self._early = ""
        self._sent = ""  #: md5 of the state that was sent last
        self._next = 0.0

    def interrupt(self) -> None:
        """Once: the keeper sees to that."""
        if self._keeper:
            self._keeper.interrupt()
        self._early = self._early or "interrupt"

    def kill(self) -> None:
        if self._keeper:
            self._keeper.kill()
        self._early = "kill"

    async def start(self, job: dict[str, Any], secrets: list[str], lock: int | None = None) -> dict[str, Any]:
        """Runs terraform; what came of it. The journal says before it that it may have begun. `lock`: for the keeper.

        Raises NotBegun, and CutOff where nobody is left who could tell.
        """
        folder, work = self._record.folder, self._record.facts.work
        facts = self._record.facts
        more = {
            "log": str(folder / "log"),
            "log_most": max(0, work.limits.log_bytes - work.log_offset),
            "exit": str(folder / "exit.json"),
            "child": str(folder / "child.json"),
            "states": facts.states,
            "before": msgspec.to_builtins(facts.before),
            "spooled": str(self._spooled),
            "timeout_s": work.limits.apply_s,
            "is_isolated": facts.is_isolated,
            "is_boxed": facts.is_boxed,
            "secrets": secrets,
        }
        try:
            self._keeper = await asyncio.to_thread(Keeper.start, self._record, lock)
        except OSError as error:
            raise NotBegun(f"the listener's host: {error}") from None
        if self._early == "kill":
            self._keeper.kill()
        elif self._early:
            self._keeper.interrupt()
        await asyncio.to_thread(self._keeper.go, {**job, **more})
        return await self._ended()

    async def again(self) -> dict[str, Any]:
        """The same for an apply that an earlier life of this listener began."""
        self._keeper = Keeper.find(self._record.facts)
        if self._keeper:
            log.info("apply %s goes on under its keeper", self._record.folder.name)
            if self._early:
                self._keeper.kill() if self._early == "kill" else self._keeper.interrupt()
        return await self._ended()

    async def _ended(self) -> dict[str, Any]:
        if self._keeper:
            following = asyncio.create_task(self._follow())
            try:
                await self._keeper.wait()
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following
        found = handle.outcome(self._record.folder)
        if found is None:
            await handle.orphans_gone(self._record.folder, self._record.facts)
            # the room that its keeper held is for the state, which is spooled next
            await asyncio.to_thread((self._record.folder / RESERVE).unlink, missing_ok=True)
        self._log.look()
        if found is None:
            raise CutOff("the apply was cut off, with all that watched over it: what it had saved of its state is here")
        if found["code"] is None:
            raise NotBegun(f"the apply could not be started: {found.get('error')}")
        return found

    async def _follow(self) -> None:
        """The log as it grows, and the state now and then; neither can fail the run."""
        sending: asyncio.Task[None] | None = None
        try:
            while True:
                self._log.look()
                if time.monotonic() > self._next and (sending is None or sending.done()) and self._spooled.exists():
                    sending = asyncio.create_task(self._send_intermediate())
                await asyncio.sleep(_LOOK_S)
        finally:
            if sending:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending

    async def _send_intermediate(self) -> None:
        copy = self._record.folder / "intermediate"
        work = self._record.facts.work
        try:
            copy.unlink(missing_ok=True)
            os.link(self._spooled, copy)  # the keeper puts newer ones in its place
            with copy.open("rb") as file:
                mark = await asyncio.to_thread(statefile.mark, file)
            if mark["md5"] == self._sent:
                return
            path = self._server.state_path(work.run_id, mark, intermediate=True)
            self._next = time.monotonic() + _INTERMEDIATE_S
            await self._server.call("PUT", path, file=copy, lease=work.lease.number, timeout_s=60.0)
            self._sent = mark["md5"]
        except (errors.TerrapodError, OSError, statefile.Torn) as error:
            log.info("the state of %s is not sent yet: %s", work.run_id, getattr(error, "detail", error))
        finally:
            copy.unlink(missing_ok=True)
