import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request

from terrapod_server.kit.http.body import Body, Pace
from terrapod_shared.errors import TooSlow

PACE = Pace(document_s=0.4, stall_s=0.2, span_s=0.6, least=100)


def body(parts: Iterator[tuple[float, bytes]], *, upload: bool) -> Body:
    """A body whose parts come after pauses; the last one never comes."""

    async def receive() -> Any:
        pause_s, part = next(parts, (3600.0, b""))
        await asyncio.sleep(pause_s)
        return {"type": "http.request", "body": part, "more_body": True}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-length", b"100000")]}
    made = Body(Request(scope, receive), PACE)
    if upload:
        made.expect_upload()
    return made


async def read(of: Body) -> int:
    """How many parts came before it was too slow."""
    for count in itertools.count():
        try:
            await of()
        except TooSlow:
            return count
    raise AssertionError


@pytest.mark.parametrize("upload", [False, True])
async def test_a_body_that_never_comes(upload: bool) -> None:
    assert await read(body(iter([]), upload=upload)) == 0
    assert await read(body(iter([(0.0, b"x" * 200)] * 3), upload=upload)) == 3


async def test_a_document_has_its_time_in_all() -> None:
    assert 2 <= await read(body(iter([(0.1, b"x" * 1000)] * 50), upload=False)) <= 4


async def test_an_upload_that_comes_steadily_has_no_time_in_all() -> None:
    assert await read(body(iter([(0.01, b"x" * 200)] * 60), upload=True)) == 60


async def test_an_upload_that_trickles_is_ended() -> None:
    assert await read(body(iter([(0.05, b"x")] * 200), upload=True)) < 20
