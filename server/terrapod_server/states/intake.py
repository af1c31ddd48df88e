"""Bytes on their way in: stored first, then read as a state from what was stored.

What reads a state reads what is stored already, never what a client may still
send or not: however many slow uploads there are, none takes a thread or a
process, and none waits for another. Small states are read in threads, larger
ones in processes with limits; a state whose process died is kept without its
resources.
"""

import asyncio
import base64
import binascii
import io
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

from terrapod_server.kit.api.declare import INLINE_HINT, INLINE_MOST
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.workers import Died
from terrapod_server.states import parse
from terrapod_server.store.port import Opened, Store, Stored, gathered
from terrapod_server.store.threads import Threads
from terrapod_shared.errors import Invalid, TooLarge

log = logging.getLogger(__name__)
#: A state up to this size is kept in memory between the two, and not read back.
_SMALL = 256 << 10
#: A state up to this size is read in a thread.
IN_THREAD_MOST = 1 << 20
_BLOCK = 256 << 10
_PIECE = 1 << 20  #: of base64; a multiple of 4
#: Parsers at once; others wait in line. They are threads of their own: what they wait for needs the store's.
THREADS = Threads("state", 4)


async def store(services: Services, key: str, chunks: AsyncIterator[bytes], md5: str) -> tuple[Stored, parse.Summary]:
    """Raises Invalid for bytes of another digest and for those that are no state; they lie at `key` even so."""
    head, place = bytearray(), services.store

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
        if stored.size <= IN_THREAD_MOST:
            return stored, await _read(place, key, "")
        return stored, await _read_large(services, key)
    except parse.Unreadable as error:
        raise Invalid(str(error)) from None


async def _read_large(services: Services, key: str) -> parse.Summary:
    answer = services.workers.run("terrapod_server.states.parse:summarised", services.store.get(key))
    try:
        raw = b"".join([chunk async for chunk in answer])
    except Died as error:
        log.warning("the state at %s is kept without its resources: reading it %s", key, error)
        return await _read(services.store, key, f"reading it {error}")
    return await THREADS.run(parse.read_summary, raw)


async def _read(place: Store, key: str, reason: str) -> parse.Summary:
    """In a thread; only the head where there is a reason why not more."""
    async with place.opened(key) as source:
        file = _File(source, asyncio.get_running_loop())
        return await (THREADS.run(parse.head, file, reason) if reason else THREADS.run(parse.summarise, file))


class Inline:
    """A state, or its JSON form, that came along in a document as base64; decoded some at a time, each time anew."""

    def __init__(self, text: str, column: str) -> None:
        self._text, self._name = text, column.replace("_", "-")

    @classmethod
    async def of(cls, values: Mapping[str, Any], column: str) -> "Inline | None":
        """None where none came. Raises Invalid, and TooLarge for one that is to be uploaded."""
        text = values.get(column)
        if not text:
            return None
        found = cls(text, column)
        if len(text) // 4 * 3 > INLINE_MOST + 2:
            message = f"{found._name} is larger than {INLINE_MOST} bytes; {INLINE_HINT}"
            raise TooLarge(message)
        async for _ in found.chunks():
            pass
        return found

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes; others get their turn in between. Raises Invalid."""
        try:
            for at in range(0, len(self._text), _PIECE):
                yield base64.b64decode(self._text[at : at + _PIECE], validate=True)
                await asyncio.sleep(0)
        except (binascii.Error, ValueError):
            message = f"{self._name} must be base64"
            raise Invalid(message, pointer=f"/data/attributes/{self._name}") from None


class _File:
    """An open object, for a parser in a thread."""

    def __init__(self, source: Opened, loop: asyncio.AbstractEventLoop) -> None:
        self._source, self._loop, self._at = source, loop, 0

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes; an empty answer is the end."""
        wanted = _BLOCK if size < 0 else min(size, _BLOCK)
        chunk = asyncio.run_coroutine_threadsafe(self._source.read(self._at, wanted), self._loop).result()
        self._at += len(chunk)
        return chunk
