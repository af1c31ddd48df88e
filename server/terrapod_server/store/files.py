"""Objects as files: written beside, synced, and renamed into place."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from terrapod_server.store.port import CHUNK, Stored, checked, gathered
from terrapod_shared.errors import NotFound


class FileStore:
    """Below one folder, which nobody else may read. Keeps the promise of `port.Store`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts = root / ".parts"
        self._parts.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._parts.iterdir():  # of a process that was killed in the middle
            left.unlink()

    def _path(self, key: str) -> Path:
        return self._root / checked(key)

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, durable: bool = True) -> Stored:
        path = self._path(key)
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        file = await asyncio.to_thread(self._begin)

        def write(chunk: bytes) -> None:
            sha256.update(chunk)
            md5.update(chunk)
            file.write(chunk)

        try:
            async for chunk in gathered(chunks):
                size += len(chunk)
                await asyncio.to_thread(write, chunk)
            await asyncio.to_thread(_finish, file, path, durable)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(_abandon, file))
            raise
        return Stored(size, sha256.hexdigest(), md5.hexdigest())

    def _begin(self) -> IO[bytes]:
        path = self._parts / secrets.token_hex(16)
        return open(path, "xb", buffering=0, opener=_private)  # noqa: PTH123  Path.open takes no opener

    async def get(self, key: str, *, offset: int = 0, limit: int | None = None) -> AsyncIterator[bytes]:
        path = self._path(key)
        file = await asyncio.to_thread(_open, path, offset)
        left = limit
        try:
            while left is None or left > 0:
                chunk = await asyncio.to_thread(file.read, CHUNK if left is None else min(CHUNK, left))
                if not chunk:
                    return
                if left is not None:
                    left -= len(chunk)
                yield chunk
        finally:
            file.close()

    async def size(self, key: str) -> int:
        try:
            return (await asyncio.to_thread(self._path(key).stat)).st_size
        except FileNotFoundError:
            raise NotFound from None

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    async def delete_prefix(self, prefix: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._path(prefix.rstrip("/")), ignore_errors=True)

    async def keys(self, prefix: str) -> list[str]:
        return await asyncio.to_thread(self._list, self._path(prefix.rstrip("/")))

    def _list(self, folder: Path) -> list[str]:
        return sorted(str(path.relative_to(self._root)) for path in folder.rglob("*") if path.is_file())

    async def healthy(self) -> bool:
        return await asyncio.to_thread(os.access, self._root, os.W_OK)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _open(path: Path, offset: int) -> IO[bytes]:
    try:
        file = path.open("rb", buffering=0)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound from None
    file.seek(offset)
    return file


def _finish(file: IO[bytes], path: Path, durable: bool) -> None:
    if durable:
        os.fsync(file.fileno())
    file.close()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    Path(file.name).replace(path)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _abandon(file: IO[bytes]) -> None:
    file.close()
    with contextlib.suppress(FileNotFoundError):
        Path(file.name).unlink()
