"""The least of HTTP: GET of a few small documents on a port of the listener's host."""

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

log = logging.getLogger(__name__)
_HEAD_MOST = 8192
_REQUEST_S = 5.0
_AT_ONCE = 16


@dataclass(frozen=True)
class Answer:
    """Status, media type and body."""

    status: int
    media: str
    body: bytes


Ask = Callable[[str], Awaitable[Answer | None]]


async def serve(host: str, number: int, ask: Ask) -> asyncio.Server:
    """Answers GET and HEAD with what `ask` knows of a path, one request a connection. Raises OSError."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if places.locked():  # at once, so that nobody who holds connections keeps others waiting
                return
            async with places, asyncio.timeout(_REQUEST_S):
                writer.write(await _response(reader, ask))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    try:
        return await asyncio.start_server(answered, host, number, limit=_HEAD_MOST)
    except OSError as error:
        if error.errno is None:  # Python 3.13 says so where the host has none of the addresses
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)) from error
        raise


async def _response(reader: asyncio.StreamReader, ask: Ask) -> bytes:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return _written(_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
    parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):  # noqa: PLR2004
        return _written(_error(HTTPStatus.BAD_REQUEST))
    method, target, _ = parts
    if method not in ("GET", "HEAD"):
        return _written(_error(HTTPStatus.METHOD_NOT_ALLOWED), "Allow: GET, HEAD\r\n")
    try:
        found = await ask(target.partition("?")[0])
    except Exception:
        log.exception("%s cannot be answered", target)
        found = _error(HTTPStatus.INTERNAL_SERVER_ERROR)
    return _written(found or _error(HTTPStatus.NOT_FOUND), with_body=method == "GET")


def _error(status: HTTPStatus) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode())


def _written(answer: Answer, more: str = "", *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {int(answer.status)} {HTTPStatus(answer.status).phrase}\r\nContent-Type: {answer.media}\r\n"
        f"Content-Length: {len(answer.body)}\r\nCache-Control: no-store\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode("latin-1") + (answer.body if with_body else b"")
