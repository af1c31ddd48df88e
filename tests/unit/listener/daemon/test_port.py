"""The listener's own port: a few documents, and no more of HTTP than that takes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from kit.postgres import free_port
from kit.serving import until
from terrapod_listener.daemon import port


async def ask(path: str) -> port.Answer | None:
    if path == "/broken":
        raise RuntimeError
    return port.Answer(200, "text/plain", b"well") if path == "/health" else None


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[int]:
    number = free_port()
    server = await port.serve("127.0.0.1", number, ask)
    try:
        yield number
    finally:
        server.close()


async def said(number: int, raw: bytes) -> bytes:
    """All that comes until the other end closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(raw)
            await writer.drain()
            return await reader.read()
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (b"GET /health?x HTTP/1.1\r\nHost: a\r\n\r\n", b"200 OK", b"well"),
        (b"HEAD /health HTTP/1.0\r\n\r\n", b"200 OK", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found", b"Not Found\n"),
        (b"POST /health HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"405 Method Not Allowed", b"Method Not Allowed\n"),
        (b"GET /broken HTTP/1.1\r\n\r\n", b"500 Internal Server Error", b"Internal Server Error\n"),
        (b"\xff\xfe\r\n\r\n", b"400 Bad Request", b"Bad Request\n"),
        (b"GET /health HTTP/2\r\n\r\n", b"400 Bad Request", b"Bad Request\n"),
    ],
)
async def test_each_question_has_an_answer(raw: bytes, status: bytes, body: bytes) -> None:
    async with served() as number:
        head, _, rest = (await said(number, raw)).partition(b"\r\n\r\n")
        assert head.split(b"\r\n")[0] == b"HTTP/1.1 " + status
        assert b"Connection: close" in head
        assert rest == body


async def test_a_long_head_is_not_read_to_its_end() -> None:
    async with served() as number:
        answer = await said(number, b"GET /health HTTP/1.1\r\nX: " + b"a" * 20_000)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 "), answer


async def test_who_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "_REQUEST_S", 0.1)
    async with served() as number, asyncio.timeout(10):
        assert await said(number, b"GET /heal") == b""


async def test_connections_that_are_held_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "_AT_ONCE", 2)
    monkeypatch.setattr(port, "_REQUEST_S", 60.0)
    async with served() as number, asyncio.timeout(10):
        held = [await asyncio.open_connection("127.0.0.1", number) for _ in range(2)]
        assert await said(number, b"GET /health HTTP/1.1\r\n\r\n") == b""
        for _, writer in held:
            writer.close()
        await until(lambda: said(number, b"GET /health HTTP/1.1\r\n\r\n"))
