"""Connections that clients give up, do not begin, do not end or do not read: nothing is left of them, and nobody waits."""

import asyncio
import contextlib
import gc
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypercorn.config import Config
from hypercorn.utils import wrap_app

from kit.process import Process, in_flight
from kit.serving import Running, until
from terrapod_server.commands import tls as authority
from terrapod_server.kit.http.connections import Connections, Exchange, Room, Terms
from terrapod_server.store.cipher import KeyRing
from terrapod_shared import wire

pytestmark = pytest.mark.sqlite_alone(reason="connections end before a database is asked")

GET = b"GET /api/v2/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
PUT = b"POST /api/v2/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n" + b"x" * 60_000
#: Handshakes take two milliseconds of each side: this is what a test has time for. Each left 280 KiB.
TIMES = 1_000
MOST_MIB = 16


def resident_mib(process: Process) -> float:
    assert process.process is not None
    text = Path(f"/proc/{process.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


def descriptors(process: Process) -> int:
    assert process.process is not None
    return len(list(Path(f"/proc/{process.process.pid}/fd").iterdir()))


@pytest.fixture
async def tls_process(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[Process, Running]]:
    """A server over TLS of its own, which offers HTTP/2 too."""
    data = tmp_path / "data"
    data.mkdir()
    certificate, key = authority.ensure(data, "127.0.0.1", KeyRing.create(data / "keys"))
    settings = {"TERRAPOD_TLS__CERTIFICATE": str(certificate), "TERRAPOD_TLS__KEY": str(key), "TERRAPOD_HTTP2": "true"}
    process = Process(data, database_url, **settings)
    process.over_tls(data / "ca.pem")
    async with process.prepared() as server:
        await process.start()
        yield process, server


def given_up(port: int, kind: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        if kind == "half a handshake":
            plain.sendall(b"\x16\x03\x01\x02\x00")
            return
        if kind == "no TLS":
            plain.sendall(GET)
            return
        context = ssl._create_unverified_context()
        if kind == "http2":
            context.set_alpn_protocols(["h2"])
        with context.wrap_socket(plain, server_hostname="localhost") as client:
            if kind == "http2":
                client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
                client.recv(1)
            if kind in {"request", "answer"}:
                client.sendall(GET)
            if kind == "answer":
                client.recv(1)
            if kind == "half a body":
                client.sendall(PUT)


async def give_up(port: int, kind: str, times: int) -> None:
    with ThreadPoolExecutor(4) as threads:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(threads, given_up, port, kind) for _ in range(times)))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.slow
async def test_given_up_connections_leave_no_memory(tls_process: tuple[Process, Running]) -> None:
    process, _ = tls_process
    kinds = ["handshake", "request", "answer", "half a body", "half a handshake", "no TLS", "http2"]
    for kind in kinds:  # what is loaded and kept once
        await give_up(process.port, kind, 100)
    before, open_before = resident_mib(process), descriptors(process)
    for kind in kinds:
        await give_up(process.port, kind, TIMES // 4 if kind != "answer" else TIMES)

    async def is_as_before() -> bool:
        return descriptors(process) <= open_before + 2 and resident_mib(process) <= before + MOST_MIB

    with contextlib.suppress(TimeoutError):
        await until(is_as_before, 30)
    assert (resident_mib(process) - before, descriptors(process)) < (MOST_MIB, open_before + 3)
    assert "Traceback" not in process.log


async def test_who_waits_for_a_client_that_goes_waits_no_longer(
    tls_process: tuple[Process, Running], tmp_path: Path
) -> None:
    process, server = tls_process
    listener = await server.listener(tmp_path / "home", ca=process.folder / "ca.pem")
    workspace = (await server.workspace())["id"]

    async def events() -> None:
        async with server.api.stream("GET", f"/workspaces/{workspace}/runs/events") as answer:
            async for _ in answer.aiter_bytes():
                pass

    local = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]
    for _ in range(3):
        waiting: list[asyncio.Task[Any]] = [
            asyncio.create_task(listener.next_work(30)),
            asyncio.create_task(listener.beat(wire.Beat(local_engines=local), wait_s=30)),
            asyncio.create_task(events()),
        ]

        async def all_wait() -> bool:
            return await in_flight(server) == 3

        await until(all_wait)
        begun = time.monotonic()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

        async def nobody_waits() -> bool:
            return await in_flight(server) == 0

        await until(nobody_waits)
        assert time.monotonic() - begun < 10, "a poll takes 30 s"
    assert "Traceback" not in process.log


