"""Objects as files: written beside, synced, and renamed into place.

Folders are of mode 0700 and files of 0600. `.parts` below the root holds what
is being written, and folders that are being deleted; several processes may
use one root.
"""

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from terrapod_server.store.port import (
    CHUNK,
    EVERYTHING,
    Larger,
    Made,
    Span,
    Store,
    Stored,
    Tally,
    checked,
    checked_prefix,
)
from terrapod_server.store.threads import Threads
from terrapod_shared.errors import NotFound, Unavailable
from terrapod_shared.operator_errors import make_folder

#: Bytes that go to a thread at once. Measured: 1 and 4 MiB are no faster, the digests take the time.
_BATCH = CHUNK
#: What is read while a file is opened: a header and a chunk of an encrypted one.
_AT_OPEN = CHUNK + 64
_THREADS = 8
#: A part that nobody has written to for so long is of a process that is dead.
_LEFT_S = 86400.0
_GONE = "gone-"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
#: How often a folder is made again that another process deletes meanwhile.
_TRIES = 10


class FileStore(Store):
    """Below one folder, which nobody else may read. Keeps the promise of `port.Store`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts = root / ".parts"
        self._threads = Threads("store", _THREADS)
        make_folder(root, "the folder of the store (`storage.path`)")
        root.chmod(0o700)
        make_folder(self._parts, "a folder of the store")
        self._tidy()

    def _tidy(self) -> None:
        """Removes what a process left that was killed, and nothing of one that lives."""
        for left in self._parts.iterdir():
            if left.name.startswith(_GONE):
                shutil.rmtree(left, ignore_errors=True)
                continue
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > _LEFT_S:
                    left.unlink()

    def _path(self, key: str) -> Path:
        return self._root / checked(key)

    def _folder(self, prefix: str) -> Path:
        return self._root / checked_prefix(prefix)[:-1]

    async def put(
        self, key: str, chunks: AsyncIterator[bytes], *, durable: bool = True, digests: bool = True
    ) -> Stored:
        path = self._path(key)
        part = _Part(self._parts / secrets.token_hex(16), Tally(digests=digests))
        batch: list[bytes] = []
        size = 0
        try:
            async for chunk in chunks:
                if size >= _BATCH:
                    await self._threads.run(part.write, batch)
                    batch, size = [], 0
                batch.append(chunk)
                size += len(chunk)
            # a small object has come to here without a hop, and needs but one
            await self._threads.run(part.finish, batch, path, durable=durable)
        except BaseException:
            if part.is_begun:
                await self._threads.run(part.abandon)
            raise
        return part.tally.stored()

    @contextlib.asynccontextmanager
    async def opened(self, key: str, *spans: Span) -> AsyncIterator["_File"]:
        file = _File(self._threads)
        try:
            await self._threads.run(file.open, self._path(key), spans[0] if spans else EVERYTHING)
            yield file
        finally:
            if file.is_open:
                self._threads.later(file.close)  # in a thread: the last close of a deleted file frees its blocks

    async def whole(self, key: str, most: int, made: Made = bytes, *, version: str = "") -> bytes:
        del version
        return await self._threads.run(lambda: made(_all(self._path(key), key, most)))

    async def size(self, key: str) -> int:
        return await self._threads.run(_size, self._path(key))

    async def delete(self, key: str) -> None:
        await self._threads.run(_delete, self._path(key))

    async def delete_prefix(self, prefix: str) -> None:
        await self._threads.run(self._delete_folder, self._folder(prefix))

    def _delete_folder(self, folder: Path) -> None:
        gone = self._parts / f"{_GONE}{secrets.token_hex(16)}"
        try:
            # at once for all others; the slash is for the kernel: a file of that name is no folder
            os.rename(f"{folder}/", gone)  # noqa: PTH104  a Path has no slash at its end
        except (FileNotFoundError, NotADirectoryError):
            return
        for _ in range(_TRIES):  # a put that had found its folder before it was moved may still come into it
            with contextlib.suppress(OSError):
                shutil.rmtree(gone)
                return
        shutil.rmtree(gone)

    async def keys(self, prefix: str) -> list[str]:
        return await self._threads.run(self._list, self._folder(prefix))

    def _list(self, folder: Path) -> list[str]:
        found = (Path(at, name) for at, _, names in os.walk(folder) for name in names)
        return sorted(str(path.relative_to(self._root)) for path in found)

    async def healthy(self) -> bool:
        return await self._threads.run(self._probe)

    def _probe(self) -> bool:
        part = _Part(self._parts / secrets.token_hex(16), Tally(digests=False))
        try:
            part.write([b"probe"])
        except (OSError, Unavailable):
            return False
        finally:
            part.abandon()
        return True

    async def close(self) -> None:
        self._threads.close()


class _Part:
    """A file under way; used in threads, one at a time."""

    def __init__(self, path: Path, tally: Tally) -> None:
        self.tally = tally
        self.is_begun = False
        self._path = path
        self._handle = -1

    def write(self, batch: list[bytes]) -> None:
        with _room():
            if not self.is_begun:
                self.is_begun = True
                self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            for chunk in batch:
                self.tally.count(chunk)
                rest = memoryview(chunk)
                while rest:  # a disk that is nearly full takes a piece and says so
                    rest = rest[os.write(self._handle, rest) :]

    def finish(self, batch: list[bytes], path: Path, *, durable: bool) -> None:
        self.write(batch)
        with _room():
            if durable:
                os.fsync(self._handle)
            self._close()
            changed = self._move(path)
            for folder in changed if durable else ():
                _sync(folder)

    def _move(self, path: Path) -> list[Path]:
        """To its place; the folders that have new entries."""
        made: list[Path] = []
        for left in reversed(range(_TRIES)):
            try:
                self._path.replace(path)
            except FileNotFoundError:  # the folder is not there yet, or no longer
                if not left:
                    raise
                made += _make(path.parent)
            else:
                break
        return [path.parent, *made]

    def _close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)

    def abandon(self) -> None:
        self._close()
        self._path.unlink(missing_ok=True)


class _File:
    """An open file; `port.Opened`."""

    def __init__(self, threads: Threads) -> None:
        self.size = 0
        self._threads = threads
        self._handle = -1
        self._at = 0
        self._first = b""

    def open(self, path: Path, span: Span) -> None:
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except _ABSENT:
            raise NotFound from None
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            raise NotFound
        self.size = status.st_size
        self._at = span[0]
        self._first = self._read(self._at, min(_AT_OPEN, self.size if span[1] is None else max(0, span[1] - span[0])))
        if self._at == 0 and len(self._first) == self.size:  # all of it: no later read needs the file
            self.close()

    def _read(self, offset: int, size: int) -> bytes:
        if offset >= self.size:  # and may be more than the kernel takes
            return b""
        found = os.pread(self._handle, size, offset)
        while len(found) < size and (more := os.pread(self._handle, size - len(found), offset + len(found))):
            found += more
        return found

    async def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        begin = offset - self._at
        if begin >= 0 and begin + size <= len(self._first):
            return self._first[begin : begin + size]
        return await self._threads.run(self._read, offset, size)

    @property
    def is_open(self) -> bool:
        return self._handle >= 0

    def close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            message = "the store is full"
            raise Unavailable(message) from error
        raise


def _all(path: Path, key: str, most: int) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY)
    except _ABSENT:
        raise NotFound from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise NotFound
        if status.st_size > most:
            raise Larger(key, most)
        found = os.read(handle, status.st_size)
        while len(found) < status.st_size and (more := os.read(handle, status.st_size - len(found))):
            found += more
        return found
    finally:
        os.close(handle)


def _size(path: Path) -> int:
    try:
        status = path.stat()
    except _ABSENT:
        raise NotFound from None
    if not stat.S_ISREG(status.st_mode):
        raise NotFound
    return status.st_size


def _delete(path: Path) -> None:
    with contextlib.suppress(*_ABSENT):
        path.unlink()


def _make(folder: Path) -> list[Path]:
    """Makes a folder and those above it; the ones that have a new entry by that.

    `Path.mkdir(parents=True)` gives those above the usual mode, which lets others read.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return []
    except FileNotFoundError:
        return [*_make(folder.parent), *_make(folder)]
    return [folder.parent]


def _sync(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, with all in it
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
