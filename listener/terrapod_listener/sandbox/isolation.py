"""How runs are kept from the listener, from the host's secrets and from one another.

`bubblewrap`: a run sees the host's files read-only, without home folders, without
the listener's home, other runs or whatever `hide` names, in process and IPC
namespaces of its own, which end with it. Where the listener is root, the run is
a user of its own besides (`bubblewrap+user`). `user`: a user of its own alone,
with a /tmp of its own; for a root listener without bubblewrap. `none`: as the
listener's user, in a folder and a process group of its own.
"""

import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from terrapod_listener.sandbox import launching
from terrapod_listener.sandbox.launching import Start
from terrapod_listener.supervise import files, processes

Kind = Literal["bubblewrap", "user", "none"]
#: What no run needs of a host, and what secrets are found in most often.
HIDDEN = ("/home", "/root", "/run", "/etc/terrapod", "/var/lib/terrapod", "/var/lib/terrapod-listener")
#: Files that may be links into what is hidden, and are needed all the same.
_NEEDED = ("/etc/resolv.conf", "/etc/hosts", "/etc/localtime", "/etc/ssl/certs/ca-certificates.crt")
#: Each run has its own.
_TMP = ("/tmp", "/var/tmp")  # noqa: S108
#: User ids from the first on that may be given to runs.
USERS_MOST = 1000
#: Which of them are in use, on the whole host: a user's processes are killed when its run is over.
_LOCKS = Path("/run/terrapod-users")
_PROBE_S = 20.0
_PASSWD = "passwd"  # noqa: S105  a file's name


class Unavailable(Exception):
    """The host does not offer what the settings ask for."""


@dataclass(frozen=True)
class Settings:
    """What of the listener's settings this module needs; `readable` and `writable` are absolute paths."""

    want: Literal["auto", "bubblewrap", "user", "none"] = "auto"
    first_uid: int = 90_000
    slots: int = 1
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()


@dataclass
class Isolation:
    """What this host offers. `name` is what status, heartbeat and the run's log say; `why` what is missing for more."""

    kind: Kind
    home: Path
    settings: Settings
    why: str = ""
    _cells: "dict[int, Cell]" = field(default_factory=dict)

    @property
    def has_users(self) -> bool:
        return self.kind != "none" and os.geteuid() == 0

    @property
    def name(self) -> str:
        return "bubblewrap+user" if self.kind == "bubblewrap" and self.has_users else self.kind

    def cell(self, folder: Path, slot: int | None = None) -> "Cell":
        """The place of one run. `slot`: that which an earlier life of this listener gave it. Raises Unavailable."""
        cell = Cell(self, folder, 0)
        if not self.has_users:
            cell.slot = next(number for number in range(len(self._cells) + 1) if number not in self._cells)
        elif slot is None:
            cell.slot, cell.lock = self._free_user()
            _end_user(self.uid(cell.slot))  # whom a listener that was killed may have left
        else:  # its keeper holds the user
            cell.slot, cell.lock = slot, _lock(self.uid(slot))
        self._cells[cell.slot] = cell
        return cell

    def can_start(self, program: Path) -> bool:
        """Whether a run may start a program: its user needs a way to it. A box opens what it hides on that way."""
        if not self.has_users:
            return os.access(program, os.X_OK)
        opened = self._hidden() if self.kind == "bubblewrap" else []
        path = Path(os.path.realpath(program))
        way = [each for each in path.parents if not any(each.is_relative_to(place) for place in opened)]
        return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *way))

    def _hidden(self) -> list[str]:
        """The resolved places that a box shows empty, or has of its own."""
        places = (*HIDDEN, *self.settings.hide, str(self.home), *_TMP)
        return list(dict.fromkeys(os.path.realpath(each) for each in places))

    def let_go(self, cell: "Cell") -> None:
        self._cells.pop(cell.slot, None)
        if cell.lock is not None:
            os.close(cell.lock)
            cell.lock = None

    def uid(self, slot: int) -> int:
        return self.settings.first_uid + slot

    def _free_user(self) -> tuple[int, int]:
        """A slot whose user no run of any listener of this host has, and the lock that says so."""
        for slot in range(USERS_MOST):
            if slot not in self._cells and (lock := _lock(self.uid(slot))) is not None:
                return slot, lock
        raise Unavailable(f"none of the {USERS_MOST} user ids from {self.settings.first_uid} on is free")

    def clear(self) -> None:
        """Kills whom runs of an earlier life left, but for those of the cells in use. To be called in a thread."""
        if self.kind == "bubblewrap":
            kept = {str(cell.folder) for cell in self._cells.values()}
            _end_boxes(self.home, lambda folder: folder not in kept)
        if self.has_users:
            for uid in processes.users(range(self.uid(0), self.uid(USERS_MOST))):
                if uid - self.uid(0) not in self._cells and (lock := _lock(uid)) is not None:
                    _end_user(uid)
                    os.close(lock)


