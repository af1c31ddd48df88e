"""The line of idle listeners: who is called for work, and that nobody waits beside it."""

import asyncio
import random

import pytest

from terrapod_server.agents.protocol.dispatch import Line, Place
from terrapod_server.kit.work.bus import Subscription


def places(line: Line, *kinds: str) -> list[Place]:
    made = [Place(kind, Subscription()) for kind in kinds]
    for place in made:
        line.join(place)
    return made


def called(found: list[Place]) -> list[int]:
    return [number for number, place in enumerate(found) if place.woken.take()]


async def nothing() -> str | None:
    return None


async def something() -> str | None:
    return "work"


async def test_one_is_called_and_the_next_only_where_there_may_be_more() -> None:
    line = Line()
    found = places(line, "a", "a", "a", "a")
    line.wake()
    assert called(found) == [0]
    assert await line.look(found[0], something) == "work"
    assert called(found) == [1], "the oldest of those that have not been asked"
    line.leave(found[0])
    assert await line.look(found[1], nothing) is None
    assert called(found) == [], "its kind found nothing"
    assert not line.may_look(found[2])
    line.wake()
    assert called(found) == [1]
    line.wake()
    assert called(found) == [2], "for the second word a second one"


async def test_a_kind_that_cannot_take_it_leaves_it_to_another() -> None:
    line = Line()
    found = places(line, "a", "a", "b")
    line.wake()
    assert called(found) == [0]
    await line.look(found[0], nothing)
    assert called(found) == [2]


async def test_who_goes_leaves_it_to_the_next() -> None:
    line = Line()
    found = places(line, "a", "a", "a")
    line.wake()
    line.leave(found[0])
    assert called(found) == [0, 1]
    line.leave(found[1])
    assert called(found) == [2]


async def test_a_cancelled_look_is_done_by_the_next_and_a_failed_one_by_nobody() -> None:
    line = Line()
    found = places(line, "a", "a", "a")
    line.wake()
    looking = asyncio.create_task(line.look(found[0], asyncio.Event().wait))
    await asyncio.sleep(0)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    line.leave(found[0])
    assert called(found) == [0, 1]

    async def fails() -> None:
        raise OSError

    with pytest.raises(OSError):
        await line.look(found[1], fails)
    line.leave(found[1])
    assert called(found) == [], "a database that does not answer is not asked by thousands"
    assert line.may_look(found[2])


async def test_what_came_while_somebody_looked_is_not_lost() -> None:
    line = Line()
    found = places(line, "a", "a")
    line.wake()
    assert called(found) == [0]

    async def late() -> None:
        line.wake()

    await line.look(found[0], late)
    assert 1 in called(found)
    assert line.may_look(found[0]), "what it saw is older than the word"


class Work:
    """So much work waits."""

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.waiting, self.taken = chance, 0, 0
        self.is_done = asyncio.Event()

    async def claim(self) -> str | None:
        """What waits at both ends of a pause."""
        seen = self.waiting
        await asyncio.sleep(self.chance.choice((0, 0, 0.001)))
        if not seen or not self.waiting:
            return None
        self.waiting, self.taken = self.waiting - 1, self.taken + 1
        if not self.waiting:
            self.is_done.set()
        return "work"


async def poll(line: Line, work: Work) -> None:
    place = Place("a", Subscription())
    line.join(place)
    try:
        while True:
            if line.may_look(place):
                found = await line.look(place, work.claim)
                if found:
                    break
            if not await place.woken.wait(work.chance.choice((0.005, 1000.0))):
                break
    finally:
        line.leave(place)


async def test_no_work_waits_beside_listeners_who_may_take_it() -> None:
    """Work comes at random, and polls come and go; all of it is taken without a poll's end being waited for."""
    line, work = Line(), Work(random.Random(4))

    async def polls() -> None:
        while True:
            await poll(line, work)

    tasks = [asyncio.create_task(polls()) for _ in range(20)]
    for _ in range(100):
        work.is_done.clear()
        for _ in range(work.chance.randint(1, 5)):
            work.waiting += 1
            line.wake()
        await asyncio.wait_for(work.is_done.wait(), 2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
