"""Provider packages that runs share: kept by their digest, copied into each run's folder, looked at on the way.

A run has a plugin cache of its own, inside its folder, and never sees the shared one. What is kept came out of some
run's hands, so nothing about it is believed: a package is named by its `h1:` digest, which is worked out anew of each
copy, and it is put only before runs whose own lock file lists that very digest. A run can add what it likes; to another
run it is only what that one's lock file asks for by content. Copies, never links: whoever can write to a linked file
would write to that of all other runs.
"""

import base64
import contextlib
import hashlib
import itertools
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from terrapod_listener.config import Config
from terrapod_shared import programs

log = logging.getLogger(__name__)
#: The run's own cache, below its folder.
OWN = "plugins"
LOCK = ".terraform.lock.hcl"
_LOCK_MOST = 1 << 20
_PACKAGE_MOST = 4 << 30
_FILES_MOST = 10_000
_DEPTH_MOST = 20
_CHUNK = 1 << 20
_LEFT_S = 3600.0
#: Providers of one lock file that are looked at; real ones have a few dozen.
_LOCKED_MOST = 500
_HEAD = re.compile(r'provider[ \t]+"([^"]+)"[ \t]*\{')
_ADDRESS = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]*(?::\d+)?/[0-9A-Za-z_-]+/[0-9A-Za-z_-]+")
_VERSION = re.compile(r'^[ \t]*version[ \t]*=[ \t]*"(\d[0-9A-Za-z.+-]*)"', re.MULTILINE)
_H1 = re.compile(r'"(h1:[A-Za-z0-9+/]{43}=)"')
_KEPT = re.compile(r"[0-9a-f]{64}")
_PROGRAM = "terraform-provider-"


class NotKept(Exception):
    """Says why a folder is no package that may be kept."""


@dataclass(frozen=True)
class Locked:
    """A provider of a lock file: where its package lies below a plugin cache, and its `h1:` digests."""

    place: tuple[str, ...]
    digests: tuple[str, ...]


def locked(text: str) -> list[Locked]:
    """The providers of a lock file that have digests of unpacked packages."""
    system, arch = programs.here()
    found: dict[tuple[str, ...], Locked] = {}
    for address, body in itertools.islice(_blocks(text), _LOCKED_MOST):
        version, digests = _VERSION.search(body), tuple(dict.fromkeys(_H1.findall(body)))
        if version and digests and _ADDRESS.fullmatch(address):
            place = (*address.split("/"), version[1], f"{system}_{arch}")
            found.setdefault(place, Locked(place, digests))
    return list(found.values())


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """Address and body of each provider's block, in one pass: a block that is not ended is none."""
    address, body = "", list[str]()
    for line in text.split("\n"):
        if head := _HEAD.match(line):
            address, body = head[1], [line[head.end() :]]
        elif line.startswith("}") and address:
            yield address, "\n".join(body)
            address = ""
        elif address:
            body.append(line)


class Plugins:
    """Of one run. `most`: bytes of all that is kept; 0: nothing is kept or offered. Its methods are for threads."""

    def __init__(self, kept: Path, own: Path, most: int) -> None:
        self._kept, self._own, self._most = kept, own, most

    @classmethod
    def of(cls, home: Path, folder: Path, config: Config) -> Self:
        return cls(home / "providers", folder / OWN, config.plugin_cache_bytes if config.plugin_cache else 0)

    def offer(self, module: Path) -> int:
        """Before `init`: copies of what the run's lock file asks for and is here; how many. Never fails a run."""
        count = 0
        for entry in self._entries(module):
            for digest in entry.digests:
                if self._offered(entry, digest):
                    count += 1
                    break
        return count

    def _offered(self, entry: Locked, digest: str) -> bool:
        kept, target = self._kept / _name(digest), self._own.joinpath(*entry.place)
        if not os.path.lexists(kept):
            return False
        if kept.is_symlink() or not kept.is_dir():
            _remove(kept)
            return False
        part = self._own / ".part"
        _remove(part)
        try:
            if _copy(self._kept.resolve(), (kept.name,), part, _PACKAGE_MOST, 0o755) != digest:
                raise NotKept("it is not what it was when it was kept")
            target.parent.mkdir(parents=True, exist_ok=True)
            part.rename(target)
            os.utime(kept)
            return True
        except FileNotFoundError:  # dropped meanwhile, for room
            _remove(part)
        except NotKept as error:
            log.warning("the provider %s in the cache is thrown away: %s", "/".join(entry.place), error)
            _remove(part)
            _remove(kept)
        except OSError as error:
            log.warning("the provider %s is not taken from the cache: %s", "/".join(entry.place), error)
            _remove(part)
        return False

    def take(self, module: Path) -> int:
        """After `init`, before any provider has run: keeps what the run has that is not here yet; how many."""
        count = 0
        for entry in self._entries(module):
            if any((self._kept / _name(digest)).is_dir() for digest in entry.digests):
                continue
            try:
                count += self._taken(entry)
            except FileNotFoundError:
                continue  # not in the cache of the run: built in, or of a folder of its own
            except (NotKept, OSError) as error:
                log.warning("the provider %s is not kept: %s", "/".join(entry.place), error)
        if count:
            self._make_room()
        return count

    def _taken(self, entry: Locked) -> bool:
        self._kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=self._kept))
        try:
            digest = _copy(self._own, entry.place, part / "package", min(self._most, _PACKAGE_MOST), 0o555)
            if digest not in entry.digests:
                raise NotKept(f"its digest {digest} is not in the lock file")
            try:
                (part / "package").rename(self._kept / _name(digest))
            except OSError:  # another run was quicker with the same
                return False
            return True
        finally:
            _remove(part)

    def _entries(self, module: Path) -> list[Locked]:
        if not self._most:
            return []
        try:
            return locked(_read(module / LOCK))
        except FileNotFoundError:
            return []
        except (OSError, NotKept) as error:
            log.warning("the lock file cannot be read: %s", error)
            return []

    def _make_room(self) -> None:
        """The longest unused go first. What an earlier life left half done goes too."""
        found: list[tuple[float, int, Path]] = []
        for path in self._kept.iterdir():
            with contextlib.suppress(FileNotFoundError):
                used = path.lstat().st_mtime
                if _KEPT.fullmatch(path.name):
                    found.append((used, _size(path), path))
                elif time.time() - used > _LEFT_S:
                    _remove(path)
        size = sum(each[1] for each in found)
        for _, own, path in sorted(found):
            if size <= self._most:
                return
            _remove(path)
            size -= own


