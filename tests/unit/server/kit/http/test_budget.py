"""Memory that requests share."""

import asyncio

import pytest

from terrapod_server.kit.http.budget import Budget, Held
from terrapod_shared.errors import Unavailable


async def test_who_needs_more_than_is_left_waits_and_none_passes_its_own() -> None:
    budget = Budget(100)
    assert await budget.take("a", 50) == 50
    assert await budget.take("b", 40) == 40
    order: list[str] = []

    async def wait(who: str, size: int, name: str) -> None:
        await budget.take(who, size)
        order.append(name)

    waiting = [asyncio.create_task(wait(*each)) for each in (("c", 30, "c1"), ("c", 5, "c2"), ("d", 5, "d"))]
    await asyncio.sleep(0)
    await asyncio.wait([waiting[2]])
    assert order == ["d"]
    budget.give_back("b", 40)
    await asyncio.gather(*waiting)
    assert order == ["d", "c1", "c2"]
    assert budget.used == 50 + 5 + 30 + 5


async def test_nobody_gets_more_than_half() -> None:
    budget = Budget(100, wait_s=0.05)
    assert await budget.take("a", 1000) == 50
    with pytest.raises(Unavailable) as caught:
        await budget.take("a", 1)
    assert "Retry-After" in caught.value.headers
    assert await budget.take("b", 50) == 50
    budget.give_back("a", 50)
    assert await budget.take("a", 1) == 1


async def test_who_is_cancelled_or_refused_holds_nothing() -> None:
    budget = Budget(100, wait_s=0.05)
    await budget.take("a", 50)
    task = asyncio.create_task(budget.take("a", 20))
    behind = asyncio.create_task(budget.take("a", 10))
    await asyncio.sleep(0)
    task.cancel()
    budget.give_back("a", 50)
    assert await behind == 10
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.used == 10
    granted = asyncio.create_task(budget.take("a", 50))
    await asyncio.sleep(0)
    budget.give_back("a", 10)  # granted, and cancelled before it has seen it
    granted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await granted
    assert budget.used == 0


async def test_a_request_holds_what_it_has_got_and_no_more() -> None:
    budget = Budget(1 << 20)
    held = Held(budget, "a")
    await held.add(60_000)
    assert budget.used == 0
    await held.add(60_000)
    assert budget.used == 120_000
    held.let_go()
    held.let_go()
    assert budget.used == 0
