"""The keeper of an apply: runs one program for the listener, and outlives it.

It is started as a file by a bare interpreter (`python -I -S keeper.py`), in a
session of its own, and reads from standard input what to do, secrets included;
so that they are in no argv, environment or file. Nothing but the standard
library and three files beside this one is loaded.

It masks what the program prints and appends it to the log file; copies the
state to the spool while it changes; waits for the end; kills whoever was left
behind; writes what came of it. A signal is the listener's word: INT or TERM
interrupts the program once, USR1 kills it.

The program's end of the pipe is open for reading too: where the keeper itself
is killed, the program is interrupted by the kernel, or by the listener where
it is isolated, and no SIGPIPE keeps it from saving its state.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

_READ = 256 << 10
_LOOK_S = 0.25
#: Copies of a state take at most so much of the time, as 1/n.
_COPY_SHARE = 20
_COPY_LEAST_S = 1.0
_EXIT_ROOM = 4096
#: Room on the disk that is held for the state, at least; more where the state is large.
_RESERVE_LEAST, _RESERVE_TIMES, _RESERVE_MOST = 4 << 20, 4, 4 << 30
#: The file that holds it, beside the journal's.
RESERVE = "reserve"
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)
_libc = ctypes.CDLL(None, use_errno=True)


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


statefile, masking, processes = _beside("statefile"), _beside("masking"), _beside("processes")


def _die_with_keeper() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0)


class Log:
    """The phase's log file; past the limit only a line that says so. A full disk costs the log and nothing else."""

    def __init__(self, path: Path, most: int, secrets: list[str]) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._left = most - os.fstat(self._handle).st_size
        self._masker = masking.Masker(secrets)

    def write(self, chunk: bytes) -> None:
        self._append(self._masker.feed(chunk))

    def _append(self, chunk: bytes) -> None:
        if self._left < 0:
            return
        if len(chunk) > self._left:
            chunk = chunk[: self._left] + b"\n[the log is at its limit; the run goes on]\n"
        self._left -= len(chunk)
        with contextlib.suppress(OSError):
            while chunk:
                chunk = chunk[os.write(self._handle, chunk) :]

    def close(self) -> None:
        self._append(self._masker.flush())
        with contextlib.suppress(OSError):
            os.fsync(self._handle)


