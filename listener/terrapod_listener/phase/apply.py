"""The apply phase, the step that cannot be undone: begun here, or found again under its supervisor after a restart."""

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from terrapod_listener.engine import argv, workdir
from terrapod_listener.link.client import Server
from terrapod_listener.phase.commands import Cancel, Commands
from terrapod_listener.phase.context import Context
from terrapod_listener.phase.delivery import Delivery
from terrapod_listener.phase.logs import LogSpool
from terrapod_listener.phase.outcomes import Canceled, CutOff, Failed, NotBegun
from terrapod_listener.phase.preparation import Prepared
from terrapod_listener.supervise import handle, spool, statefile
from terrapod_listener.supervise.handle import Keeper
from terrapod_listener.supervise.journal import Record
from terrapod_listener.supervise.supervisor import RESERVE
from terrapod_shared import errors, wire

log = logging.getLogger(__name__)
_LOOK_S = 0.08
#: A state that changes is sent to the server at most so often while the apply goes on.
_INTERMEDIATE_S = 20.0


class Apply:
    """One apply, from its start to the delivery of its state. `cancel` may be called at any time.

    `unknown` says why it may have made what no state tells.
    """

    def __init__(self, context: Context, commands: Commands, delivery: Delivery, log: LogSpool) -> None:
        self._context, self._commands, self._delivery, self._log = context, commands, delivery, log
        self._program: SupervisedProgram | None = None
        self.unknown = ""

    def cancel(self, how: Cancel) -> None:
        """Interrupts terraform; `force-cancel` kills it. An interrupted one ends by itself: a kill would lose its state."""
        if self._program is not None:
            (self._program.kill if how == "force-cancel" else self._program.interrupt)()

    async def run(self, ready: Prepared) -> wire.Report:
        """The report of an apply that ended well. Raises Failed, Canceled, HookFailed, Undelivered, and OSError."""
        context, commands, work = self._context, self._commands, self._context.work
        before = await asyncio.to_thread(workdir.state_mark, context.folder, ready.state)
        states = [str(ready.module / "errored.tfstate"), str(ready.state)]
        await asyncio.to_thread(context.record.write, "accepted", states=states, before=before)
        words = argv.apply_argv(work.options, str(context.folder / "plan"), ready.var_file)
        start = commands.start(words, outlives=True)
        job = {**asdict(start), "cwd": str(start.cwd), "root": str(context.folder), "secrets": ready.secrets}
        commands.check_canceled()
        async with commands.hooks.around("apply", ready.module, self._log.write) as step:
            await asyncio.to_thread(context.engines.recheck, work)
            commands.step = "apply"
            self._delivery.is_folder_needed = True  # until its state is known to be elsewhere, or unchanged
            self._log.settle()  # the supervisor appends from here on
            found = await self._end(job)
            step.code = found["code"]
        return self._report(found)

    async def resume(self) -> wire.Report:
        """The same for an apply that an earlier life of this listener began."""
        return self._report(await self._end())

    async def _end(self, job: dict[str, Any] | None = None) -> dict[str, Any]:
        """Waits for terraform, which is begun with `job`, or was begun before; then for its state's delivery."""
        context, canceled = self._context, self._commands.canceled
        self._program = program = SupervisedProgram(context.home, context.server, context.record, self._log)
        self.unknown = "the listener failed while the apply went on"
        code: int | None = None
        try:
            if canceled:
                self.cancel(canceled)
            found = await (program.start(job, context.cell.lock) if job else program.again())
            code = found["code"]
            self.unknown = argv.cut_short(context.work.engine.tool, found["code"])
        except NotBegun:
            self.unknown = ""
            raise
        except CutOff as error:
            self.unknown = str(error)
            raise
        finally:
            self._commands.step = "state"
            await self._delivery.left_state(context.record, self._log, context.folder, code)
        return found

    def _report(self, found: dict[str, Any]) -> wire.Report:
        if found["code"] and self._commands.canceled:
            raise Canceled
        if found["code"]:
            raise Failed(f"{self._context.work.engine.tool} apply failed with exit code {found['code']}")
        return wire.Report(phase="apply", status="applied", exit_code=found["code"], state=self._delivery.state)


class SupervisedProgram:
    """terraform under its supervisor. `interrupt` and `kill` may be called at any time."""

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

    async def start(self, job: dict[str, Any], lock: int | None = None) -> dict[str, Any]:
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
