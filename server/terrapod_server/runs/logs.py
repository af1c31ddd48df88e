"""Logs: parts while a phase runs, one object when it is over; offsets never move.

The listener appends raw bytes at offsets; clients read the framed stream
(`framing`). What was appended lately is kept in memory, so that the clients
that follow a log cost the store nothing. Another server process, or this one
after a restart, finds the parts in the store.

A part's name carries the lease that wrote it. A process that was paused while
it stored one may wake up when the lease is over and the phase is another
listener's: no check before the store is asked can keep it from that, so what
it stores then is passed over by whoever reads.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from terrapod_server.kit.services import Services
from terrapod_server.runs import framing
from terrapod_server.runs.model import Phase, Run
from terrapod_server.store import keys
from terrapod_server.store.port import once
from terrapod_shared.errors import Conflict, NotFound, TooLarge

CHUNK_MOST = 4 << 20
#: Of a live log, how much of its end stays in memory.
_TAIL = 1 << 20
_LIVE_MOST = 1000
#: Of a log that is given as a whole, what is in memory at a time.
_PIECE = 512 << 10
#: How often a process that does not write a log looks for new parts.
_LOOK_S = 0.4
#: For so long after an append a process trusts that the listener appends at no other.
_WRITER_S = 1.0


class _Part(NamedTuple):
    offset: int
    length: int
    lease: int


@dataclass
class _Live:
    """What this process knows of a log that is not sealed."""

    size: int = 0
    #: They may overlap, with the same bytes, where an append was sent again to another process.
    parts: list[_Part] = field(default_factory=list)
    tail: bytearray = field(default_factory=bytearray)
    fresh_until: float = -1e9
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


_live: dict[str, _Live] = {}


def _of(phase: Phase) -> _Live:
    live = _live.pop(phase.id, None) or _Live()
    _live[phase.id] = live  # the most lately used is last
    while len(_live) > _LIVE_MOST:
        _live.pop(next(iter(_live)))
    return live


async def _look(services: Services, phase: Phase, live: _Live, *, now: bool = False) -> None:
    """Learns of parts that another process stored; `now`: however lately it was done."""
    if not now and time.monotonic() < live.fresh_until:
        return
    live.fresh_until = time.monotonic() + _LOOK_S
    known = {(part.offset, part.lease): part.length for part in live.parts[:-1]}  # the last may have become longer
    parts: list[_Part] = []
    end = 0
    names = await services.store.keys(keys.log_parts(phase.workspace_id, phase.run_id, phase.kind))
    for offset, lease in which_count(name.rpartition("/")[2] for name in names):
        if offset > end:
            break
        length = known.get((offset, lease), -1)
        if length < 0:
            try:
                length = await services.store.size(_key(phase, offset, lease))
            except NotFound:  # sealed by another process meanwhile
                return
        parts.append(_Part(offset, length, lease))
        end = max(end, offset + length)
    is_newer = bool(parts and live.parts) and parts[-1].lease > live.parts[-1].lease
    if end > live.size or is_newer:
        live.parts, live.size = parts, end
        live.tail.clear()


def _key(phase: Phase, offset: int, lease: int) -> str:
    return keys.log_part(phase.workspace_id, phase.run_id, phase.kind, offset, lease)


def which_count(names: Iterable[str]) -> list[tuple[int, int]]:
    """Offset and lease of the parts that count, by offset.

    At one place that is the newest lease's part, and behind it none that an
    older lease has written.
    """
    found: dict[int, int] = {}
    for name in names:
        offset, _, lease = name.partition(".")
        found[int(offset)] = max(int(lease), found.get(int(offset), 0))
    newest, kept = 0, []
    for at, number in sorted(found.items()):
        if number >= newest:
            newest = number
            kept.append((at, number))
    return kept


def _pass_over(live: _Live, offset: int, lease: int) -> None:
    """Forgets what an older lease has stored from `offset` on, where this one goes on."""
    first = next((part.offset for part in live.parts if part.offset >= offset and part.lease < lease), None)
    if first is not None:
        live.parts = [part for part in live.parts if part.offset < first]
        live.size = max((part.offset + part.length for part in live.parts), default=0)
        live.tail.clear()


async def size(services: Services, phase: Phase) -> int:
    """How many raw bytes are here, whichever process took them."""
    return await _size(services, phase, now=True)


async def _size(services: Services, phase: Phase, *, now: bool) -> int:
    if phase.log_size >= 0:
        return int(phase.log_size)
    live = _of(phase)
    await _look(services, phase, live, now=now)
    return live.size


async def append(services: Services, phase: Phase, offset: int, chunk: bytes) -> int:
    """Takes raw bytes at an offset, under the phase's lease; the next offset. The same bytes again are no error.

    Raises Conflict for a gap (its meta `expected` is where to go on) and for
    other bytes at the same place, TooLarge past the limit.
    """
    if phase.log_size >= 0:
        error = Conflict(f"the log of {phase.id} is closed")
        error.meta["expected"] = phase.log_size
        raise error
    live, lease = _of(phase), phase.lease_number
    async with live.lock:
        part = _key(phase, live.size, lease)
        if offset != live.size or await services.store.exists(part):  # another process took some
            await _look(services, phase, live, now=True)
            _pass_over(live, offset, lease)
        if offset > live.size:
            error = Conflict(f"the log goes on at {live.size}, and not at {offset}")
            error.meta["expected"] = live.size
            raise error
        if offset + len(chunk) > services.config.runs.log_bytes + CHUNK_MOST:
            message = f"the log is larger than {services.config.runs.log_bytes} bytes"
            raise TooLarge(message)
        known = live.size - offset
        if known and chunk:
            already = await _raw(services, phase, live, offset, min(live.size, offset + len(chunk)))
            if already != chunk[:known]:
                message = f"the log has other bytes at {offset}"
                raise Conflict(message)
        fresh = chunk[known:]
        if fresh:
            at = live.size
            await services.store.put(_key(phase, at, lease), once(fresh), durable=False)
            if live.size == at:  # else a reader has found the part already
                live.parts.append(_Part(at, len(fresh), lease))
                live.size += len(fresh)
                live.tail += fresh
            if len(live.tail) > 2 * _TAIL:
                del live.tail[:-_TAIL]
        live.fresh_until = time.monotonic() + _WRITER_S
    return live.size


async def _raw(services: Services, phase: Phase, live: _Live, start: int, stop: int) -> bytes:
    """Raw bytes of a log that is not sealed."""
    in_memory = live.size - len(live.tail)
    if start >= in_memory:
        return bytes(live.tail[start - in_memory : stop - in_memory])
    return b"".join([piece async for piece in _pieces(services, phase, live.parts, start, stop)])


async def _pieces(
    services: Services, phase: Phase, parts: Sequence[_Part], start: int, stop: int
) -> AsyncIterator[bytes]:
    for offset, length, lease in parts:
        if offset >= stop:
            break
        if offset + length > start:
            until = min(offset + length, stop)
            async for piece in services.store.get(
                _key(phase, offset, lease), offset=start - offset, limit=until - start
            ):
                yield piece
            start = until


async def read(services: Services, phase: Phase, run: Run, offset: int, limit: int) -> bytes:
    """Up to `limit` bytes of the framed log; empty past its end."""
    if (raw := _of_no_work(phase, run)) is not None:
        start, stop = framing.raw_range(offset, limit, len(raw))
        return framing.frame(raw[start:stop], offset, limit, len(raw), is_over=True)
    total = await _size(services, phase, now=False)
    start, stop = framing.raw_range(offset, limit, total)
    raw = b""
    if stop > start:
        raw = await _stored(services, phase, start, stop)
    has_begun = phase.status not in ("pending", "queued") or total > 0
    return framing.frame(raw, offset, limit, total, is_over=phase.log_size >= 0 and phase.is_over, has_begun=has_begun)


def _of_no_work(phase: Phase, run: Run) -> bytes | None:
    """The log of a phase that ended before it began; None where it did begin, or still may."""
    never_said = phase.log_size < 0 or (phase.log_size == 0 and phase.status == "errored")
    if not phase.is_over or not never_said:
        return None
    has_ended_so = phase.status in ("canceled", "errored")
    return framing.never_ran(run.status.value, run.error_message) if has_ended_so else b""


async def raw_size(services: Services, phase: Phase, run: Run) -> int:
    """How many bytes `raw` gives now."""
    own = _of_no_work(phase, run)
    return await _size(services, phase, now=False) if own is None else len(own)


async def raw(services: Services, phase: Phase, run: Run, start: int, stop: int) -> AsyncIterator[bytes]:
    """The log's bytes from `start` to `stop` without its marks, in pieces."""
    own = _of_no_work(phase, run)
    if own is not None:
        yield own[start:stop]
        return
    while start < stop:
        piece = await _stored(services, phase, start, min(stop, start + _PIECE))
        if not piece:  # a part of it was lost
            return
        yield piece
        start += len(piece)


