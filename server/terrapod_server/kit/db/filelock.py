"""Locks between processes of one host, by files that stay; a process that ends, however it ends, lets go of them."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

_AGAIN_S = 0.02


class Held(Exception):
    """Another process has the lock. `pid` is its number, as far as the file tells."""

    def __init__(self, pid: str) -> None:
        super().__init__(pid)
        self.pid = pid


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Has the lock, or raises Held at once; OSError where the file cannot be made."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Held(os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def waited_for(file: Path) -> AsyncIterator[None]:
    """Has the lock as soon as no other process does. Raises OSError."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(file))
                break
            except Held:
                await asyncio.sleep(_AGAIN_S)
        yield
