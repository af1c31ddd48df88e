"""What a phase needs before terraform is called: secrets opened, configuration and state here, our backend, its environment."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from terrapod_listener.config import Config
from terrapod_listener.engine import argv, plugins, workdir
from terrapod_listener.link.client import Server
from terrapod_shared import signing, wire
from terrapod_shared.files import write_private

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Prepared:
    """What terraform is called with. `state` is where it keeps the workspace's state; the file may not be there."""

    module: Path
    states: Path
    state: Path
    env: dict[str, str]
    var_file: str | None


class Preparation:
    """Of one phase, in the run's folder."""

    def __init__(self, folder: Path, server: Server, config: Config, work: wire.Work) -> None:
        self._folder, self._server, self._config, self._work = folder, server, config, work

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
        return Prepared(module, states, state, env, var_file)

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
