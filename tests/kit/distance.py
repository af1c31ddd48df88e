"""A network between a client and a server: each answer is late by a time, as from another continent."""

import asyncio
import contextlib
import threading
from typing import Self

from kit.postgres import free_port


class Distance:
    """Passes TCP on to `localhost:port`; what comes back is `delay_s` late. TLS goes through untouched."""

    def __init__(self, port: int, delay_s: float) -> None:
        self.port, self.delay_s = free_port(), delay_s
        self._upstream = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        asyncio.run_coroutine_threadsafe(started, self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("localhost", self._upstream)
        await asyncio.gather(self._pipe(reader, far_writer, 0.0), self._pipe(far_reader, writer, self.delay_s))

    async def _pipe(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, delay_s: float) -> None:
        """In order, and each piece late by the same time: what is sent together arrives together."""
        with contextlib.suppress(OSError):
            while chunk := await source.read(1 << 16):
                await asyncio.sleep(delay_s)
                target.write(chunk)
                await target.drain()
        target.close()
