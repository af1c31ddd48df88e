"""A program and those who came from it, by the session that it began; also inside a bubblewrap.

Standard library alone, without a module of ours: the keeper of an apply loads
it by its path, in a bare interpreter.
"""

import contextlib
import fcntl
import os
import signal
from collections.abc import Container
from pathlib import Path

#: Bytes; what Linux gives to everybody.
PIPE = 1 << 20


def widened(pipe: int) -> None:
    """Room for what a program prints while nobody reads; what comes in larger pieces costs less. A host may not give it."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)


def filled(text: str) -> int:
    """For a program's standard input: a file in memory with this text, or nothing. The descriptor is the caller's."""
    if not text:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    handle = os.memfd_create("given", os.MFD_CLOEXEC)
    left = memoryview(text.encode("utf-8", "surrogateescape"))
    while left:
        left = left[os.write(handle, left) :]
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def started(pid: int) -> str:
    """When a process began, in the kernel's ticks: with the pid it names one process. Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def session(leader: int, began: str = "") -> list[int]:
    """Who still runs in the session that a program began. `began`: the leader counts only if it is still that process."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                about = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                pid = int(entry.name)
                is_leader = pid != leader or not began or about[19] == began
                if about[3] == str(leader) and about[0] != "Z" and is_leader:
                    found.append(pid)
    return found


def interrupt(leader: int, *, is_boxed: bool) -> bool:
    """One SIGINT for a program and its process group; whether it reached anybody.

    A boxed one is a bubblewrap, which would die of it and take the program
    along, or leave it unheard: so it goes to those inside, but for their init.
    Where the program does not run yet, it is for the caller to ask again.
    """
    if not is_boxed:
        with contextlib.suppress(OSError):
            os.killpg(leader, signal.SIGINT)
        return True
    inside = [pid for pid in session(leader) if pid != leader and not _is_init(pid)]
    for pid in inside:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGINT)
    return bool(inside)


def kill(leader: int) -> None:
    """Kills a program and its process group; with its init ends everything in a box."""
    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGKILL)


def _is_init(pid: int) -> bool:
    """Whether it is the first process of a pid namespace of its own."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == "1"


def users(wanted: Container[int]) -> dict[int, list[int]]:
    """Of these user ids those that have processes, and which."""
    found: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, KeyError, IndexError):
                lines = Path(entry.path, "status").read_text().splitlines()
                facts = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
                uid = int(facts["Uid"][0])
                if uid in wanted and facts["State"][0] != "Z":
                    found.setdefault(uid, []).append(int(entry.name))
    return found


def boxes(work: Path) -> list[tuple[int, str]]:
    """Every bubblewrap, its init too, that was given a run's folder below `work`, and that folder."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, StopIteration):
                if Path(entry.path, "comm").read_text().strip() == "bwrap":
                    words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                    bound = (os.fsdecode(words[at + 1]) for at, word in enumerate(words) if word == b"--bind")
                    found.append((int(entry.name), next(path for path in bound if Path(path).parent == work)))
    return found
