"""Runs one program in a session of its own: output streamed, one interrupt, a kill after the grace, nobody left behind."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_READ = 64 << 10


class Process:
    """A child and all of its process group."""

    def __init__(self) -> None:
        self._child: asyncio.subprocess.Process | None = None
        self._killer: asyncio.TimerHandle | None = None
        self.was_interrupted = False
        self._early: list[float | None] = []  # the grace of an interrupt that was asked for while there was no child
        self._killed = False

    async def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        on_output: Callable[[bytes], None],
        to_file: Path | None = None,
        timeout_s: float,
        grace_s: float | None = 30.0,
    ) -> int:
        """The exit code; negative for a signal. Output goes to `on_output`, or standard output to a file.

        `grace_s` is for what runs longer than `timeout_s`; see `interrupt`.
        """
        # a pipe of our own: asyncio's `wait` would wait for everybody who holds its pipe, not for the child alone
        reader_end, writer_end = os.pipe()
        target = to_file.open("wb") if to_file else None
        try:
            self._child = child = await asyncio.create_subprocess_exec(
                *argv,
                cwd=cwd,
                env=dict(env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=target or writer_end,
                stderr=writer_end,
                start_new_session=True,
            )
        except BaseException:
            os.close(reader_end)
            raise
        finally:
            os.close(writer_end)
            if target:
                target.close()
        if self._killed:
            self.kill()
        elif self._early:
            self.interrupt(self._early[0])
        reading = asyncio.create_task(_pump(reader_end, on_output))
        try:
            async with asyncio.timeout(timeout_s):
                code = await child.wait()
        except TimeoutError:
            on_output(f"\nThe phase ran longer than {timeout_s:.0f} s and is interrupted.\n".encode())
            self.interrupt(grace_s)
            code = await child.wait()
        finally:
            if self._killer:
                self._killer.cancel()
            self._signal(signal.SIGKILL)  # whoever the program left behind in its group
        with contextlib.suppress(TimeoutError):  # a daemon that left the session may hold the pipe
            await asyncio.wait_for(reading, 5)
        self._child = None
        return code

    def interrupt(self, grace_s: float | None) -> None:
        """One SIGINT: terraform stops, and saves its state. A second would make it stop without.

        After the grace comes a SIGKILL; with None none does, however long it takes.
        """
        if self._child is None:
            self._early.append(grace_s)
            return
        if self.was_interrupted:
            return
        self.was_interrupted = True
        self._signal(signal.SIGINT)
        if grace_s is not None:
            self._killer = asyncio.get_running_loop().call_later(grace_s, self.kill)

    def kill(self) -> None:
        self.was_interrupted = self._killed = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, number)


async def _pump(reader_end: int, on_output: Callable[[bytes], None]) -> None:
    reader = asyncio.StreamReader(limit=_READ)
    file = os.fdopen(reader_end, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), file
    )
    try:
        while chunk := await reader.read(_READ):
            with contextlib.suppress(OSError):  # a full disk must not stall the program at its pipe
                on_output(chunk)
    finally:
        transport.close()