class States:
    """Copies what the program has written of its state, newest last."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._root, self._target = Path(job["root"]), Path(job["spooled"])
        self._candidates = [Path(path) for path in job["states"]]
        self._before = job["before"]
        self._seen = self._look()
        self._next = 0.0
        self.error = ""

    def _look(self) -> list[tuple[int, int]]:
        found = []
        for path in self._candidates:
            try:
                about = path.lstat()
                found.append((about.st_size, about.st_mtime_ns))
            except OSError:
                found.append((-1, -1))
        return found

    def watch(self) -> None:
        """During the run: a state that is being written is left for the next look."""
        now = time.monotonic()
        if now < self._next or (seen := self._look()) == self._seen:
            return
        self._copy()
        took = time.monotonic() - now
        self._seen = seen
        self._next = now + max(_COPY_LEAST_S, took * _COPY_SHARE)

    def last(self) -> None:
        """Once nobody writes any more."""
        if self._look() != self._seen or self.error:
            self._copy()

    def _copy(self) -> None:
        self.error = ""
        found = statefile.newest(self._root, self._candidates)
        if found is None or found[1] == self._before:
            return
        try:
            statefile.keep(self._root, found[0], self._target)
        except (OSError, ValueError) as error:
            self.error = str(error)


class Exit:
    """The file that says what came of it; its place on the disk is taken before the program starts."""

    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_name(f".{path.name}.part")
        self._handle = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._handle, 0, _EXIT_ROOM)

    def write(self, facts: dict[str, Any]) -> None:
        raw = json.dumps(facts).encode()[:_EXIT_ROOM]
        os.pwrite(self._handle, raw, 0)
        os.ftruncate(self._handle, len(raw))
        os.fsync(self._handle)
        self._part.replace(self._path)
        statefile.sync(self._path.parent)


class Reserve:
    """Room for the state, taken before the program makes anything and given back when the disk gets full.

    Raises OSError where there is none: an apply whose state cannot be written down must not begin.
    """

    def __init__(self, path: Path, states: list[str]) -> None:
        sizes = (size for size in map(_size, states) if size <= statefile.LARGEST)
        self._size = min(_RESERVE_MOST, max(_RESERVE_LEAST, *(_RESERVE_TIMES * size for size in (0, *sizes))))
        self._path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self._handle, 0, self._size)
        except OSError:
            self.give_back()
            raise

    def look(self) -> None:
        """Gives it back where less than half as much is free beside it."""
        if self._handle >= 0:
            disk = os.fstatvfs(self._handle)
            if disk.f_bavail * disk.f_frsize < self._size // 2:
                self.give_back()

    def give_back(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            self._path.unlink(missing_ok=True)


def _size(path: str) -> int:
    """0 where there is no such file."""
    with contextlib.suppress(OSError):
        return os.lstat(path).st_size
    return 0


class Program:
    """The child, and all who come from it."""

    def __init__(self, job: dict[str, Any], log: Log, states: States, reserve: Reserve) -> None:
        self._job, self._log, self._states, self._reserve = job, log, states, reserve
        self._interrupted = self._killed = self._timed_out = False
        self._is_heard = True  #: an interrupt that was asked for has reached somebody
        self._code: int | None = None
        #: Never asked and never let go: either would take the exit code that `_reap` waits for.
        self._child: subprocess.Popen[bytes]
        self._pid = 0

    def run(self) -> dict[str, Any]:
        """Until it and everybody that it left behind is gone."""
        job = self._job
        wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        processes.widened(writer)
        both = os.open(f"/proc/self/fd/{writer}", os.O_RDWR | os.O_CLOEXEC)
        os.close(writer)
        os.set_blocking(reader, False)
        _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no program of the same user reads the secrets out of its memory
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        source = processes.filled(job.pop("given", ""))
        try:
            self._child = subprocess.Popen(  # noqa: S603  the listener's word
                job["argv"],
                cwd=job["cwd"],
                env=job["env"],
                stdin=source,
                stdout=both,
                stderr=both,
                start_new_session=True,
                preexec_fn=None if job["is_isolated"] else _die_with_keeper,  # noqa: PLW1509  there is one thread
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return {"code": None, "error": str(error)}
        finally:
            os.close(source)
            os.close(both)
        self._pid = self._child.pid
        child = {"pid": self._pid, "started": processes.started(self._pid)}
        Path(job["child"]).write_text(json.dumps(child))
        self._follow(reader, wake_reader)
        self._clear()
        self._drain(reader)
        return {
            "code": self._code,
            "interrupted": self._interrupted,
            "killed": self._killed,
            "timed_out": self._timed_out,
        }

    def _follow(self, reader: int, wake_reader: int) -> None:
        until = time.monotonic() + self._job["timeout_s"]
        while True:
            ready, _, _ = select.select([reader, wake_reader], [], [], _LOOK_S)
            if wake_reader in ready and self._heard(os.read(wake_reader, 4096)):
                return
            if reader in ready:
                self._log.write(os.read(reader, _READ))
            if not self._is_heard:
                self._ask()
            self._reserve.look()
            self._states.watch()
            if time.monotonic() > until and not self._timed_out:
                self._timed_out = True
                self._log.write(b"\nThe phase ran longer than %d s and is interrupted.\n" % self._job["timeout_s"])
                self._interrupt()

    def _heard(self, numbers: bytes) -> bool:
        """Whether the program has ended."""
        if signal.SIGINT in numbers or signal.SIGTERM in numbers:
            self._interrupt()
        if signal.SIGUSR1 in numbers:
            self._killed = True
            self._kill()
        if signal.SIGCHLD in numbers:
            self._reap()
        return self._code is not None

    def _interrupt(self) -> None:
        """Once: a second interrupt would make terraform end without its state."""
        if not self._interrupted:
            self._interrupted = True
            self._ask()

    def _ask(self) -> None:
        """A box may not have begun its program yet."""
        self._is_heard = processes.interrupt(self._pid, is_boxed=self._job["is_boxed"])

    def _kill(self) -> None:
        processes.kill(self._pid)

    def _reap(self) -> bool:
        """Takes in who has ended; whether there is nobody left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._pid:
                self._code = os.waitstatus_to_exitcode(status)

    def _clear(self) -> None:
        """Kills whoever is left: orphans of the program are the keeper's children, however often they forked."""
        self._kill()
        me = str(os.getpid())
        while not self._reap():
            for entry in os.scandir("/proc"):
                if entry.name.isdecimal():
                    with contextlib.suppress(OSError, IndexError):
                        about = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                        if about[1] == me and about[0] != "Z":
                            os.kill(int(entry.name), signal.SIGKILL)
            time.sleep(0.005)

    def _drain(self, reader: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(reader, _READ):
                self._log.write(chunk)


def main() -> int:
    """0 once what came of it is written."""
    try:
        job = json.load(sys.stdin.buffer)
    except ValueError:
        return 2  # the listener died before it had said what to do: nothing was begun
    os.umask(0o077)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    end = Exit(Path(job["exit"]))
    log = Log(Path(job["log"]), job["log_most"], job.pop("secrets"))
    states = States(job)
    try:
        reserve = Reserve(Path(job["exit"]).with_name(RESERVE), job["states"])
    except OSError as error:
        end.write({"code": None, "error": f"the host's disk has no room for its state: {error}"})
        return 0
    facts = Program(job, log, states, reserve).run()
    reserve.give_back()
    log.close()
    states.last()
    end.write({**facts, "spool_error": states.error})
    return 0


if __name__ == "__main__":
    sys.exit(main())
