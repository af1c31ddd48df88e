"""The engine's commands of one phase, in the run's cell and limits, and what stops them."""

import asyncio
from pathlib import Path
from typing import Literal

from terrapod_listener.phase.context import Context
from terrapod_listener.phase.hooks import Hooks
from terrapod_listener.phase.logs import LogSpool
from terrapod_listener.phase.outcomes import Canceled
from terrapod_listener.sandbox import limits
from terrapod_listener.sandbox.launching import Start
from terrapod_listener.sandbox.process import Process
from terrapod_shared import errors

Cancel = Literal["cancel", "force-cancel"]


class Commands:
    """Of one phase. `cancel` and `lose` may be called at any time, also before anything runs.

    `step` is what goes on, for the server; `canceled` is the last word of a person.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.hooks = Hooks(context.config.hooks, context.home, context.work)
        self.step = "begin"
        self.canceled: Cancel | Literal[""] = ""
        self.is_lost = False  #: the lease has ended
        self._process = Process(is_boxed=context.cell.is_boxed, clear=context.cell.clear)
        self._readers: list[Process] = []  # `show` and the like: they change nothing and are killed outright
        self._binary = self._module = Path()
        self._env: dict[str, str] = {}

    def set_up(self, binary: Path, module: Path, env: dict[str, str]) -> None:
        """Says which program runs where, from now on."""
        self._binary, self._module, self._env = binary, module, env

    def cancel(self, how: Cancel) -> None:
        """Interrupts once; `force-cancel` kills."""
        self.canceled = how
        self._stop_readers()
        if how == "force-cancel":
            self._process.kill()
        else:
            self._process.interrupt(self._context.work.limits.cancel_grace_s)

    def lose(self) -> None:
        """Stops a plan, whose lease has ended."""
        self.is_lost = True
        if self._context.work.phase == "plan":
            self._process.kill()
            self._stop_readers()

    def _stop_readers(self) -> None:
        self.hooks.stop()
        for each in self._readers:
            each.kill()

    def check_canceled(self) -> None:
        """Raises Canceled."""
        if self.canceled:
            raise Canceled

    def _check_lease(self) -> None:
        if self.is_lost and self._context.work.phase == "plan":
            raise errors.LeaseEnded("the lease has ended")

    async def run(self, words: list[str], log: LogSpool, timeout_s: float, to_file: Path | None = None) -> int:
        """The engine's exit code. Output goes to the log, or standard output to a file.

        Raises Canceled, and LeaseEnded for a plan.
        """
        self.check_canceled()
        self._check_lease()
        await asyncio.to_thread(self._context.engines.recheck, self._context.work)
        process = self._process
        if to_file is not None:
            process = Process(is_boxed=self._context.cell.is_boxed)
            self._readers.append(process)
        code = await process.run(
            self.start(words), on_output=log.write, to_file=to_file, timeout_s=timeout_s, grace_s=30.0
        )
        self._check_lease()
        if code and to_file is None and self._context.work.phase == "plan":
            self.check_canceled()
        return code

    def start(self, words: list[str], *, outlives: bool = False) -> Start:
        """How the engine is started, in the run's place and limits."""
        config = self._context.config
        scope = limits.scope(self._context.work.limits, config.run_processes) if config.run_limits else []
        program = [str(self._binary), *words]
        return self._context.cell.start(program, self._module, self._env, scope=scope, outlives=outlives)
