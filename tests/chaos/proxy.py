"""A TCP proxy whose network can be cut, made slow, or made to swallow everything; and one that is not the server's."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Literal, Self

Weather = Literal["fair", "cut", "hole"]
_CHUNK = 64 << 10


class Proxy:
    """Between one listener and the server. `delay_s` holds every chunk up, in both directions."""

    def __init__(self, target: int) -> None:
        self._targets = [target]
        self._taken = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_fair = asyncio.Event()
        self._is_fair.set()
        self.weather: Weather = "fair"
        self.delay_s = 0.0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        self._drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def become(self, weather: Weather) -> None:
        """`cut` resets what is open and refuses; `hole` takes everything and answers nothing, until it is fair again."""
        self.weather = weather
        if weather == "cut":
            self._drop()
        if weather == "fair":
            self._is_fair.set()
        else:
            self._is_fair.clear()

    def lead_to(self, *targets: int, drop: bool = True) -> None:
        """From now on connections go to these ports in turn, and past one that refuses. `drop` ends those that are open."""
        self._targets = list(targets)
        if drop:
            self._drop()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the next target that takes one. Raises OSError."""
        self._taken += 1
        *others, last = (self._targets[(self._taken + at) % len(self._targets)] for at in range(len(self._targets)))
        for port in others:
            with contextlib.suppress(ConnectionError):
                return await asyncio.open_connection("127.0.0.1", port)
        return await asyncio.open_connection("127.0.0.1", last)

    def _drop(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            if self.weather == "cut":
                writer.transport.abort()
                return
            with contextlib.suppress(OSError):
                answers, other = await self._connected()
                self._open.add(other)
                async with asyncio.TaskGroup() as group:
                    for source, sink in ((reader, other), (answers, writer)):
                        task = group.create_task(self._pump(source, sink))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
        finally:
            for each in filter(None, (writer, other)):
                self._open.discard(each)
                each.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._is_fair.wait()
                sink.write(chunk)
                await sink.drain()
        with contextlib.suppress(OSError, RuntimeError):
            sink.write_eof() if sink.can_write_eof() else sink.close()


@contextlib.asynccontextmanager
async def stranger(trusted: ssl.SSLContext, status: int) -> AsyncIterator[int]:
    """Its port. A proxy with the server's certificate that answers everything itself, with a page of its own."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        page = b"<html><h1>nothing here</h1></html>"
        head = f"HTTP/1.1 {status} X\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head.encode() + page)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=trusted)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