@dataclass
class Cell:
    """Where and as whom the programs of one run are started. `engine`: files or folders that they run from.

    `lock` holds its user for it: whoever has a copy of the descriptor.
    """

    isolation: Isolation
    folder: Path
    slot: int
    engine: list[Path] = field(default_factory=list)
    lock: int | None = None

    @property
    def is_boxed(self) -> bool:
        """Whether a bubblewrap stands between us and the program: see `processes.interrupt`."""
        return self.isolation.kind == "bubblewrap"

    def hand_over(self) -> None:
        """Makes the folder the run's own. To be called in a thread, before anything of the run's has been started."""
        if not self.isolation.has_users:
            return
        uid = self.isolation.uid(self.slot)
        mine = f"terrapod-run:x:{uid}:{uid}:a run:{self.folder / 'home'}:/bin/sh\n"
        (self.folder / _PASSWD).write_text(Path("/etc/passwd").read_text() + mine)  # ssh asks who it is
        (self.folder / _PASSWD).chmod(0o644)
        for place, folders, names in os.walk(self.folder):
            for name in (*folders, *names):
                os.chown(Path(place, name), uid, uid, follow_symlinks=False)
        os.chown(self.folder, uid, uid)
        self.folder.chmod(0o700)

    def start(
        self,
        program: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        *,
        scope: Sequence[str] = (),
        outlives: bool = False,
    ) -> Start:
        """How a program is begun, as the leader of its session; `outlives`: whoever starts it may die before it.

        `scope` is what limits it. No helper on the way has anything of `env` in its own environment. Raises Unavailable.
        """
        kind, uid = self.isolation.kind, self.isolation.uid(self.slot) if self.isolation.has_users else None
        if kind == "none" and not scope:
            return launching.directly(program, cwd, env)
        last = launching.launcher(self.folder if kind == "user" else None, uid, is_boxed=self.is_boxed)
        box = [*self._bubblewrap(outlives=outlives), "--"] if self.is_boxed else []
        return launching.behind([*scope, *box], last, program, cwd, env)

    def clear(self) -> None:
        """Nobody of the run is left when this returns. To be called in a thread."""
        if self.is_boxed:
            _end_boxes(self.isolation.home, lambda folder: folder == str(self.folder))
        if self.isolation.has_users:
            uid = self.isolation.uid(self.slot)
            self.lock = self.lock if self.lock is not None else _lock(uid)
            if self.lock is not None:
                _end_user(uid)

    def _bubblewrap(self, *, outlives: bool) -> list[str]:
        argv = [_found("bwrap"), "--unshare-pid", "--unshare-ipc", "--unshare-cgroup-try"]
        argv += [] if outlives else ["--die-with-parent"]
        if self.isolation.has_users:
            argv += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            argv += ["--unshare-user"]
        argv += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
        mounts = sorted(self._mounts(), key=lambda mount: len(Path(mount[-1]).parts))  # what holds others comes first
        hidden = [place for kind, *_, place in mounts if kind == "--tmpfs"]
        for mount in mounts:
            argv += [
                word for parent in _inside([*hidden, *_TMP], mount[-1]) for word in ("--perms", "0755", "--dir", parent)
            ]
            argv += mount
        return [*argv, *(word for place in hidden for word in ("--remount-ro", place))]

    def _mounts(self) -> Iterator[tuple[str, ...]]:
        """bubblewrap's own words. Its sources are the host's paths, whatever is mounted over them before."""
        isolation, folder = self.isolation, str(self.folder)
        hidden = [*HIDDEN, *isolation.settings.hide, str(isolation.home)]
        for place in dict.fromkeys(os.path.realpath(each) for each in hidden):
            if Path(place).is_dir():
                yield ("--tmpfs", place)
            elif Path(place).exists():
                yield ("--ro-bind", "/dev/null", place)
        for place in _TMP:
            yield ("--bind", f"{folder}/tmp", place)  # noqa: S108
        if isolation.has_users:
            yield ("--ro-bind", f"{folder}/{_PASSWD}", "/etc/passwd")
        below = tuple(f"{os.path.realpath(each)}/" for each in (*hidden, *_TMP))
        for needed in (*map(os.path.realpath, _NEEDED), *launching.interpreters_files()):
            if needed.startswith(below):
                yield ("--ro-bind-try", needed, needed)
        yield ("--ro-bind", str(launching.PROGRAM), launching.INSIDE)
        for readable in (*isolation.settings.readable, *map(str, self.engine)):
            yield ("--ro-bind-try", readable, readable)
        for writable in isolation.settings.writable:
            yield ("--bind-try", writable, writable)
        yield ("--bind", folder, folder)


