"""Commands of the host's owner around `init`, `plan` and `apply`.

They run as the listener's user in its home, and get the run's facts as variables; nothing of the run's own
environment. What they print is in the run's log, masked like all of it.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from terrapod_listener.config import HookSettings
from terrapod_shared import wire

Step = Literal["init", "plan", "apply"]
_READ = 64 << 10
#: What of the listener's environment a hook gets besides the facts.
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class HookFailed(Exception):
    """A hook before a step failed; the text is for the run's page."""


@dataclass
class Around:
    """What a step leaves for the hook after it: terraform's exit code, None where it did not come to its end."""

    code: int | None = None


class Hooks:
    """Those of one phase. `output` takes what they print, and what is said about them."""

    def __init__(self, settings: HookSettings, home: Path, work: wire.Work) -> None:
        self._settings, self._home, self._work = settings, home, work
        self._stoppable: asyncio.subprocess.Process | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Kills a hook before a step; one after a step is left to its end, since it may clean up."""
        self._is_stopped = True
        if self._stoppable is not None:
            _kill(self._stoppable.pid)

    @contextlib.asynccontextmanager
    async def around(self, step: Step, module: Path, output: Callable[[bytes], None]) -> AsyncIterator[Around]:
        """The hooks of one step. That after it runs however the step ended, also where the one before it failed.

        Raises HookFailed.
        """
        about = Around()
        try:
            if why := await self._hook(f"pre_{step}", module, output, None):
                raise HookFailed(why)
            yield about
        finally:
            if why := await self._hook(f"post_{step}", module, output, about):
                output(f"\nWarning: {why}; the run goes on\n".encode())

    async def _hook(self, name: str, module: Path, output: Callable[[bytes], None], about: Around | None) -> str | None:
        """Runs a hook where there is one; why it failed, or None."""
        argv: list[str] = getattr(self._settings, name)
        if not argv:
            return None
        env = self._facts(name, module)
        if about is not None:
            env["TERRAPOD_EXIT_CODE"] = "" if about.code is None else str(about.code)
        what = f"the host's hook {name}"
        try:
            code = await self._run(argv, env, output, may_stop=about is None)
        except OSError as error:
            return f"{what} could not be started: {error.strerror or error}"
        if code is None:
            return f"{what} took longer than {self._settings.timeout_s:g} s and was killed"
        return f"{what} failed with exit code {code}" if code else None

    def _facts(self, name: str, module: Path) -> dict[str, str]:
        work = self._work
        return {key: os.environ[key] for key in _KEPT if key in os.environ} | {
            "TERRAPOD_HOOK": name,
            "TERRAPOD_PHASE": work.phase,
            "TERRAPOD_RUN_ID": work.run_id,
            "TERRAPOD_ORGANIZATION": work.organization,
            "TERRAPOD_PROJECT_NAME": work.project_name,
            "TERRAPOD_WORKSPACE_ID": work.workspace_id,
            "TERRAPOD_WORKSPACE_NAME": work.workspace_name,
            "TERRAPOD_CONFIGURATION_VERSION_ID": work.configuration_version_id,
            "TERRAPOD_ENGINE": work.engine.tool,
            "TERRAPOD_ENGINE_VERSION": work.engine.version,
            "TERRAPOD_IS_DESTROY": "true" if work.options.is_destroy else "false",
            "TERRAPOD_MODULE": str(module),
        }

    async def _run(
        self, argv: list[str], env: dict[str, str], output: Callable[[bytes], None], *, may_stop: bool
    ) -> int | None:
        """The exit code; None past the time limit. Nobody of its process group is left. Raises OSError."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        loop = asyncio.get_running_loop()
        try:
            try:
                child = await asyncio.create_subprocess_exec(
                    *argv, cwd=self._home, env=env, stdin=asyncio.subprocess.DEVNULL,
                    stdout=writer, stderr=writer, start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(writer)
            if may_stop:
                self._stoppable = child
                if self._is_stopped:
                    _kill(child.pid)
            loop.add_reader(reader, _read, reader, output, loop)
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    return await child.wait()
            except TimeoutError:
                return None
            finally:
                self._stoppable = None
                _kill(child.pid)
                await child.wait()
                loop.remove_reader(reader)
                while _read(reader, output, loop):
                    pass
        finally:
            os.close(reader)


def _read(reader: int, output: Callable[[bytes], None], loop: asyncio.AbstractEventLoop) -> bool:
    try:
        chunk = os.read(reader, _READ)
    except BlockingIOError:
        return False
    if chunk:
        output(chunk)
    else:
        loop.remove_reader(reader)
    return bool(chunk)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
