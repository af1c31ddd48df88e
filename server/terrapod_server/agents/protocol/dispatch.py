"""Idle listeners: in line for the work of their pool, and heard of by their polls.

A pool may have thousands of them. When work comes, one is called, and only
where it gets something, or cannot take what is there, the next. What a claim
finds depends on the pool and on the listener's `kind` (its engines, and which
work it takes) alone: where one of a kind has found nothing, the others of its
kind are not asked until the pool is heard of again.
"""

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from weakref import WeakKeyDictionary

from terrapod_server.agents import listeners
from terrapod_server.agents.model import Listener
from terrapod_server.agents.rules import ONLINE
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.bus import Bus, Subscription
from terrapod_shared import clock

T = TypeVar("T")
#: For so long a kind is not asked again: what a workspace or pool allows may change without a word on the bus.
_BARREN_S = 5.0
#: An idle listener polls every 30 s.
_FRESH = ONLINE / 4
_AT_ONCE = 500
_lines: WeakKeyDictionary[Bus, dict[str, "Line"]] = WeakKeyDictionary()
#: Listeners that have polled since the last time they were written down, with the time of the first poll.
_heard: dict[str, datetime] = {}


@dataclass(eq=False)
class Place:
    """A poll in the line; `woken` is what it waits with."""

    kind: Hashable
    woken: Subscription
    is_called: bool = False
    has_work: bool = False  #: it asks for no more


class Line(Subscription):
    """The polls of one pool in this process, the oldest first. The bus wakes it when there may be work."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[Place, None] = {}
        self._kinds: Counter[Hashable] = Counter()
        #: Kinds that found nothing, until when that is believed.
        self._barren: dict[Hashable, float] = {}
        self._news = 0

    def wake(self) -> None:
        self._news += 1
        self._barren.clear()
        self._call()

    def join(self, place: Place) -> None:
        self._places[place] = None
        self._kinds[place.kind] += 1

    def leave(self, place: Place) -> None:
        """Whoever was called and goes without having looked leaves it to the next."""
        del self._places[place]
        self._kinds[place.kind] -= 1
        if not self._kinds[place.kind]:
            del self._kinds[place.kind]
        if place.is_called:
            self._call()

    @property
    def is_empty(self) -> bool:
        return not self._places

    def may_look(self, place: Place) -> bool:
        """Whether there may be something for it."""
        return place.is_called or not self._is_barren(place.kind)

    async def look(self, place: Place, claim: Callable[[], Awaitable[T | None]]) -> T | None:
        """What the claim finds. Whatever that is, the next one is called who may find something."""
        news, place.is_called = self._news, True
        try:
            found = await claim()  # where it is cancelled, the place is still called when it is left
        except Exception:
            place.is_called = False  # nobody is called by a database that does not answer
            raise
        place.is_called, place.has_work = False, found is not None
        if found is None and news == self._news:
            self._barren[place.kind] = time.monotonic() + _BARREN_S
        self._call()
        return found

    def _is_barren(self, kind: Hashable) -> bool:
        return self._barren.get(kind, 0.0) > time.monotonic()

    def _call(self) -> None:
        if all(self._is_barren(kind) for kind in self._kinds):
            return
        for place in self._places:
            if not (place.is_called or place.has_work or self._is_barren(place.kind)):
                place.is_called = True
                place.woken.wake()
                return


@contextlib.asynccontextmanager
async def line(bus: Bus, pool_id: str, place: Place) -> AsyncIterator[tuple[Line, Place]]:
    """The pool's line, with this place in it."""
    lines = _lines.setdefault(bus, {})
    found = lines.get(pool_id)
    if found is None:
        found = lines[pool_id] = Line()
        bus.add(f"pool:{pool_id}", found)
    found.join(place)
    try:
        yield found, place
    finally:
        found.leave(place)
        if found.is_empty and lines.get(pool_id) is found:
            del lines[pool_id]
            bus.remove(f"pool:{pool_id}", found)


async def heard(row: Listener) -> None:
    """An idle listener's poll is its heartbeat. Written down soon, with those of others; at once where it was away."""
    now = clock.now()
    if row.last_seen_at is None or row.last_seen_at < now - ONLINE:
        await listeners.note_seen([row.id], now)
    elif row.last_seen_at < now - _FRESH:
        _heard.setdefault(row.id, now)


async def write_down(_services: Services) -> None:
    """Writes who was heard of, as of the first of them: never later than it was."""
    while _heard:
        ids = list(_heard)[:_AT_ONCE]
        at = min(_heard.pop(listener_id) for listener_id in ids)
        await listeners.note_seen(ids, at)