def _inside(hidden: list[str], place: str) -> list[str]:
    """The folders on the way to a place that lie in what is hidden, from the top: bubblewrap would close them to others."""
    parents = [str(parent) for parent in reversed(Path(place).parents)]
    return [parent for parent in parents if any(parent.startswith(f"{each}/") for each in hidden)]


def find(home: Path, settings: Settings) -> Isolation:
    """The strongest that the host offers, or the one that is asked for. To be called in a thread. Raises Unavailable."""
    why = []
    kinds: tuple[Kind, ...] = ("bubblewrap", "user") if settings.want == "auto" else ()
    if settings.want in ("bubblewrap", "user"):
        kinds = (settings.want,)
    for kind in kinds:
        isolation = Isolation(kind, home, settings)
        try:
            _prepare(isolation)
            _probe(isolation)
        except (Unavailable, OSError, subprocess.SubprocessError) as error:
            why.append(f"{kind}: {error}")
        else:
            isolation.why = "; ".join(why)
            return isolation
    if settings.want in ("bubblewrap", "user"):
        raise Unavailable("; ".join(why))
    return Isolation("none", home, settings, "; ".join(why))


def _prepare(isolation: Isolation) -> None:
    """Raises Unavailable."""
    if isolation.kind == "user":
        if os.geteuid() != 0:
            raise Unavailable("the listener is not root")
        if isolation.home.resolve().is_relative_to("/tmp") or isolation.home.resolve().is_relative_to("/var/tmp"):  # noqa: S108
            raise Unavailable(f"{isolation.home} is below a folder that runs have their own of")
        for folder in (isolation.home, isolation.home / "work", isolation.home / "engines"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o711)  # to be passed through, not to be listed
    if isolation.has_users:
        for slot in range(isolation.settings.slots):
            with contextlib.suppress(KeyError):
                name = pwd.getpwuid(isolation.uid(slot)).pw_name
                raise Unavailable(f"user id {isolation.uid(slot)} belongs to {name}: set run_uid to a free range")


def _probe(isolation: Isolation) -> None:
    """Does it once for real. Raises Unavailable where it does not work, OSError, SubprocessError."""
    folder = isolation.home / "work" / f".probe-{secrets.token_hex(4)}"
    for name in ("tmp", "home"):
        (folder / name).mkdir(parents=True, mode=0o700)
    cell = isolation.cell(folder)  # a user of its own, which no other listener's run ends
    try:
        cell.hand_over()
        words = ["/bin/sh", "-c", 'echo "$PROBE" > "$0"', f"{folder}/tmp/probe"]  # noqa: S108
        start = cell.start(words, folder, {"PATH": os.defpath, "PROBE": "here"})
        done = subprocess.run(  # noqa: S603  our own words
            start.argv, cwd=start.cwd, env=start.env, input=start.given.encode(), stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, timeout=_PROBE_S, check=False,
        )  # fmt: skip
        if done.returncode or not (folder / "tmp" / "probe").exists():
            raise Unavailable(done.stderr.decode("utf-8", "replace").strip()[:300] or f"exit code {done.returncode}")
    finally:
        isolation.let_go(cell)
        files.remove_folder(folder)


def _found(name: str) -> str:
    path = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        raise Unavailable(f"{name} is not installed")
    return path


def _lock(uid: int) -> int | None:
    """Takes a user for this process and those who get the descriptor; None where another listener's run has it."""
    _LOCKS.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(_LOCKS / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _end_boxes(home: Path, which: Callable[[str], bool]) -> None:
    """Kills boxes by the run's folder that they were given; with their init all inside is killed."""
    for pid, folder in processes.boxes(home / "work"):
        if which(folder):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _end_user(uid: int) -> None:
    """Kills a user's processes until there are none: one may fork while another is killed."""
    while left := processes.users([uid]):
        for pid in left[uid]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
