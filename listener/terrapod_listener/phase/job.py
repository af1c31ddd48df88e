"""One phase of a run from its offer to its end: accept, prepare, plan or apply, deliver, clean up."""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Literal

from terrapod_listener.config import Config
from terrapod_listener.engine import schemas, workdir
from terrapod_listener.engine.install import Engines
from terrapod_listener.link.client import STRANGER, Server
from terrapod_listener.phase.apply import Apply
from terrapod_listener.phase.commands import Cancel, Commands
from terrapod_listener.phase.context import Context
from terrapod_listener.phase.delivery import Delivery
from terrapod_listener.phase.hooks import HookFailed
from terrapod_listener.phase.logs import LogSpool
from terrapod_listener.phase.offer import Offer
from terrapod_listener.phase.outcomes import Canceled, Failed, Refused, Undelivered
from terrapod_listener.phase.plan import Plan
from terrapod_listener.phase.preparation import Preparation
from terrapod_listener.sandbox.isolation import Cell
from terrapod_listener.supervise import files, handle
from terrapod_listener.supervise.journal import Record
from terrapod_shared import errors, wire

log = logging.getLogger(__name__)


class Job:
    """The work on one phase. `home` is the listener's, `cell` is where its programs are started.

    `left`: an earlier life of this listener began it.
    """

    def __init__(
        self,
        home: Path,
        server: Server,
        engines: Engines,
        config: Config,
        work: wire.Work,
        cell: Cell,
        left: Record | None = None,
    ) -> None:
        self.work, self.cell = work, cell
        self._left, self._record = left, left or Record.of(home, work)
        self._context = Context(home, server, engines, config, work, cell, self._record)
        self.offer = Offer(self._context, is_accepted=left is not None)
        self._commands = Commands(self._context)
        self._delivery = Delivery(server, work, home)
        self._apply: Apply | None = None
        self._log: LogSpool
        self.settled = asyncio.Event()  #: what its apply left is where it can be, or the server has been asked in vain

    @property
    def held(self) -> wire.HeldLease:
        return wire.HeldLease(
            run_id=self.work.run_id,
            phase=self.work.phase,
            number=self.work.lease.number,
            step=self._commands.step,
            cancel=self._commands.canceled,
            is_lost=self._commands.is_lost,
        )

    @property
    def is_spooled(self) -> bool:
        """Whether the state that it left is on this host alone."""
        return self._delivery.state == "spooled"

    @property
    def is_under_supervisor(self) -> bool:
        """Whether terraform goes on under a supervisor that an earlier life of this listener began."""
        return self._left is not None and handle.is_alive(self._left.facts)

    def cancel(self, how: Cancel) -> None:
        """Interrupts once; `force-cancel` kills."""
        if how == self._commands.canceled:
            return
        self._commands.cancel(how)
        if self._apply is not None:
            self._apply.cancel(how)

    def lose(self) -> None:
        """The lease is gone. A plan is stopped; an apply goes on, since its state is still to be delivered."""
        self._commands.lose()

    async def run(self) -> None:
        """Does all of it. Raises nothing but what ends the listener."""
        try:
            if self._left is not None:
                await self._resume()
            elif await self.offer.accept():
                self.offer.decided.set()
                await self._begin()
        finally:
            self.settled.set()
            await self.offer.close()

    async def _begin(self) -> None:
        work = self.work
        try:
            await asyncio.to_thread(self._fresh_folder)
        except OSError as error:
            text = f"the listener's host: {error}"
            failed = wire.Report(phase=work.phase, status="errored", error_message=text, log_bytes=work.log_offset)
            with contextlib.suppress(errors.TerrapodError):
                await self._context.server.report(work.run_id, failed, work.lease.number)
            return
        self._log = LogSpool(self._record.folder / "log", self._context.server, work)
        await self._to_the_end()

    async def _resume(self) -> None:
        """Goes on with what an earlier life of this listener began."""
        step, work = self._record.facts.step, self.work
        if work.phase == "plan" or step in ("offered", "accepted"):
            await self._disown(step)
            return
        self._commands.step = "apply"
        self._delivery.is_folder_needed = True
        self._log = LogSpool(self._record.folder / "log", self._context.server, work, resume=True)
        await self._to_the_end()

    async def _disown(self, step: str) -> None:
        """Nothing was changed: a plan is given back, and so is an apply that was not accepted yet."""
        why = f"the listener was restarted before the {self.work.phase} had begun to change anything"
        failed = wire.Report(phase=self.work.phase, status="errored", error_message=why, state="unchanged")
        server = self._context.server
        try:
            if self.work.phase == "plan" or step == "offered":
                try:
                    await self.offer.refuse(why)
                except (errors.LeaseEnded, errors.NotFound):
                    raise
                except errors.Conflict:  # it had been accepted
                    await server.report(self.work.run_id, failed, self.work.lease.number)
            else:
                await server.report(self.work.run_id, failed, self.work.lease.number)
        except STRANGER as error:
            log.warning("%s %s waits: %s", self.work.phase, self.work.run_id, error.detail)
            return
        except errors.TerrapodError as error:
            log.warning("%s %s is no longer ours: %s", self.work.phase, self.work.run_id, error.detail)
        if self._record.facts.slot is not None:
            await asyncio.to_thread(self.cell.clear)
        await asyncio.to_thread(files.remove_folder, self._context.folder)
        await asyncio.to_thread(self.offer.forget if step == "offered" else self._record.remove)

    async def _to_the_end(self) -> None:
        work, is_over = self.work, True
        try:
            report = await self._report()
            self._commands.step = "report"
            self.settled.set()
            await self._delivery.end(report, self._log)
        except Refused as refusal:
            with contextlib.suppress(errors.TerrapodError):
                await self._log.finish()
            with contextlib.suppress(errors.TerrapodError):
                await self.offer.refuse(str(refusal))
        except STRANGER as error:
            log.error("%s %s waits for its listener to join again: %s", work.phase, work.run_id, error.detail)  # noqa: TRY400
            await self._log.abandon()
            is_over = work.phase == "plan"
        except (errors.LeaseEnded, errors.NotFound) as error:
            log.warning("%s %s is no longer ours: %s", work.phase, work.run_id, error.detail)
            await self._log.abandon()
        except errors.TerrapodError as error:
            log.error("%s %s could not be ended: %s", work.phase, work.run_id, error.detail)  # noqa: TRY400
            await self._log.abandon()
        except asyncio.CancelledError:
            is_over = work.phase == "plan"
            raise
        finally:
            self._log.close()
            await asyncio.shield(asyncio.to_thread(self._clean, is_over))

    async def _report(self) -> wire.Report:
        """What the phase came to. Raises what says that it is not ours to end."""
        phase = self.work.phase
        try:
            return await self._plan_or_apply()
        except Canceled:
            return self._ending("canceled")
        except Undelivered as error:
            return self._ending("errored", str(error))
        except (Failed, HookFailed, workdir.Hostile, schemas.NotWhole) as error:
            text = str(error)
        except (errors.LeaseEnded, errors.NotFound, Refused):
            raise
        except errors.TerrapodError as error:
            text = error.detail
        except OSError as error:
            text = f"the listener's host: {error}"
        except Exception as error:
            log.exception("%s %s", phase, self.work.run_id)
            text = f"the listener failed: {type(error).__name__}: {error}"
        if self._commands.canceled:
            return self._ending("canceled")
        return self._ending("errored", text)

    async def _plan_or_apply(self) -> wire.Report:
        """Prepares, and plans or applies; or waits for the apply that was left."""
        parts = self._context, self._commands, self._delivery, self._log
        if self._left is not None:
            self._apply = Apply(*parts)
            return await self._apply.resume()
        ready = await Preparation(self._context, self._commands, self._log).prepare(self.offer.engine)
        if self.work.phase == "plan":
            return await Plan(*parts).run(ready)
        self._apply = Apply(*parts)
        return await self._apply.run(ready)

    def _ending(self, status: Literal["canceled", "errored"], text: str = "") -> wire.Report:
        """The report of a phase that did not end well; what it says is in the log too."""
        unknown = self._delivery.unknown or (self._apply.unknown if self._apply is not None else "")
        if text:
            self._log.line(f"\nError: {text}")
        if unknown:
            named = self.work.workspace_name
            self._log.line(
                f"\nThe state is unknown: {unknown}. No other run of workspace {named} applies until an admin has looked at "
                f"the state (terrapod workspaces show {named})."
            )
        return wire.Report(
            phase=self.work.phase,
            status=status,
            error_message=text,
            state=self._delivery.state,
            unknown=unknown,
        )

    def _fresh_folder(self) -> None:
        folder, cell = self._context.folder, self.cell
        files.remove_folder(folder)
        for name in ("home", "tmp", "states"):
            (folder / name).mkdir(parents=True, mode=0o700)
        facts = {"slot": cell.slot, "is_isolated": cell.isolation.kind != "none", "is_boxed": cell.is_boxed}
        self._record.write("accepted", **facts)

    def _clean(self, is_over: bool) -> None:
        """The folder goes once the state is elsewhere, the journal once there is nothing left to do."""
        folder, record = self._context.folder, self._record
        if not handle.is_alive(record.facts):
            self.cell.clear()
        is_needed = self._delivery.is_folder_needed or not is_over
        if not is_needed and not self._context.config.keep_work:
            files.remove_folder(folder)
        if not is_needed:
            record.remove()
        elif is_over and self._delivery.left:
            workdir.take_back(folder)
            record.write(record.facts.step, left=self._delivery.left)
