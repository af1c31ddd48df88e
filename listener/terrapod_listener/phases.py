"""One phase of a run from its acceptance to its end: fetch, unpack, init, plan or apply, deliver."""

import asyncio
import contextlib
import logging
import os
import platform
import zipfile
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlsplit

import msgspec

from terrapod_listener import __version__, kept, schemas, terraform, workdir
from terrapod_listener.client import Server, digest_of
from terrapod_listener.config import Config
from terrapod_listener.install import Engines
from terrapod_listener.logs import Spool
from terrapod_listener.process import Process
from terrapod_shared import errors, signing, wire
from terrapod_shared.files import write_private

log = logging.getLogger(__name__)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PREPARE_S = 1800.0
_SHOW_S = 600.0
#: Of an offer's time, how much its engine may take; one that takes longer is waited for under the lease.
_ENGINE_PART = 0.6


class Failed(Exception):
    """The phase has ended, and not well; the text is for the run's page."""


class Undelivered(Failed):
    """The state is on this host alone."""


class Refused(Exception):
    """The phase cannot begin on this listener; another may be able to take it."""


class Canceled(Exception):
    """Somebody canceled the run."""


#: What may stand in the way of an engine.
_NO_ENGINE = (errors.TerrapodError, OSError, zipfile.BadZipFile)


