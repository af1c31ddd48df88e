"""What every store does. Objects are written whole or not at all, and read as streams.

A key is segments of `[A-Za-z0-9._-]` between slashes. A put replaces what was
there at once, for readers of the old object as well as of the new. All sizes
are bytes. `NotFound` is raised before the first chunk of a read.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

CHUNK = 256 << 10
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._+-]*(/[A-Za-z0-9_-][A-Za-z0-9._+-]*)*")
_LONGEST = 900


@dataclass(frozen=True)
class Stored:
    """What was written, as the caller sent it."""

    size: int
    sha256: str
    md5: str


class Store(Protocol):
    """One promise, several places; the contract tests hold all of them to it."""

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, durable: bool = True) -> Stored:
        """Writes an object. If `chunks` raises, nothing is left. `durable` waits for the disk."""
        ...

    def get(self, key: str, *, offset: int = 0, limit: int | None = None) -> AsyncIterator[bytes]:
        """Chunks of an object from `offset`; empty past its end. Raises NotFound."""
        ...

    async def size(self, key: str) -> int:
        """Raises NotFound."""
        ...

    async def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        ...

    async def delete_prefix(self, prefix: str) -> None:
        """Removes all objects whose key begins so; `prefix` ends with a slash."""
        ...

    async def keys(self, prefix: str) -> list[str]:
        """Keys that begin so, in order; `prefix` ends with a slash."""
        ...

    async def healthy(self) -> bool:
        """Whether the place answers."""
        ...


def checked(key: str) -> str:
    """The key, if it is one. Raises ValueError: keys are made by us, so a bad one is a bug."""
    if len(key) > _LONGEST or not _KEY.fullmatch(key) or ".." in key:
        message = f"{key!r} is no key"
        raise ValueError(message)
    return key


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Bytes that are in memory, as the stream that `put` takes."""
    yield data


async def whole(store: Store, key: str, most: int) -> bytes:
    """An object that is known to be small. Raises ValueError where it is larger than `most`."""
    parts = []
    size = 0
    async for chunk in store.get(key):
        size += len(chunk)
        if size > most:
            message = f"{key} is larger than {most} bytes"
            raise ValueError(message)
        parts.append(chunk)
    return b"".join(parts)


async def gathered(chunks: AsyncIterator[bytes], size: int = CHUNK) -> AsyncIterator[bytes]:
    """The same bytes in chunks of exactly `size`, but for the last: fewer hops to a thread."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)