async def _stored(services: Services, phase: Phase, start: int, stop: int) -> bytes:
    if phase.log_sealed:
        _live.pop(phase.id, None)
        key = keys.log(phase.workspace_id, phase.run_id, phase.kind)
        return b"".join([piece async for piece in services.store.get(key, offset=start, limit=stop - start)])
    live = _of(phase)
    if live.size < stop:
        await _look(services, phase, live, now=True)
    try:
        if live.size >= stop:
            return await _raw(services, phase, live, start, stop)
    except NotFound:
        pass
    # it was sealed between the look at the row and this read, or a part of it was lost
    if await Phase.exists(id=phase.id, log_sealed=True):
        phase.log_sealed = True
        return await _stored(services, phase, start, stop)
    return await _raw(services, phase, live, start, min(stop, live.size)) if live.size > start else b""


async def seal(services: Services, phase_id: str) -> None:
    """Makes one object of the parts of a log that is over. Repeats harmlessly."""
    phase = await Phase.get_or_none(id=phase_id)
    if phase is None or phase.log_sealed or phase.log_size < 0:
        return
    live = _of(phase)
    if live.size < phase.log_size:
        await _look(services, phase, live, now=True)
    if await Phase.exists(id=phase_id, log_sealed=True):  # by another process, which then takes the parts away
        return
    # the parts are not waited for on the disk: after a loss of power the log ends where they do
    end = min(live.size, phase.log_size)
    key = keys.log(phase.workspace_id, phase.run_id, phase.kind)
    try:
        await services.store.put(key, _pieces(services, phase, live.parts, 0, end))
    except NotFound:
        if await Phase.exists(id=phase_id, log_sealed=True):
            return
        raise
    await Phase.filter(id=phase_id).update(log_sealed=True, log_size=end)
    _live.pop(phase_id, None)
    await services.store.delete_prefix(keys.log_parts(phase.workspace_id, phase.run_id, phase.kind))


async def seal_left(services: Services) -> None:
    """Seals what a server that was stopped in between has left."""
    for phase in await Phase.filter(log_sealed=False, log_size__gte=0).limit(20):
        await seal(services, phase.id)
