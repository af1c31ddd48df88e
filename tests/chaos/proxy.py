"""A TCP proxy whose network can be cut, made slow, or made to swallow everything."""

import asyncio
import contextlib
from typing import Literal, Self

Weather = Literal["fair", "cut", "hole"]
_CHUNK = 64 << 10


class Proxy:
    """Between one listener and the server. `delay_s` holds every chunk up, in both directions."""

    def __init__(self, target: int) -> None:
        self._target = target
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
                answers, other = await asyncio.open_connection("127.0.0.1", self._target)
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