class Job:
    """The work on one phase. `home` is the listener's; the run's folder is the same path in plan and apply."""

    def __init__(self, home: Path, server: Server, engines: Engines, config: Config, work: wire.Work) -> None:
        self.work = work
        self.step = "begin"
        self.folder = home / "work" / work.run_id
        self._spools = home / "spool"
        self._server, self._engines, self._config = server, engines, config
        self._process = Process()
        self._readers: list[Process] = []  # `show` and the like: they change nothing and are killed outright
        self._cancel: Literal["", "cancel", "force-cancel"] = ""
        self._is_lost = False
        self._keep_folder = False
        self.decided = asyncio.Event()  #: the offer was accepted, or given back
        self.is_accepted = self.is_refused = False
        self._engine: asyncio.Task[Path]
        self._schemas = schemas.Schemas(home / "schemas")
        self._var_file: str | None = None
        self._selected = work.workspace_name  #: what terraform calls the workspace
        self._log: Spool
        self._binary = Path()
        self._env: dict[str, str] = {}
        self._digests: dict[str, str] = {}

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
        return self._state_word == "spooled"

    def cancel(self, how: Literal["cancel", "force-cancel"]) -> None:
        """Interrupts once; `force-cancel` kills."""
        if how == self._cancel:
            return
        self._cancel = how
        self._kill_readers()
        if how == "force-cancel":
            self._process.kill()
        else:  # an apply ends by itself, or by a person's `force-cancel`: what it is making would be lost with it
            self._process.interrupt(None if self.step == "apply" else self.work.limits.cancel_grace_s)

    def lose(self) -> None:
        """The lease is gone. A plan is stopped; an apply goes on, since its state is still to be delivered."""
        self._is_lost = True
        if self.work.phase == "plan":
            self._process.kill()
            self._kill_readers()

    def _kill_readers(self) -> None:
        for each in self._readers:
            each.kill()

    async def run(self) -> None:
        """Does all of it. Raises nothing but what ends the listener."""
        self._engine = asyncio.create_task(self._engines.path(self.work))
        try:
            if await self._accepted():
                self.decided.set()
                await self._do()
        finally:
            self.decided.set()
            self._engine.cancel()
            with contextlib.suppress(asyncio.CancelledError, *_NO_ENGINE):
                await self._engine

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
                await self._server.report(work.run_id, wire.Report(phase=work.phase, status=status), work.lease.number)
        except errors.TerrapodError as refusal:
            log.warning("%s %s was not accepted: %s", work.phase, work.run_id, refusal.detail)
            return False
        self.is_accepted = not self.is_refused
        return self.is_accepted

    def _no_engine(self, error: BaseException) -> str:
        engine = self.work.engine
        return f"{engine.tool} {engine.version} cannot be had: {getattr(error, 'detail', error)}"

    async def _refuse(self, why: str) -> None:
        self.is_refused = True
        log.warning("%s %s is given back: %s", self.work.phase, self.work.run_id, why)
        refusal = wire.Report(phase=self.work.phase, status="refused", reason=why)
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
        self._log = Spool(self.folder / "log", self._server, work)
        try:
            await self._deliver(await self._report())
        except Refused as refusal:
            with contextlib.suppress(errors.TerrapodError):
                await self._log.finish()
            with contextlib.suppress(errors.TerrapodError):
                await self._refuse(str(refusal))
        except (errors.LeaseEnded, errors.NotFound) as error:
            log.warning("%s %s is no longer ours: %s", work.phase, work.run_id, error.detail)
            await self._log.abandon()
        except errors.TerrapodError as error:
            log.error("%s %s could not be ended: %s", work.phase, work.run_id, error.detail)  # noqa: TRY400
            await self._log.abandon()
        finally:
            self._log.close()
            if not self._config.keep_work and not self._keep_folder:
                await asyncio.to_thread(workdir.remove, self.folder)

    def _fresh_folder(self) -> None:
        if not kept.recover(self.folder, self._spools):
            message = "the folder of this run holds a state that cannot be kept"
            raise OSError(message)
        workdir.remove(self.folder)
        for name in ("home", "tmp", "states"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        kept.note(self.folder, self.work)

    async def _report(self) -> wire.Report:
        phase = self.work.phase
        try:
            return await (self._plan() if phase == "plan" else self._apply())
        except Canceled:
            return wire.Report(phase=phase, status="canceled", state=self._state_word)
        except Undelivered as error:
            self._log.line(f"\nError: {error}")
            return wire.Report(phase=phase, status="errored", error_message=str(error), state=self._state_word)
        except (Failed, workdir.Hostile, schemas.NotWhole) as error:
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
            return wire.Report(phase=phase, status="canceled", state=self._state_word)
        self._log.line(f"\nError: {text}")
        return wire.Report(phase=phase, status="errored", error_message=text, state=self._state_word)

    _state_word: Literal["unchanged", "uploaded", "spooled"] = "unchanged"

    async def _deliver(self, report: wire.Report) -> None:
        """Artifacts are here already; then the log, then the word that ends the phase."""
        self.step = "report"
        await self._log.finish()
        words = {"digests": self._digests, "log_bytes": self._log.end}
        full = wire.Report(**{**{name: getattr(report, name) for name in report.__struct_fields__}, **words})
        while True:
            try:
                await self._server.report(self.work.run_id, full, self.work.lease.number)
            except errors.LeaseEnded:
                raise
            except errors.Conflict as error:
                if full.status == "errored":
                    raise
                full = wire.Report(
                    phase=self.work.phase,
                    status="errored",
                    error_message=error.detail,
                    log_bytes=self._log.end,
                    state=self._state_word,
                )
                continue
            break

    async def _prepare(self) -> Path:
        """The root module's folder, initialised."""
        work = self.work
        if self._cancel:
            raise Canceled
        name = self._server.identity.kept.name
        machine = f"{platform.system().lower()}/{platform.machine()}"
        for line in terraform.header(name, __version__, work.engine, machine):
            self._log.line(line)
        variables = self._unsealed()
        if why := terraform.refused(variables):
            raise Failed(why)
        self.step = "fetch"
        self._binary = await self._engine_here()
        root = self.folder / "config"
        archive = self.folder / "configuration.tar.gz"
        link = work.links["configuration"]
        await self._server.download(link.path, archive, lease=work.lease.number, sha256=link.sha256)
        await asyncio.to_thread(workdir.unpack, archive, root, work.limits)
        archive.unlink()
        module = workdir.module_folder(root, work.working_directory)
        names, self._selected = await asyncio.to_thread(_read, module, work.workspace_name)
        await self._seed_state()
        if work.phase == "apply" and "lock-file" in work.links:
            link = work.links["lock-file"]
            await self._server.download(
                link.path, module / ".terraform.lock.hcl", lease=work.lease.number, sha256=link.sha256
            )
        workdir.write_override(module, self._states)
        given = terraform.given(variables, names, work.phase)
        if text := terraform.var_file(given, names):
            (self.folder / terraform.VAR_FILE).write_text(text, encoding="utf-8")
            self._var_file = str(self.folder / terraform.VAR_FILE)
        self._env = terraform.environment(
            msgspec.structs.replace(work, variables=given), names, self._base(), self._selected
        )
        self.step = "init"
        argv = terraform.init_argv(readonly_lock=work.phase == "apply" and "lock-file" in work.links)
        if await self._terraform(argv, module, _PREPARE_S):
            raise Failed(f"{work.engine.tool} init failed")
        workdir.check_backend(module, self._states)
        return module

    async def _engine_here(self) -> Path:
        """The program, which may still be on its way. Raises Refused where the plan can be given back."""
        try:
            return await self._engine
        except errors.LeaseEnded:
            raise
        except _NO_ENGINE as error:
            why = self._no_engine(error)
            raise (Refused(why) if self.work.phase == "plan" else Failed(why)) from None

    def _unsealed(self) -> list[wire.Variable]:
        work, opened = self.work, []
        for each in work.variables:
            value = each.value
            if each.sealed:
                info = wire.seal_info(work.run_id, work.phase, work.lease.number, each.category, each.key)
                value = signing.unseal(self._server.identity.sealing_key, info, each.sealed).decode()
            opened.append(
                wire.Variable(
                    key=each.key,
                    category=each.category,
                    value=value,
                    hcl=each.hcl,
                    sensitive=each.sensitive,
                    from_run=each.from_run,
                )
            )
        return opened

    def _base(self) -> dict[str, str]:
        """What a run's environment has before the user's variables: nothing of the listener's but what is named."""
        mine = self._server.identity.kept
        env = {name: os.environ[name] for name in self._config.pass_environment if name in os.environ}
        env |= {
            "PATH": _PATH,
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "LANG": "C.UTF-8",
            "TF_CLI_CONFIG_FILE": str(self.folder / "terraform.rc"),
        }
        hosts = [urlsplit(mine.server).netloc, *self.work.hosts]
        write_private(self.folder / "terraform.rc", terraform.credentials(hosts, self.work.run_token).encode())
        if mine.ca:
            bundle = Path("/etc/ssl/certs/ca-certificates.crt")
            system = bundle.read_text() if bundle.exists() else ""
            (self.folder / "ca.pem").write_text(f"{system}\n{mine.ca}")
            env["SSL_CERT_FILE"] = str(self.folder / "ca.pem")
        return env

    @property
    def _states(self) -> Path:
        return self.folder / "states"

    @property
    def _state(self) -> Path:
        return self._states / self._selected / "terraform.tfstate"

    async def _seed_state(self) -> None:
        link = self.work.links.get("state")
        if link is None:
            return
        self._state.parent.mkdir(mode=0o700)
        await self._server.download(link.path, self._state, lease=self.work.lease.number, sha256=link.sha256)

    async def _terraform(self, argv: list[str], module: Path, timeout_s: float, to_file: Path | None = None) -> int:
        if self._cancel:
            raise Canceled
        if self._is_lost and self.work.phase == "plan":
            raise errors.LeaseEnded("the lease has ended")
        process = self._process
        if to_file is not None:
            process = Process()
            self._readers.append(process)
        code = await process.run(
            [str(self._binary), *argv],
            cwd=module,
            env=self._env,
            on_output=self._log.write,
            to_file=to_file,
            timeout_s=timeout_s,
            grace_s=None if self.step == "apply" else 30.0,
        )
        if self._is_lost and self.work.phase == "plan":
            raise errors.LeaseEnded("the lease has ended")
        if code and self._cancel and to_file is None and self.work.phase == "plan":
            raise Canceled
        return code

    async def _plan(self) -> wire.Report:
        module = await self._prepare()
        self.step = "plan"
        plan_file = self.folder / "plan"
        generated = module / "generated.tf"
        argv = terraform.plan_argv(self.work.options, str(plan_file), self._var_file, str(generated))
        code = await self._terraform(argv, module, self.work.limits.plan_s)
        if code:
            raise Failed(f"{self.work.engine.tool} plan failed with exit code {code}")
        self.step = "show"
        lock = module / ".terraform.lock.hcl"
        shown, answer, cut = (self.folder / name for name in ("plan.json", "answer.json", "schemas.json"))
        kept_answer = await asyncio.to_thread(self._schemas.place, self.work, lock)
        is_known = await asyncio.to_thread(kept_answer.is_file)
        reads = [self._terraform(["show", "-json", str(plan_file)], module, _SHOW_S, shown)]
        if not is_known:
            reads.append(self._terraform(["providers", "schema", "-json"], module, _SHOW_S, answer))
        if any(await asyncio.gather(*reads)):
            raise Failed("the plan could not be read back")
        counts = await asyncio.to_thread(schemas.digest, shown, kept_answer if is_known else answer, cut)
        if not is_known:
            await asyncio.to_thread(self._schemas.keep, answer, kept_answer)
        self.step = "upload"
        uploads = {"plan-file": plan_file, "plan-json": shown, "schemas": cut}
        if lock.is_file() and not lock.is_symlink():
            uploads["lock-file"] = lock
        for name, path in uploads.items():
            await self._upload(name, path)
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

    async def _upload(self, name: str, path: Path) -> None:
        digest = (await digest_of(path)).hex()
        target = f"{self._server.base}/runs/{self.work.run_id}/{name}"
        await self._server.persist("PUT", target, file=path, lease=self.work.lease.number, timeout_s=600.0)
        self._digests[name] = digest

    async def _apply(self) -> wire.Report:
        module = await self._prepare()
        work = self.work
        plan_file = self.folder / "plan"
        link = work.links["plan"]
        await self._server.download(link.path, plan_file, lease=work.lease.number, sha256=link.sha256)
        before = await asyncio.to_thread(workdir.state_mark, self._state)
        await asyncio.to_thread(kept.note, self.folder, work, self._state, module, before)
        self.step = "apply"
        self._keep_folder = True  # until its state is known to be elsewhere, or unchanged
        try:
            code = await self._terraform(
                terraform.apply_argv(work.options, str(plan_file), self._var_file), module, work.limits.apply_s
            )
        finally:
            self.step = "state"
            await self._deliver_state(module, before)
        if code and self._cancel:
            raise Canceled
        if code:
            raise Failed(f"{work.engine.tool} apply failed with exit code {code}")
        return wire.Report(phase="apply", status="applied", exit_code=code, state=self._state_word)

    async def _deliver_state(self, module: Path, before: wire.StateRef | None) -> None:
        """The state that terraform left, also when it failed: kept on disk until the server has it."""
        errored = module / "errored.tfstate"
        state = errored if errored.is_file() else self._state
        mark = await asyncio.to_thread(workdir.state_mark, state)
        if mark is None or mark == before:
            self._keep_folder = False
            return
        self._state_word = "spooled"
        try:
            kept_ = await asyncio.to_thread(
                kept.keep, state, self._spools, self.work.run_id, self.work.lease.number, mark
            )
            self._keep_folder = False
        except OSError as error:
            self._log.line(f"\nThe state could not be copied to the spool ({error}); it stays in the work folder.")
            kept_ = state
        try:
            await self._push_state(kept_, mark)
        except errors.TerrapodError as error:
            place = state if self._keep_folder else kept_
            message = f"the server did not take the state ({error.detail}); it is kept on the listener at {place}"
            raise Undelivered(message) from None
        self._state_word, self._keep_folder = "uploaded", False
        if kept_ != state:
            await asyncio.to_thread(kept.drop, kept_)

    async def _push_state(self, path: Path, mark: wire.StateRef) -> None:
        query = f"serial={mark.serial}&lineage={quote(mark.lineage, safe='')}&md5={mark.md5}"
        target = f"{self._server.base}/runs/{self.work.run_id}/state?{query}"
        await self._server.persist("PUT", target, file=path, lease=self.work.lease.number, timeout_s=600.0)


def _read(module: Path, workspace: str) -> tuple[dict[str, bool], str]:
    """Of the root module: its variables, and what it calls the workspace. To be called in a thread."""
    sources = workdir.sources(module)
    return terraform.declared(sources), terraform.selected(workspace, sources)