def _name(digest: str) -> str:
    """A folder's name, from `h1:` and 32 bytes in base64."""
    return base64.b64decode(digest.removeprefix("h1:")).hex()


def _read(lock: Path) -> str:
    """A lock file is the run's: it may be anything."""
    number = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(number, "rb") as file:  # noqa: PTH123  a number, no path
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise NotKept("it is no file")
        raw = file.read(_LOCK_MOST + 1)
    if len(raw) > _LOCK_MOST:
        raise NotKept(f"it is larger than {_LOCK_MOST} bytes")
    return raw.decode("utf-8", "replace")


@dataclass
class _Copying:
    """A package on its way: bytes and files that are still allowed, and what came by so far."""

    bytes_left: int
    mode: int
    files_left: int = _FILES_MOST
    lines: list[tuple[bytes, str]] = field(default_factory=list)
    is_program: bool = False

    @property
    def digest(self) -> str:
        """As Go's `dirhash.Hash1` has it: the names in the order of their bytes."""
        text = b"".join(f"{sha256}  ".encode() + name + b"\n" for name, sha256 in sorted(self.lines))
        return f"h1:{base64.b64encode(hashlib.sha256(text).digest()).decode()}"


def _copy(root: Path, place: tuple[str, ...], target: Path, most: int, mode: int) -> str:
    """Copies a package's folder, below `root`, to a new one; the `h1:` digest of what was written.

    No link is followed. Raises NotKept for what no package holds or that
    cannot run here, FileNotFoundError where it is not there, OSError.
    """
    copying = _Copying(most, mode)
    with _opened(root, place) as folder:
        _copy_folder(folder, target, b"", copying)
    if not copying.is_program:
        raise NotKept("there is no program in it")
    return copying.digest


@contextlib.contextmanager
def _opened(root: Path, place: tuple[str, ...]) -> Iterator[int]:
    """The folder's descriptor, reached without a link."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    number = os.open(root, flags)
    try:
        for name in place:
            following = os.open(name, flags, dir_fd=number)
            os.close(number)
            number = following
        yield number
    finally:
        os.close(number)


def _copy_folder(folder: int, target: Path, prefix: bytes, copying: _Copying) -> None:
    target.mkdir(mode=0o755)
    for name in sorted(os.listdir(folder)):
        raw = os.fsencode(name)
        kind = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        copying.files_left -= 1
        if copying.files_left < 0 or b"\n" in raw:
            raise NotKept("it holds too many files, or one with a line break in its name")
        if stat.S_ISDIR(kind) and prefix.count(b"/") < _DEPTH_MOST:
            with _opened_below(folder, name) as inner:
                _copy_folder(inner, target / name, prefix + raw + b"/", copying)
        elif stat.S_ISREG(kind):
            _copy_file(folder, name, target / name, prefix + raw, copying)
        else:
            raise NotKept(f"{name!r} in it is neither file nor folder")


@contextlib.contextmanager
def _opened_below(folder: int, name: str) -> Iterator[int]:
    number = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    try:
        yield number
    finally:
        os.close(number)


def _copy_file(folder: int, name: str, target: Path, path: bytes, copying: _Copying) -> None:
    digest = hashlib.sha256()
    number = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with open(number, "rb") as source, target.open("xb") as written:  # noqa: PTH123  a number, no path
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise NotKept(f"{name!r} in it is no file")
        head = b""
        while chunk := source.read(_CHUNK):
            head = head or chunk[: programs.HEAD]
            copying.bytes_left -= len(chunk)
            if copying.bytes_left < 0:
                raise NotKept("it is too large")
            digest.update(chunk)
            written.write(chunk)
    if b"/" not in path and name.startswith(_PROGRAM):
        if not programs.is_runnable(head, programs.here()):
            # a digest in the lock file may be that of another platform's package
            raise NotKept(f"{name} is not built for {'/'.join(programs.here())}")
        copying.is_program = True
    target.chmod(copying.mode)  # no digest covers it: a provider without its x bit would fail all later runs
    copying.lines.append((path, digest.hexdigest()))


def _size(folder: Path) -> int:
    return sum((Path(here) / name).lstat().st_size for here, _, names in os.walk(folder) for name in names)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            gone = path.with_name(f".part-{path.name}-{time.monotonic_ns()}")
            path.rename(gone)  # no other run finds half of it
            shutil.rmtree(gone, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
