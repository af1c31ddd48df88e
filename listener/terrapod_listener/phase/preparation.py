"""What a phase needs before its plan or apply: secrets opened, configuration and state here, our backend, `init`."""

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from terrapod_listener import __version__
from terrapod_listener.engine import argv, plugins, workdir
from terrapod_listener.phase.commands import Commands
from terrapod_listener.phase.context import Context
from terrapod_listener.phase.logs import LogSpool
from terrapod_listener.phase.outcomes import Failed
from terrapod_listener.supervise.masking import SHORTEST, Masker, is_short
from terrapod_shared import signing, wire
from terrapod_shared.files import write_private

_INIT_S = 1800.0
#: For commands that only read.
SHOW_S = 600.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Prepared:
    """What terraform is called with. `state` is where it keeps the workspace's state; the file may not be there."""

    module: Path
    states: Path
    state: Path
    env: dict[str, str]
    var_file: str | None
    secrets: list[str] = field(repr=False)


class Preparation:
    """Of one phase, in the run's folder."""

    def __init__(self, context: Context, commands: Commands, log: LogSpool) -> None:
        self._context, self._commands, self._log = context, commands, log
        self._folder, self._server = context.folder, context.server
        self._config, self._work = context.config, context.work
        self._secrets: list[str] = []

    async def prepare(self, engine: Callable[[], Awaitable[Path]]) -> Prepared:
        """Fetches all, and runs `init` in the root module's folder. `engine` waits for the program.

        Raises Failed, Canceled, HookFailed, Hostile, what `engine` raises and what a download raises.
        """
        context, commands, work = self._context, self._commands, self._work
        commands.check_canceled()
        self._say_header()
        variables, left_out = self.variables()
        await self._mask(variables)
        for why in left_out:
            self._log.line(f"Warning: a variable is left out of this run: {why}")
        commands.step = "fetch"
        binary = await engine()
        context.cell.engine = context.engines.files(work, binary)
        ready = await self.fetch(variables)
        commands.set_up(binary, ready.module, ready.env)
        shared = plugins.Plugins.of(context.home, self._folder, self._config)
        await asyncio.to_thread(shared.offer, ready.module)
        await asyncio.to_thread(context.cell.hand_over)
        await self._check_values(ready)
        commands.step = "init"
        words = argv.init_argv(readonly_lock=work.phase == "apply" and "lock-file" in work.links)
        async with commands.hooks.around("init", ready.module, self._log.write) as step:
            step.code = await commands.run(words, self._log, _INIT_S)
        if step.code:
            raise Failed(f"{work.engine.tool} init failed")
        await asyncio.to_thread(workdir.check_backend, self._folder, ready.module, ready.states)
        await asyncio.to_thread(shared.take, ready.module)
        return ready

    def _say_header(self) -> None:
        name, isolation = self._server.identity.kept.name, self._context.cell.isolation.name
        machine = f"{platform.system().lower()}/{platform.machine()}, isolation {isolation}"
        for line in argv.header(name, __version__, self._work.engine, machine):
            self._log.line(line)
        if self._work.waited:
            self._log.line(self._work.waited)

    async def _mask(self, variables: list[wire.Variable]) -> None:
        """From here on no secret gets into the log; what is too short for that is named."""
        secret = [each for each in variables if each.sensitive]
        self._secrets = [*(each.value for each in secret), self._work.run_token]
        self._log.mask(await asyncio.to_thread(Masker, self._secrets))
        for each in secret:
            if is_short(each.value):
                self._log.line(
                    f"Warning: the value of the sensitive variable {each.key} is not masked in this log,"
                    f" since it has fewer than {SHORTEST} bytes"
                )

    async def _check_values(self, ready: Prepared) -> None:
        """Asks the engine whether it can read all values of variables. Raises Failed.

        terraform 1.15.5 says of a file that is no HCL what is wrong with it, leaves out every
        value in it, goes on with the defaults, and ends with 0: its plan may destroy everything.
        """
        given = [ready.var_file] if ready.var_file else []
        if self._work.phase == "plan":
            given += await asyncio.to_thread(workdir.value_files, ready.module)
        if not given:
            return
        names = self._context.record.folder / "values.txt"
        code = await self._commands.run(argv.values_argv(given), self._log, SHOW_S, names)
        await asyncio.to_thread(names.unlink, missing_ok=True)
        if code == argv.NO_VALUES:
            tool = self._work.engine.tool
            raise Failed(
                f"{tool} cannot read the values of the variables: one that is marked as HCL, or a .tfvars file, is no HCL"
            )

    def variables(self) -> tuple[list[wire.Variable], list[str]]:
        """All that the run may have, opened; and why others are left out."""
        work, opened = self._work, []
        for each in work.variables:
            value = each.value
            if each.sealed:
                info = wire.seal_info(work.run_id, work.phase, work.lease.number, each.category, each.key)
                value = signing.unseal(self._server.identity.sealing_key, info, each.sealed).decode()
            opened.append(msgspec.structs.replace(each, value=value, sealed=""))
        return argv.admitted(opened)

    async def fetch(self, variables: list[wire.Variable]) -> Prepared:
        """Configuration, state and lock file, ready for `init`. Raises Hostile, and what a download raises."""
        work, states = self._work, self._folder / "states"
        root, archive = self._folder / "config", self._folder / "configuration.tar.gz"
        await self._download("configuration", archive)
        await asyncio.to_thread(workdir.unpack, archive, root, work.limits)
        archive.unlink()
        module = workdir.module_folder(root, work.working_directory)
        if not work.options.is_destroy:
            await asyncio.to_thread(workdir.check_configuration, root, module, work.engine.tool)
        names, selected = await asyncio.to_thread(_read, module, work.workspace_name, work.engine.tool)
        state = states / selected / "terraform.tfstate"
        if "state" in work.links:
            state.parent.mkdir(mode=0o700)
            await self._download("state", state)
        if work.phase == "apply":  # all before anything of the run's is started: it could put links in the way
            await self._download("plan", self._folder / "plan")
            if "lock-file" in work.links:
                await self._download("lock-file", module / ".terraform.lock.hcl")
        workdir.write_override(module, states, work.engine.tool)
        given = argv.given(variables, names, work.phase)
        var_file: str | None = None
        if text := argv.var_file(given, names):
            (self._folder / argv.VAR_FILE).write_text(text, encoding="utf-8")
            var_file = str(self._folder / argv.VAR_FILE)
        env = argv.environment(msgspec.structs.replace(work, variables=given), names, self._base(), selected)
        return Prepared(module, states, state, env, var_file, self._secrets)

    async def _download(self, name: str, target: Path) -> None:
        link = self._work.links[name]
        await self._server.download(link.path, target, lease=self._work.lease.number, sha256=link.sha256)

    def _base(self) -> dict[str, str]:
        """What a run's environment has before the user's variables: nothing of the listener's but what is named."""
        mine = self._server.identity.kept
        env = {name: os.environ[name] for name in self._config.pass_environment if name in os.environ}
        env |= {
            "PATH": _PATH,
            "HOME": str(self._folder / "home"),
            "TMPDIR": str(self._folder / "tmp"),
            "LANG": "C.UTF-8",
            "TF_CLI_CONFIG_FILE": str(self._folder / "terraform.rc"),
        }
        hosts = [urlsplit(mine.server).netloc, *self._work.hosts]
        config = self._config
        own = self._folder / plugins.OWN if config.plugin_cache else None
        if own:
            own.mkdir(mode=0o700, exist_ok=True)
        rc = argv.credentials(hosts, self._work.run_token)
        rc += argv.installation(str(own or ""), config.provider_mirror)
        write_private(self._folder / "terraform.rc", rc.encode())
        if mine.ca or config.ca_file:
            bundle = Path("/etc/ssl/certs/ca-certificates.crt")
            system = bundle.read_text() if bundle.exists() else ""
            more = Path(config.ca_file).read_text() if config.ca_file else ""
            (self._folder / "ca.pem").write_text(f"{system}\n{mine.ca or ''}\n{more}")
            env["SSL_CERT_FILE"] = str(self._folder / "ca.pem")
        return env


def _read(module: Path, workspace: str, tool: str) -> tuple[dict[str, bool], str]:
    """Of the root module: its variables, and what it calls the workspace. To be called in a thread."""
    sources = workdir.sources(module, tool)
    return argv.declared(sources), argv.selected(workspace, sources)
