"""Runs one program in a session of its own: output streamed, one interrupt, a kill after the grace, nobody left behind."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from terrapod_listener.sandbox.launching import Start
from terrapod_listener.supervise import processes

_READ = 256 << 10
_ASK_AGAIN_S = 0.02


class Process:
    """A child and all of its process group. `is_boxed`: it is a bubblewrap around the program.

    `clear`, called in a thread, ends who is left of it elsewhere.
    """

    def __init__(self, *, is_boxed: bool = False, clear: Callable[[], None] = lambda: None) -> None:
        self._is_boxed, self._clear = is_boxed, clear
        self._child: asyncio.subprocess.Process | None = None
        self._killer: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self.was_interrupted = False
        self._early: list[float | None] = []  # the grace of an interrupt that was asked for while there was no child
        self._killed = False

    async def run(
        self,
        start: Start,
        *,
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
        processes.widened(writer_end)
        target = to_file.open("wb") if to_file else None
        source = processes.filled(start.given)
        try:
            self._child = child = await asyncio.create_subprocess_exec(
                *start.argv,
                cwd=start.cwd,
                env=start.env,
                stdin=source,
                stdout=target or writer_end,
                stderr=writer_end,
                start_new_session=True,
            )
        except BaseException:
            os.close(reader_end)
            raise
        finally:
            os.close(source)
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
            for timer in filter(None, (self._killer, self._asking)):
                timer.cancel()
            processes.kill(child.pid)  # whoever the program left behind in its group
        await asyncio.to_thread(self._clear)
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
        self._interrupt()
        if grace_s is not None:
            self._killer = asyncio.get_running_loop().call_later(grace_s, self.kill)

    def _interrupt(self) -> None:
        """Until it reaches somebody: a box may not have begun its program yet."""
        if self._child is not None and not processes.interrupt(self._child.pid, is_boxed=self._is_boxed):
            self._asking = asyncio.get_running_loop().call_later(_ASK_AGAIN_S, self._interrupt)

    def kill(self) -> None:
        self.was_interrupted = self._killed = True
        if self._child is not None:
            processes.kill(self._child.pid)


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
