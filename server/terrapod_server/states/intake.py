"""Bytes on their way in: stored first, then read as a state from what was stored.

A parser holds its thread only while it can go on, since it reads what is
stored already, never what a client may still send or not: however many slow
uploads there are, none takes a thread, and none waits for another.
"""

import asyncio
import base64
import binascii
import io
from collections.abc import AsyncIterator, Mapping
from typing import Any

from terrapod_server.states import parse
from terrapod_server.store.port import Opened, Store, Stored, gathered
from terrapod_server.store.threads import Threads
from terrapod_shared.errors import Invalid

#: A state up to this size is kept in memory between the two, and not read back.
_SMALL = 256 << 10
_BLOCK = 256 << 10
_PIECE = 1 << 20  #: of base64; a multiple of 4
#: Parsers at once; others wait in line. They are threads of their own: what they wait for needs the store's.
THREADS = Threads("state", 4)


async def store(place: Store, key: str, chunks: AsyncIterator[bytes], md5: str) -> tuple[Stored, parse.Summary]:
    """Raises Invalid for bytes of another digest and for those that are no state; they lie at `key` even so."""
    head = bytearray()

    async def kept() -> AsyncIterator[bytes]:
        async for chunk in gathered(chunks):
            if len(head) <= _SMALL:
                head.extend(chunk[: _SMALL + 1 - len(head)])
            yield chunk

    stored = await place.put(key, kept())
    if stored.md5 != md5:
        message = f"the bytes have the md5 {stored.md5}, and {md5} was announced"
        raise Invalid(message)
    try:
        if stored.size <= _SMALL:
            return stored, await THREADS.run(parse.summarise, io.BytesIO(bytes(head)))
        async with place.opened(key) as source:
            return stored, await THREADS.run(parse.summarise, _File(source, asyncio.get_running_loop()))
    except parse.Unreadable as error:
        raise Invalid(str(error)) from None


async def inline(values: Mapping[str, Any], column: str) -> bytes | None:
    """What came along in base64; large ones in pieces, so that others get their turn."""
    if not (text := values.get(column)):
        return None
    found = bytearray()
    try:
        for at in range(0, len(text), _PIECE):
            found += base64.b64decode(text[at : at + _PIECE], validate=True)
            await asyncio.sleep(0)
    except (binascii.Error, ValueError):
        name = column.replace("_", "-")
        message = f"{name} must be base64"
        raise Invalid(message, pointer=f"/data/attributes/{name}") from None
    return bytes(found)


class _File:
    """An open object, for a parser in a thread."""

    def __init__(self, source: Opened, loop: asyncio.AbstractEventLoop) -> None:
        self._source, self._loop, self._at = source, loop, 0

    def read(self, size: int = -1) -> bytes:
        """What ijson calls; an empty answer is the end. `read(0)` asks for the type alone."""
        if size == 0:
            return b""
        wanted = _BLOCK if size < 0 else min(size, _BLOCK)
        chunk = asyncio.run_coroutine_threadsafe(self._source.read(self._at, wanted), self._loop).result()
        self._at += len(chunk)
        return chunk
