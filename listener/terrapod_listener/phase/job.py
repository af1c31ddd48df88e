"""One phase of a run from its acceptance to its end: fetch, unpack, init, plan or apply, deliver."""

import asyncio
import contextlib
import logging
import platform
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from terrapod_listener import __version__
from terrapod_listener.config import Config
from terrapod_listener.engine import argv, plugins, schemas, workdir
from terrapod_listener.engine.install import Engines
from terrapod_listener.link.client import STRANGER, Server
from terrapod_listener.phase import accept
from terrapod_listener.phase.apply import Apply
from terrapod_listener.phase.delivery import Delivery
from terrapod_listener.phase.hooks import HookFailed, Hooks
from terrapod_listener.phase.logs import LogSpool
from terrapod_listener.phase.outcomes import Canceled, CutOff, Failed, NotBegun, Refused, Undelivered
from terrapod_listener.phase.preparation import Preparation, Prepared
from terrapod_listener.sandbox import limits
from terrapod_listener.sandbox.isolation import Cell
from terrapod_listener.sandbox.launching import Start
from terrapod_listener.sandbox.process import Process
from terrapod_listener.supervise import files, handle, journal, statefile
from terrapod_listener.supervise.journal import Record
from terrapod_listener.supervise.masking import SHORTEST, Masker, is_short
from terrapod_shared import errors, wire

log = logging.getLogger(__name__)
_PREPARE_S = 1800.0
_SHOW_S = 600.0
#: Of an offer's time, how much its engine may take; one that takes longer is waited for under the lease.
_ENGINE_PART = 0.6
#: What may stand in the way of an engine.
_NO_ENGINE = (errors.TerrapodError, OSError, zipfile.BadZipFile)