class Served:
    """A little application on a port, with terms of the test's own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked = 0
        self.ended = 0
        self.goes_on = asyncio.Event()
        self.room: Room

    async def __call__(self, scope: Any, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "lifespan":
            for name in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{name}.complete"})
            return
        self.asked += 1
        try:
            if scope["path"] == "/wait":
                await self.goes_on.wait()
            body = b"x" * (1 << 20) if scope["path"] == "/large" else b"here"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(64 if scope["path"] == "/large" else 1):
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.ended += 1

    async def open(self, request: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        return reader, writer


@contextlib.asynccontextmanager
async def served(tls: Path | None = None, http2: bool = False, **terms: Any) -> AsyncIterator[Served]:
    listening = socket.create_server(("127.0.0.1", 0))
    app, stop = Served(listening.getsockname()[1]), asyncio.Event()
    config = Config()
    config.alpn_protocols = ["h2", "http/1.1"] if http2 else ["http/1.1"]
    config.graceful_timeout = 1.0
    if tls is not None:
        certificate, key = authority.ensure(tls, "127.0.0.1", KeyRing.fresh())
        config.certfile, config.keyfile = str(certificate), str(key)
    connections = Connections(
        wrap_app(app, 0, "asgi"), config, Terms(**{"most": 100, "most_per_address": 100, **terms})
    )
    app.room = connections.room
    task = asyncio.create_task(connections.serve(listening, stop.wait))
    try:
        yield app
    finally:
        stop.set()
        app.goes_on.set()
        await asyncio.wait_for(task, 10)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_a_handshake_that_does_not_end_is_ended(tmp_path: Path) -> None:
    async with served(tmp_path, handshake_s=0.3) as app:
        for said in (b"", b"\x16\x03\x01"):
            reader, writer = await app.open(said)
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()


@pytest.mark.parametrize("is_tls", [False, True])
async def test_an_answer_that_nobody_reads_is_given_up(tmp_path: Path, is_tls: bool) -> None:
    async with served(tmp_path if is_tls else None, unread_s=0.3) as app:
        context = ssl._create_unverified_context() if is_tls else None
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port, ssl=context, limit=1)
        writer.write(get("/large"))

        async def has_ended() -> bool:
            return app.ended == 1

        await until(has_ended, 30)
        writer.transport.abort()
        del reader


@pytest.mark.parametrize("is_tls", [False, True])
async def test_requests_that_a_client_sent_ahead_end_with_it(tmp_path: Path, is_tls: bool) -> None:
    """One answer may be written before its going is seen."""
    async with served(tmp_path if is_tls else None) as app:
        context = ssl._create_unverified_context() if is_tls else None
        _, writer = await asyncio.open_connection("127.0.0.1", app.port, ssl=context)
        writer.write(get("/wait") + get("/") * 500)

        async def has_begun() -> bool:
            return app.asked == 1

        async def is_over() -> bool:
            return len(app.room) == 0

        await until(has_begun)
        writer.transport.abort()
        app.goes_on.set()
        await until(is_over)
        assert app.asked <= 3


async def test_nothing_is_left_of_one_who_goes_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    """By dropping the references: the garbage collector comes too rarely."""

    async def is_nothing_left() -> bool:
        return not any(type(found) is Exchange for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        async with served(tmp_path) as app:
            context = ssl._create_unverified_context()
            clients = [await asyncio.open_connection("127.0.0.1", app.port, ssl=context, limit=1) for _ in range(20)]
            for _, writer in clients:
                writer.write(get("/large"))
            for reader, _ in clients:
                await reader.read(1)
            for _, writer in clients:
                writer.transport.abort()
            await until(is_nothing_left)
    finally:
        gc.enable()


async def test_nothing_is_left_of_those_who_close_before_their_answer(tmp_path: Path) -> None:
    """The error of such a connection came of another one, whose frames held it too."""

    def ask(port: int) -> None:
        context = ssl._create_unverified_context()
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain) as wrapped:
                wrapped.sendall(get("/"))

    async def is_nothing_left() -> bool:
        return not any(type(found) is Exchange for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        async with served(tmp_path) as app:
            await asyncio.to_thread(ask, app.port)
            await until(is_nothing_left)
    finally:
        gc.enable()


async def test_an_answer_that_is_read_slowly_is_not() -> None:
    async with served(unread_s=0.5) as app:
        reader, writer = await app.open(get("/large"))
        seen = 0
        while seen < 64 << 20:
            seen += len(await asyncio.wait_for(reader.read(4 << 20), 10))
            await asyncio.sleep(0.002)
        writer.close()


async def test_the_oldest_idle_connection_makes_room() -> None:
    async with served(most=3) as app:
        busy = await app.open(get("/wait"))

        async def asked() -> bool:
            return app.asked == 1

        await until(asked)
        idle = [await app.open() for _ in range(2)]
        fourth = await app.open(get("/"))
        assert b"here" in await asyncio.wait_for(fourth[0].read(4096), 5)
        assert await asyncio.wait_for(idle[0][0].read(), 5) == b"", "it was there first"
        app.goes_on.set()
        assert b"200" in await asyncio.wait_for(busy[0].read(4096), 5)
        for _, writer in (busy, *idle, fourth):
            writer.close()


async def test_nobody_is_let_in_where_all_are_at_work() -> None:
    async with served(most=2) as app:
        busy = [await app.open(get("/wait")) for _ in range(2)]

        async def asked() -> bool:
            return app.asked == 2

        await until(asked)
        third = await app.open(get("/"))
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(third[0].read(), 5) == b""
        busy[0][1].close()
        app.goes_on.set()

        async def is_let_in() -> bool:
            reader, writer = await app.open(get("/"))
            with contextlib.suppress(ConnectionError):
                found = await asyncio.wait_for(reader.read(4096), 5)
                writer.close()
                return b"here" in found
            return False

        await until(is_let_in)


async def test_the_half_of_a_connection_that_is_open_is_answered() -> None:
    """A client of plain HTTP may say that it has nothing more to say."""
    async with served() as app:
        reader, writer = await app.open(get("/"))
        writer.write_eof()
        assert b"here" in await asyncio.wait_for(reader.read(), 5)
        writer.close()


async def test_http2_waits_for_no_window_that_never_opens(tmp_path: Path) -> None:
    async with served(tmp_path, http2=True) as app:
        context = ssl._create_unverified_context()
        async with (
            httpx.AsyncClient(http2=True, verify=context) as client,
            client.stream("GET", f"https://127.0.0.1:{app.port}/large") as answer,
        ):
            assert answer.http_version == "HTTP/2"

        async def has_ended() -> bool:
            return app.ended == 1

        await until(has_ended, 10)


async def test_a_client_keeps_its_connection_for_more_than_a_thousand_requests(pg_server: Running) -> None:
    url = httpx.URL(pg_server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    asked = f"GET /api/v2/runs/run-none HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {pg_server.token}\r\n\r\n"
    for _ in range(1_100):
        writer.write(asked.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"connection: close" not in head.lower()
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    writer.close()
