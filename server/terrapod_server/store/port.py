"""What every store does. Objects are written whole or not at all, and read as streams.

    put(key, chunks, *, durable=True, digests=True) -> Stored(size, sha256, md5)
    get(key, *, offset=0, limit=None) -> async iterator of bytes
    whole(key, most) -> bytes
    opened(key, *spans) -> async context manager of Opened(size, read(offset, size))
    size(key) -> int                exists(key) -> bool
    delete(key)                     delete_prefix("a/b/")
    keys("a/b/") -> list of keys
    healthy() -> bool               close()

Also here: `once` and `gathered` make streams for `put`. `files.FileStore` and `s3.S3Store` keep the promise, and so does
`cipher.EncryptedStore` over either, which is the one that the rooms get.

A key is segments of `[A-Za-z0-9._+-]` between slashes, and no key is the folder
of another. A put replaces what was there at once: who reads the old object
goes on reading the old one. All sizes are bytes. `NotFound` is raised before
the first chunk of a read, `Unavailable` where the place is full or silent.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from terrapod_shared.errors import NotFound, Unavailable

CHUNK = 256 << 10
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._+-]*(/[A-Za-z0-9_-][A-Za-z0-9._+-]*)*")
_LONGEST = 900
_LONGEST_SEGMENT = 240
#: How often a read begins again when the object is replaced under it.
_TRIES = 5

#: From, and up to but not including; None is the end of the object.
Span = tuple[int, int | None]
EVERYTHING: Span = (0, None)
#: Makes an object's bytes of what lies there.
Made = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Stored:
    """What was written, as the caller sent it. The digests are in hex, empty where none were asked for."""

    size: int
    sha256: str
    md5: str


class Replaced(Unavailable):
    """The object was replaced between two requests of one read."""


class Opened(Protocol):
    """One object as it was when it was opened, whatever is put in its place meanwhile."""

    size: int

    async def read(self, offset: int, size: int) -> bytes:
        """That many bytes, fewer only at the end. Not for several callers at once."""
        ...


class Store(Protocol):
    """One promise, several places; the contract tests hold all of them to it."""

    async def put(
        self, key: str, chunks: AsyncIterator[bytes], *, durable: bool = True, digests: bool = True
    ) -> Stored:
        """Writes an object. If `chunks` raises, nothing is left of it, and what was there before stays.

        `durable` waits for the disk: without it a loss of power may take the
        object away, or leave it empty. A put that is cancelled at its very end
        may have happened.
        """
        ...

    def opened(self, key: str, *spans: Span) -> AbstractAsyncContextManager[Opened]:
        """Opens an object for reads at any offset. Raises NotFound.

        `spans` are what will be read, in that order; default all of it. Other
        reads are answered too: each may cost a request of its own.
        """
        ...

    async def get(self, key: str, *, offset: int = 0, limit: int | None = None) -> AsyncIterator[bytes]:
        """Chunks of an object from `offset`; empty past its end. Raises NotFound."""
        if offset < 0 or (limit is not None and limit < 0):
            message = f"nothing is at {offset}, {limit}"
            raise ValueError(message)
        stop = None if limit is None else offset + limit
        at = offset
        for left in reversed(range(_TRIES)):
            try:
                async with self.opened(key, (offset, stop)) as source:
                    end = source.size if stop is None else min(stop, source.size)
                    while True:
                        # up to the next border, so that no encrypted chunk is wanted twice
                        chunk = await source.read(at, max(0, min(end - at, CHUNK - at % CHUNK)))
                        if chunk:
                            yield chunk
                        at += len(chunk)
                        if at >= end or not chunk:
                            return
            except Replaced:
                if at > offset or not left:
                    raise

    async def whole(self, key: str, most: int, made: Made = bytes, *, version: str = "") -> bytes:
        """All of an object at once: what `made`, which is called in a thread, makes of its bytes.

        Where the caller names a `version`, which no other bytes under that key
        have, the store may remember the object for the next time. Raises NotFound, and ValueError where the object is larger than `most`.
        """
        del version
        parts, size = [], 0
        async for chunk in self.get(key):
            size += len(chunk)
            if size > most:
                raise Larger(key, most)
            parts.append(chunk)
        return await asyncio.to_thread(lambda: made(b"".join(parts)))

    async def size(self, key: str) -> int:
        """Raises NotFound."""
        ...

    async def exists(self, key: str) -> bool:
        try:
            await self.size(key)
        except NotFound:
            return False
        return True

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
        """Whether the place answers and takes new objects."""
        ...

    async def close(self) -> None:
        """Lets go of connections and threads."""
        ...


class Larger(ValueError):
    """An object is larger than its reader takes."""

    def __init__(self, key: str, most: int) -> None:
        super().__init__(f"{key} is larger than {most} bytes")


class Tally:
    """Size and digests of what passes. 256 KiB take half a millisecond: count larger ones in a thread."""

    def __init__(self, *, digests: bool) -> None:
        self.size = 0
        self._digests = (hashlib.sha256(), hashlib.md5(usedforsecurity=False)) if digests else ()

    def count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        for digest in self._digests:
            digest.update(chunk)

    def stored(self) -> Stored:
        sha256, md5 = (digest.hexdigest() for digest in self._digests) if self._digests else ("", "")
        return Stored(self.size, sha256, md5)


def checked(key: str) -> str:
    """The key, if it is one. Raises ValueError: keys are made by us, so a bad one is a bug."""
    segments = key.split("/") if len(key) <= _LONGEST else [key]
    if max(map(len, segments)) > _LONGEST_SEGMENT or not _KEY.fullmatch(key) or ".." in key:
        message = f"{key[:_LONGEST]!r} is no key"
        raise ValueError(message)
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix, if it is one: a key and a slash. Raises ValueError."""
    if not prefix.endswith("/"):
        message = f"{prefix[:_LONGEST]!r} is no prefix: it does not end with a slash"
        raise ValueError(message)
    return checked(prefix[:-1]) + "/"


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Bytes that are in memory, as the stream that `put` takes."""
    yield data


async def gathered(chunks: AsyncIterator[bytes], size: int = CHUNK) -> AsyncIterator[bytes]:
    """The same bytes in chunks of exactly `size`, but for the last: fewer hops to a thread."""
    parts: list[bytes] = []
    have = 0
    async for chunk in chunks:
        at = 0
        while have + len(chunk) - at >= size:
            piece = chunk[at : at + size - have]
            at += len(piece)
            yield b"".join((*parts, piece))  # a piece alone is not copied
            parts, have = [], 0
        if at < len(chunk):
            parts.append(chunk[at:])
            have += len(chunk) - at
    if have:
        yield b"".join(parts)
