"""A proxy that ends TLS and writes down all that passes, in clear."""

import asyncio
import ssl
import threading
from pathlib import Path
from typing import Self

import trustme

from kit.postgres import free_port


class Recorder:
    """Between a listener and `localhost:port`, whose certificate `ca` vouches for. `seen` grows."""

    def __init__(self, folder: Path, port: int, ca: Path) -> None:
        self.port, self.seen = free_port(), bytearray()
        self.ca = folder / "proxy-ca.pem"
        self._upstream = port
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        self._server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self._server_tls)
        self._client_tls = ssl.create_default_context(cafile=ca)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._server_tls)
        asyncio.run_coroutine_threadsafe(started, self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(
            "localhost", self._upstream, ssl=self._client_tls, server_hostname="localhost"
        )
        await asyncio.gather(self._pipe(reader, far_writer), self._pipe(far_reader, writer))

    async def _pipe(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while chunk := await source.read(1 << 16):
                self.seen += chunk
                target.write(chunk)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()
