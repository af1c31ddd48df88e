"""The listener's end of a keeper: started, found again after a restart, waited for, told to interrupt or to kill."""

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from terrapod_listener.supervise import processes, supervisor
from terrapod_listener.supervise.journal import Facts, Record

_PROGRAM = Path(supervisor.__file__)
#: How long an engine whose keeper is gone may take to save its state before it is killed.
_ORPHAN_S = 60.0


def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Keeper:
    """A running keeper, held by a descriptor that never means another process."""

    def __init__(self, pidfd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self._pidfd, self._child = pidfd, child

    @classmethod
    def start(cls, record: Record, lock: int | None = None) -> "Keeper":
        """It waits for `go`; until then it has begun nothing. The journal names it when this returns. Raises OSError.

        `lock` is a descriptor that it holds open until it ends.
        """
        with (record.folder / "keeper.err").open("wb") as errors:
            signal.pthread_sigmask(signal.SIG_BLOCK, supervisor.SIGNALS)  # what comes early waits for its handlers
            try:
                child = subprocess.Popen(  # noqa: S603  our own program
                    [sys.executable, "-I", "-S", str(_PROGRAM)],
                    cwd="/",
                    env={},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    start_new_session=True,
                    pass_fds=() if lock is None else (lock,),
                )
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, supervisor.SIGNALS)
        found = cls(os.pidfd_open(child.pid), child)
        try:
            record.write("apply", keeper=child.pid, keeper_started=processes.started(child.pid), boot=boot())
        except BaseException:
            found.kill_keeper()
            raise
        return found

    def go(self, job: dict[str, Any]) -> None:
        """Says what to do. To be called in a thread."""
        if self._child and self._child.stdin:
            with contextlib.suppress(BrokenPipeError), self._child.stdin as pipe:
                pipe.write(json.dumps(job).encode())

    @classmethod
    def find(cls, facts: Facts) -> "Keeper | None":
        """The one that the journal names, if it still runs."""
        if not facts.keeper or facts.boot != boot():
            return None
        try:
            pidfd = os.pidfd_open(facts.keeper)
        except OSError:
            return None
        try:
            is_over = bool(select.select([pidfd], [], [], 0)[0])  # it may be dead and waited for by nobody
            if not is_over and processes.started(facts.keeper) == facts.keeper_started:
                return cls(pidfd)
        except (OSError, IndexError):
            pass
        os.close(pidfd)
        return None

    async def wait(self) -> None:
        """Until it has ended."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._pidfd)
        if self._child:
            self._child.wait()
        self.close()

    def close(self) -> None:
        """Lets go of it; it goes on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1

    def interrupt(self) -> None:
        self._send(signal.SIGINT)

    def kill(self) -> None:
        """Kills the program; the keeper still writes what came of it."""
        self._send(signal.SIGUSR1)

    def kill_keeper(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd < 0:
                return
            signal.pidfd_send_signal(self._pidfd, number)


def is_alive(facts: Facts) -> bool:
    """Whether the keeper that the journal names still runs."""
    found = Keeper.find(facts)
    if found:
        found.close()
    return found is not None


def outcome(folder: Path) -> dict[str, Any] | None:
    """What a keeper wrote at its end; None where it was killed before."""
    try:
        found: dict[str, Any] = json.loads((folder / "exit.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found


async def orphans_gone(folder: Path, facts: Facts) -> None:
    """Waits for an engine whose keeper was killed, and is interrupted. Killed where it does not end.

    The kernel has interrupted one that is not isolated; a second time would keep it from saving its state.
    """
    try:
        child = json.loads((folder / "child.json").read_bytes())
    except (OSError, ValueError):
        return
    pid, until = child["pid"], asyncio.get_running_loop().time() + _ORPHAN_S
    is_told = not facts.is_isolated
    while facts.boot == boot() and (left := await asyncio.to_thread(processes.session, pid, child["started"])):
        if not is_told:
            is_told = await asyncio.to_thread(processes.interrupt, pid, is_boxed=facts.is_boxed)
        is_headless = pid not in left and not facts.is_boxed
        if asyncio.get_running_loop().time() > until or is_headless:
            for each in left:
                with contextlib.suppress(OSError):
                    os.kill(each, signal.SIGKILL)
        await asyncio.sleep(0.1)