class Job:
    """The work on one phase. `home` is the listener's; the run's folder is the same path in plan and apply.

    `cell` is where its programs are started. `left`: an earlier life of this listener began it.
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
        self._left = left
        self._unknown = ""  #: why an apply may have made what no state tells
        self._record = left or Record.of(home, work)
        self.step = "begin"
        self.folder = home / "work" / work.run_id
        self._home = home
        self._apply_: Apply | None = None
        self._server, self._engines, self._config = server, engines, config
        self._process = Process(is_boxed=cell.is_boxed, clear=cell.clear)
        self._readers: list[Process] = []  # `show` and the like: they change nothing and are killed outright
        self._cancel: Literal["", "cancel", "force-cancel"] = ""
        self._is_lost = False
        self.decided = asyncio.Event()  #: the offer was accepted, or given back
        self.settled = asyncio.Event()  #: what its apply left is where it can be, or the server has been asked in vain
        self.is_accepted, self.is_refused, self.is_unwilling = left is not None, False, False
        self._hooks = Hooks(config.hooks, home, work)
        self._engine: asyncio.Task[Path]
        self._schemas = schemas.Schemas(home / "schemas")
        self._delivery = Delivery(server, work, home)
        self._log: LogSpool
        self._binary = Path()
        self._ready: Prepared
        self._secrets: list[str] = []

    @property
    def held(self) -> wire.HeldLease:
        return wire.HeldLease(
            run_id=self.work.run_id,
            phase=self.work.phase,
            number=self.work.lease.number,
            step=self.step,
            cancel=self._cancel,
            is_lost=self._is_lost,
        )

    @property
    def is_spooled(self) -> bool:
        """Whether the state that it left is on this host alone."""
        return self._delivery.state == "spooled"

    @property
    def is_under_keeper(self) -> bool:
        """Whether terraform goes on under a keeper that an earlier life of this listener began."""
        return self._left is not None and handle.is_alive(self._left.facts)

    def cancel(self, how: Literal["cancel", "force-cancel"]) -> None:
        """Interrupts once; `force-cancel` kills."""
        if how == self._cancel:
            return
        self._cancel = how
        self._kill_readers()
        if how == "force-cancel":
            self._process.kill()
            if self._apply_:
                self._apply_.kill()
        else:  # an apply ends by itself, or by a person's `force-cancel`: what it is making would be lost with it
            self._process.interrupt(self.work.limits.cancel_grace_s)
            if self._apply_:
                self._apply_.interrupt()

    def lose(self) -> None:
        """The lease is gone. A plan is stopped; an apply goes on, since its state is still to be delivered."""
        self._is_lost = True
        if self.work.phase == "plan":
            self._process.kill()
            self._kill_readers()

    def _kill_readers(self) -> None:
        self._hooks.stop()
        for each in self._readers:
            each.kill()

    async def run(self) -> None:
        """Does all of it. Raises nothing but what ends the listener."""
        if self._left is not None:
            try:
                await self._resume()
            finally:
                self.decided.set()
                self.settled.set()
            return
        why = accept.refusal(self._config.accept, self.work)
        self.is_unwilling = bool(why)
        if why := why or await asyncio.to_thread(self._taken_before):
            with contextlib.suppress(errors.TerrapodError):
                await self._refuse(why)
            self.decided.set()
            return
        self._engine = asyncio.create_task(self._engines.path(self.work))
        try:
            if await self._accepted():
                self.decided.set()
                await self._do()
        finally:
            self.decided.set()
            self.settled.set()
            self._engine.cancel()
            with contextlib.suppress(asyncio.CancelledError, *_NO_ENGINE):
                await self._engine

    def _taken_before(self) -> str:
        """Why the work is none for this host, which has had it. To be called in a thread."""
        try:
            is_known = journal.has_taken(self._home, self.work)
        except OSError as error:
            return f"the listener's host: {error}"
        if is_known:
            return f"this host has begun this {self.work.phase} before: did the server come back from a backup?"
        return ""

    async def _accepted(self) -> bool:
        """Takes the offer, unless its engine cannot be had here: then it is given back with the reason."""
        work = self.work
        await asyncio.wait({self._engine}, timeout=work.lease.offer_seconds * _ENGINE_PART)
        error = self._engine.exception() if self._engine.done() else None
        status: Literal["planning", "applying"] = "planning" if work.phase == "plan" else "applying"
        try:
            if isinstance(error, _NO_ENGINE):
                await self._refuse(self._no_engine(error))
            else:
                await asyncio.to_thread(self._record.write, "offered")  # an apply that is ours has no other listener
                await asyncio.to_thread(journal.remember, self._home, work)
                await self._server.report(work.run_id, wire.Report(phase=work.phase, status=status), work.lease.number)
        except errors.TerrapodError as refusal:
            log.warning("%s %s was not accepted: %s", work.phase, work.run_id, refusal.detail)
            await asyncio.to_thread(self._not_ours)
            return False
        except OSError as full:
            with contextlib.suppress(errors.TerrapodError):
                await self._refuse(f"the listener's host: {full}")
            return False
        self.is_accepted = not self.is_refused
        return self.is_accepted

    def _not_ours(self) -> None:
        """It may come again. To be called in a thread."""
        with contextlib.suppress(OSError):
            journal.remember(self._home, self.work, is_ours=False)
        self._record.remove()

    def _no_engine(self, error: BaseException) -> str:
        engine = self.work.engine
        return f"{engine.tool} {engine.version} cannot be had: {getattr(error, 'detail', error)}"

    async def _refuse(self, why: str) -> None:
        self.is_refused = True
        log.warning("%s %s is given back: %s", self.work.phase, self.work.run_id, why)
        refusal = wire.Report(phase=self.work.phase, status="refused", reason=why, is_unwilling=self.is_unwilling)
        await self._server.report(self.work.run_id, refusal, self.work.lease.number)

    async def _do(self) -> None:
        work = self.work
        try:
            await asyncio.to_thread(self._fresh_folder)
        except OSError as error:
            text = f"the listener's host: {error}"
            failed = wire.Report(phase=work.phase, status="errored", error_message=text, log_bytes=work.log_offset)
            with contextlib.suppress(errors.TerrapodError):
                await self._server.report(work.run_id, failed, work.lease.number)
            return
        self._log = LogSpool(self._record.folder / "log", self._server, work)
        await self._to_the_end()

    async def _resume(self) -> None:
        """Goes on with what an earlier life of this listener began."""
        step, work = self._record.facts.step, self.work
        if work.phase == "plan" or step in ("offered", "accepted"):
            await self._disown(step)
            return
        self.step = "apply"
        self._delivery.is_folder_needed = True
        self._log = LogSpool(self._record.folder / "log", self._server, work, resume=True)
        await self._to_the_end()

    async def _disown(self, step: str) -> None:
        """Nothing was changed: a plan is given back, and so is an apply that was not accepted yet."""
        why = f"the listener was restarted before the {self.work.phase} had begun to change anything"
        failed = wire.Report(phase=self.work.phase, status="errored", error_message=why, state="unchanged")
        try:
            if self.work.phase == "plan" or step == "offered":
                try:
                    await self._refuse(why)
                except (errors.LeaseEnded, errors.NotFound):
                    raise
                except errors.Conflict:  # it had been accepted
                    await self._server.report(self.work.run_id, failed, self.work.lease.number)
            else:
                await self._server.report(self.work.run_id, failed, self.work.lease.number)
        except STRANGER as error:
            log.warning("%s %s waits: %s", self.work.phase, self.work.run_id, error.detail)
            return
        except errors.TerrapodError as error:
            log.warning("%s %s is no longer ours: %s", self.work.phase, self.work.run_id, error.detail)
        if self._record.facts.slot is not None:
            await asyncio.to_thread(self.cell.clear)
        await asyncio.to_thread(files.remove_folder, self.folder)
        await asyncio.to_thread(self._not_ours if step == "offered" else self._record.remove)

    async def _to_the_end(self) -> None:
        work, is_over = self.work, True
        try:
            report = await self._report()
            self.step = "report"
            self.settled.set()
            await self._delivery.end(report, self._log)
        except Refused as refusal:
            with contextlib.suppress(errors.TerrapodError):
                await self._log.finish()
            with contextlib.suppress(errors.TerrapodError):
                await self._refuse(str(refusal))
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

    def _clean(self, is_over: bool) -> None:
        """The folder goes once the state is elsewhere, the journal once there is nothing left to do."""
        if not handle.is_alive(self._record.facts):
            self.cell.clear()
        is_needed = self._delivery.is_folder_needed or not is_over
        if not is_needed and not self._config.keep_work:
            files.remove_folder(self.folder)
        if not is_needed:
            self._record.remove()
        elif is_over and self._delivery.left:
            workdir.take_back(self.folder)
            self._record.write(self._record.facts.step, left=self._delivery.left)

    def _fresh_folder(self) -> None:
        files.remove_folder(self.folder)
        for name in ("home", "tmp", "states"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        cell = self.cell
        facts = {"slot": cell.slot, "is_isolated": cell.isolation.kind != "none", "is_boxed": cell.is_boxed}
        self._record.write("accepted", **facts)

    async def _report(self) -> wire.Report:
        phase = self.work.phase
        try:
            if self._left is not None:
                return self._outcome(await self._applied())
            return await (self._plan() if phase == "plan" else self._apply())
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
        if self._cancel:
            return self._ending("canceled")
        return self._ending("errored", text)

    def _ending(self, status: Literal["canceled", "errored"], text: str = "") -> wire.Report:
        """The report of a phase that did not end well; what it says is in the log too."""
        unknown = self._delivery.unknown or self._unknown
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

    async def _prepare(self) -> None:
        """The root module's folder is initialised; `self._ready` says where all is."""
        work = self.work
        if self._cancel:
            raise Canceled
        name = self._server.identity.kept.name
        machine = f"{platform.system().lower()}/{platform.machine()}, isolation {self.cell.isolation.name}"
        for line in argv.header(name, __version__, work.engine, machine):
            self._log.line(line)
        if work.waited:
            self._log.line(work.waited)
        preparation = Preparation(self.folder, self._server, self._config, work)
        variables, left_out = preparation.variables()
        await self._mask(variables)
        for why in left_out:
            self._log.line(f"Warning: a variable is left out of this run: {why}")
        self.step = "fetch"
        self._binary = await self._engine_here()
        self.cell.engine = self._engines.files(work, self._binary)
        self._ready = await preparation.fetch(variables)
        shared = plugins.Plugins.of(self._home, self.folder, self._config)
        await asyncio.to_thread(shared.offer, self._ready.module)
        await asyncio.to_thread(self.cell.hand_over)
        await self._check_values()
        self.step = "init"
        words = argv.init_argv(readonly_lock=work.phase == "apply" and "lock-file" in work.links)
        async with self._hooks.around("init", self._ready.module, self._log.write) as step:
            step.code = await self._terraform(words, _PREPARE_S)
        if step.code:
            raise Failed(f"{work.engine.tool} init failed")
        await asyncio.to_thread(workdir.check_backend, self.folder, self._ready.module, self._ready.states)
        await asyncio.to_thread(shared.take, self._ready.module)

    async def _check_values(self) -> None:
        """Asks the engine whether it can read all values of variables. Raises Failed.

        terraform 1.15.5 says of a file that is no HCL what is wrong with it, leaves out every
        value in it, goes on with the defaults, and ends with 0: its plan may destroy everything.
        """
        own = [self._ready.var_file] if self._ready.var_file else []
        files = own + (
            await asyncio.to_thread(workdir.value_files, self._ready.module) if self.work.phase == "plan" else []
        )
        if not files:
            return
        names = self._record.folder / "values.txt"
        code = await self._terraform(argv.values_argv(files), _SHOW_S, names)
        await asyncio.to_thread(names.unlink, missing_ok=True)
        if code == argv.NO_VALUES:
            tool = self.work.engine.tool
            raise Failed(
                f"{tool} cannot read the values of the variables: one that is marked as HCL, or a .tfvars file, is no HCL"
            )

    async def _engine_here(self) -> Path:
        """The program, which may still be on its way. Raises Refused where the plan can be given back."""
        try:
            return await self._engine
        except errors.LeaseEnded:
            raise
        except _NO_ENGINE as error:
            why = self._no_engine(error)
            raise (Refused(why) if self.work.phase == "plan" else Failed(why)) from None

    async def _mask(self, variables: list[wire.Variable]) -> None:
        """From here on no secret gets into the log; what is too short for that is named."""
        secret = [each for each in variables if each.sensitive]
        self._secrets = [*(each.value for each in secret), self.work.run_token]
        self._log.mask(await asyncio.to_thread(Masker, self._secrets))
        for each in secret:
            if is_short(each.value):
                self._log.line(
                    f"Warning: the value of the sensitive variable {each.key} is not masked in this log,"
                    f" since it has fewer than {SHORTEST} bytes"
                )

    async def _terraform(self, words: list[str], timeout_s: float, to_file: Path | None = None) -> int:
        if self._cancel:
            raise Canceled
        if self._is_lost and self.work.phase == "plan":
            raise errors.LeaseEnded("the lease has ended")
        await asyncio.to_thread(self._engines.recheck, self.work)
        process = self._process
        if to_file is not None:
            process = Process(is_boxed=self.cell.is_boxed)
            self._readers.append(process)
        code = await process.run(
            self._start(words), on_output=self._log.write, to_file=to_file, timeout_s=timeout_s, grace_s=30.0
        )
        if self._is_lost and self.work.phase == "plan":
            raise errors.LeaseEnded("the lease has ended")
        if code and self._cancel and to_file is None and self.work.phase == "plan":
            raise Canceled
        return code

    def _start(self, words: list[str], *, outlives: bool = False) -> Start:
        """terraform, in the run's place and limits."""
        scope = limits.scope(self.work.limits, self._config.run_processes) if self._config.run_limits else []
        program = [str(self._binary), *words]
        return self.cell.start(program, self._ready.module, self._ready.env, scope=scope, outlives=outlives)

    async def _plan(self) -> wire.Report:
        await self._prepare()
        self.step = "plan"
        plan_file, module = self.folder / "plan", self._ready.module
        generated = module / "generated.tf"
        words = argv.plan_argv(self.work.options, str(plan_file), self._ready.var_file, str(generated))
        async with self._hooks.around("plan", module, self._log.write) as step:
            step.code = code = await self._terraform(words, self.work.limits.plan_s)
        if code:
            raise Failed(f"{self.work.engine.tool} plan failed with exit code {code}")
        self.step = "show"
        lock = module / ".terraform.lock.hcl"
        # what we write is out of the run's reach, and what the run has written is read without following its links
        shown, answer, cut = (self._record.folder / name for name in ("plan.json", "answer.json", "schemas.json"))
        locked = await asyncio.to_thread(workdir.read_below, self.folder, lock)
        kept_answer = await asyncio.to_thread(self._schemas.place, self.work, locked or b"")
        is_known = await asyncio.to_thread(kept_answer.is_file)
        reads = [self._terraform(["show", "-json", str(plan_file)], _SHOW_S, shown)]
        if not is_known:
            reads.append(self._terraform(["providers", "schema", "-json"], _SHOW_S, answer))
        if any(await asyncio.gather(*reads)):
            raise Failed("the plan could not be read back")
        counts = await asyncio.to_thread(schemas.digest, shown, kept_answer if is_known else answer, cut)
        if not is_known:
            await asyncio.to_thread(self._schemas.keep, answer, kept_answer)
        self.step = "upload"
        uploads = {"plan-file": plan_file, "plan-json": shown, "schemas": cut}
        if locked is not None:
            uploads["lock-file"] = lock
        for name, path in uploads.items():
            if path.is_relative_to(self.folder):
                with await asyncio.to_thread(statefile.open_below, self.folder, path):
                    pass
            await self._delivery.artifact(name, path)
        return wire.Report(
            phase="plan",
            status="planned",
            exit_code=code,
            has_changes=counts.has_changes,
            resource_additions=counts.additions,
            resource_changes=counts.changes,
            resource_destructions=counts.destructions,
            resource_imports=counts.imports,
            generated_configuration=counts.generated,
        )

    async def _apply(self) -> wire.Report:
        await self._prepare()
        work, ready, plan_file = self.work, self._ready, self.folder / "plan"
        before = await asyncio.to_thread(workdir.state_mark, self.folder, ready.state)
        states = [str(ready.module / "errored.tfstate"), str(ready.state)]
        await asyncio.to_thread(self._record.write, "accepted", states=states, before=before)
        start = self._start(argv.apply_argv(work.options, str(plan_file), ready.var_file), outlives=True)
        job = {**asdict(start), "cwd": str(start.cwd), "root": str(self.folder)}
        if self._cancel:
            raise Canceled
        async with self._hooks.around("apply", ready.module, self._log.write) as step:
            await asyncio.to_thread(self._engines.recheck, work)
            self.step = "apply"
            self._delivery.is_folder_needed = True  # until its state is known to be elsewhere, or unchanged
            self._log.settle()  # the keeper appends from here on
            found = await self._applied(job)
            step.code = found["code"]
        return self._outcome(found)

    async def _applied(self, job: dict[str, Any] | None = None) -> dict[str, Any]:
        """Waits for terraform, which is begun with `job`, or was begun by an earlier life; then for its state's delivery."""
        self._apply_ = apply = Apply(self._home, self._server, self._record, self._log)
        self._unknown = "the listener failed while the apply went on"
        code: int | None = None
        try:
            if self._cancel:
                (apply.kill if self._cancel == "force-cancel" else apply.interrupt)()
            found = await (apply.start(job, self._secrets, self.cell.lock) if job else apply.again())
            code = found["code"]
            self._unknown = argv.cut_short(self.work.engine.tool, found["code"])
        except NotBegun:
            self._unknown = ""
            raise
        except CutOff as error:
            self._unknown = str(error)
            raise
        finally:
            self.step = "state"
            await self._delivery.left_state(self._record, self._log, self.folder, code)
        return found

    def _outcome(self, found: dict[str, Any]) -> wire.Report:
        tool = self.work.engine.tool
        if found["code"] and self._cancel:
            raise Canceled
        if found["code"]:
            raise Failed(f"{tool} apply failed with exit code {found['code']}")
        return wire.Report(phase="apply", status="applied", exit_code=found["code"], state=self._delivery.state)
