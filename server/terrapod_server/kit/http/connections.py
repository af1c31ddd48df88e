"""Connections in front of the application: who gets one, for how long, and that nothing is left of one that is over.

HTTP itself is Hypercorn's. Three things are done here that its own server does
otherwise. Connections are accepted here, so that those whose TLS handshake is
not over count too, and one can be closed in favour of a new one. A connection
that its client has given up is let go at once: Hypercorn keeps it for its
keep-alive time. And what uvloop holds for TLS (256 KiB each) is freed by
dropping the references to it, not by the garbage collector, which looks
through old objects rarely.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import AppWrapper

from terrapod_server.kit.http.certificates import Certificate
from terrapod_server.kit.http.departure import Departure
from terrapod_server.kit.http.networks import group
from terrapod_server.kit.work import memory

log = logging.getLogger(__name__)

#: Bytes that are read ahead of the application.
_READ_AHEAD = 64 << 10
#: Connections that are accepted in one turn of the loop.
_AT_ONCE = 64
#: How long nobody is accepted after the system had no descriptor left.
_FULL_PAUSE_S = 0.2
#: How long a peer may take to say that it has seen the end of TLS.
_GOODBYE_S = 5.0
#: More than this waits to be written: the client reads slowly, or not at all.
_UNREAD = 64 << 10
_WARN_EACH_S = 60.0
#: The buffers of so many connections lie scattered between what lives on, until the C library is asked for them.
_TRIM_AFTER, _TRIM_PAUSE_S = 100, 2.0


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How many connections there may be, and how long a client may take; times in seconds."""

    most: int  #: in all
    most_per_address: int  #: from one address, or the /64 of an IPv6 one
    is_exempt: Callable[[str], bool] = lambda _address: False  #: an address that stands for many clients: a proxy
    handshake_s: float = 15.0  #: for the handshake of TLS
    unread_s: float = 60.0  #: for reading something of what waits to be written


@dataclass(eq=False)
class _Place:
    """What one connection takes up."""

    group: str  #: of its address; empty for an exempt one
    close: Callable[[], object] = bool  #: ends the connection, without waiting; does nothing where it is over


@dataclass(eq=False)
class _Group:
    """The connections of one address."""

    count: int = 0
    idle: dict[_Place, None] = field(default_factory=dict)


class Room:
    """Counts connections, and says which one goes where there are too many. Idle: without a request under way."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._places: set[_Place] = set()
        self._idle: dict[_Place, None] = {}  #: the one that has been idle longest comes first
        self._groups: dict[str, _Group] = {}
        self._warn_at = 0.0

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, address: str) -> _Place | None:
        """A place for a new connection, for which an idle one may be closed; None where all are at work."""
        of = "" if self._terms.is_exempt(address) else group(address)
        if of and (known := self._groups.get(of)) and known.count >= self._terms.most_per_address:
            if not self._close_one(known.idle):
                self._warn(f"{of} has {known.count}, all with a request under way")
                return None
        elif len(self._places) >= self._terms.most and not self._close_one(self._idle):
            self._warn(f"there are {len(self._places)}, all with a request under way")
            return None
        place = _Place(of)
        self._places.add(place)
        if of:
            self._groups.setdefault(of, _Group()).count += 1
        self.rest(place)
        return place

    def leave(self, place: _Place) -> None:
        """May be called again."""
        if place not in self._places:
            return
        self.work(place)
        self._places.discard(place)
        if place.group:
            known = self._groups[place.group]
            known.count -= 1
            if not known.count:
                del self._groups[place.group]

    def work(self, place: _Place) -> None:
        """A request is under way."""
        self._idle.pop(place, None)
        if known := self._groups.get(place.group):
            known.idle.pop(place, None)

    def rest(self, place: _Place) -> None:
        """No request is under way any more."""
        if place not in self._places:
            return
        self._idle[place] = None
        if known := self._groups.get(place.group):
            known.idle[place] = None

    def make_room(self) -> bool:
        """Closes the connection that has been idle longest. False where none is idle."""
        return self._close_one(self._idle)

    def _close_one(self, idle: dict[_Place, None]) -> bool:
        oldest = next(iter(idle), None)
        if oldest is None:
            return False
        self.leave(oldest)
        oldest.close()
        return True

    def _warn(self, why: str) -> None:
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + _WARN_EACH_S
            log.warning("a connection is refused: %s", why)


class _Unanswerable(Exception):
    """Another request of a client that has not taken the answer to an earlier one."""


class Exchange(TCPServer):
    """The requests of one connection."""

    def __init__(self, connections: "Connections", place: _Place, *arguments: Any) -> None:
        self._departure = Departure()
        super().__init__(
            connections.app,
            connections.loop,
            connections.config,
            connections.context,
            self._departure.state,
            *arguments,
        )
        self._room, self._place, self._terms = connections.room, place, connections.terms
        self._is_tls = self.writer.get_extra_info("ssl_object") is not None
        self._has_ended = self._is_gone = self._is_lost = False

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            error: BaseException | None = self.reader.exception()
            while error is not None:  # its frames, and those of what it came of, hold the writer and so the reader
                earlier, error.__context__, error.__cause__ = error.__context__, None, None
                error.with_traceback(None)
                error = earlier
            for name in ("reader", "writer", "protocol", "_task_group"):  # nobody holds buffers by what is left of this
                self.__dict__.pop(name, None)

    async def _read_data(self) -> None:
        """Reads until the client goes; then whoever works for it is told, and nothing is waited for."""
        try:
            await super()._read_data()
        except _Unanswerable as error:
            log.debug("requests that were sent ahead are left: %s", error)
        finally:
            self._has_ended = True
            self._is_gone = self._is_tls or self.writer.transport.is_closing()
            await self.idle_task.stop()  # or it would keep the connection for the keep-alive time
            self._departure.happen()
            await self._let_streams_go()
            if self._is_gone:  # TLS knows no half of a connection; of plain HTTP the other half may be read
                self.writer.transport.abort()

    async def _let_streams_go(self) -> None:
        """Whoever waits for an HTTP/2 client to take more of an answer waits no longer."""
        spoken = self.protocol.protocol
        if isinstance(spoken, H2Protocol):
            for buffer in list(spoken.stream_buffers.values()):
                await buffer.close()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if not self._is_gone:
                await self._write(event.data)
            return
        if isinstance(event, Updated):
            # Of HTTP/1.1: by HTTP/2 a handler may say so, and what begins after the client has gone is ended anyway.
            if self._is_lost and not event.idle and isinstance(self.protocol.protocol, H11Protocol):
                message = "its client has gone"
                raise _Unanswerable(message)
            mark = self._room.rest if event.idle else self._room.work
            mark(self._place)
            if self._has_ended:  # there is nothing to be idle for
                return
        await super().protocol_send(event)

    async def _write(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                self.writer.write(data)
                await self._drained()
            except TimeoutError:
                self._is_lost = True
                self.writer.transport.abort()
                await self.protocol.handle(Closed())
            except (ConnectionError, RuntimeError):
                self._is_lost = True
                await self.protocol.handle(Closed())

    async def _drained(self) -> None:
        """Raises TimeoutError where the client reads nothing for too long."""
        transport = self.writer.transport
        while (waits := transport.get_write_buffer_size()) > _UNREAD:
            try:
                async with asyncio.timeout(self._terms.unread_s):
                    return await self.writer.drain()
            except TimeoutError:
                if transport.get_write_buffer_size() >= waits:
                    raise
        return await self.writer.drain()


class Connections:
    """Serves an application, by HTTP/1.1 and where it is configured by TLS and HTTP/2."""

    def __init__(self, app: AppWrapper, config: Config, terms: Terms) -> None:
        self.app, self.config, self.terms = app, config, terms
        self.room = Room(terms)
        self.context = WorkerContext(None)
        self.loop = asyncio.get_running_loop()
        self.certificate = _certificate(config)  #: None without TLS
        self._tasks: set[asyncio.Task[None]] = set()
        self._greeting: set[asyncio.Task[None]] = set()  #: those whose handshake is not over
        self._ended = 0  #: since memory was given back

    async def serve(self, listening: socket.socket, stopped: Callable[[], Awaitable[object]]) -> None:
        """Starts the application, serves until `stopped` returns, lets requests under way end, and stops it."""
        lifespan = Lifespan(self.app, self.config, self.loop, {})
        living = self.loop.create_task(lifespan.handle_lifespan())
        await lifespan.wait_for_startup()
        if living.done():
            living.result()
        watching: asyncio.Task[None] | None = None
        if self.certificate is not None:
            if not self.certificate.is_loaded:
                await self.certificate.load()
            watching = self.loop.create_task(self.certificate.watch())
        listening.setblocking(False)
        self.loop.add_reader(listening.fileno(), self._accept, listening)
        try:
            await stopped()
        finally:
            if watching is not None:
                watching.cancel()
            self.loop.remove_reader(listening.fileno())
            listening.close()
            await self.context.terminated.set()
            await self._end()
            await lifespan.wait_for_shutdown()
            living.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await living

    async def _end(self) -> None:
        """Requests under way have their time; then they are cancelled."""
        for task in self._greeting:
            task.cancel()
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=self.config.graceful_timeout)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptor is left, or no memory
                log.warning("no connection can be accepted: %s", error)
                self.room.make_room()
                self.loop.remove_reader(listening.fileno())
                self.loop.call_later(_FULL_PAUSE_S, self._accept_again, listening)
                return
            accepted.setblocking(False)
            self._admit(accepted, str(address[0]))

    def _accept_again(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0 and not self.context.terminated.is_set():
            self.loop.add_reader(listening.fileno(), self._accept, listening)

    def _admit(self, accepted: socket.socket, address: str) -> None:
        place = self.room.enter(address)
        if place is None:
            accepted.close()
            return
        task = self.loop.create_task(self._serve(accepted, place))
        place.close = task.cancel
        self._tasks.add(task)
        self._greeting.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._greeting.discard(task)
        self._ended += 1
        if self._ended == _TRIM_AFTER:
            self.loop.call_later(_TRIM_PAUSE_S, self._trim)

    def _trim(self) -> None:
        self._ended = 0
        self.loop.run_in_executor(None, memory.give_back)

    async def _serve(self, accepted: socket.socket, place: _Place) -> None:
        try:
            streams = await self._opened(accepted)
            self._greeting.discard(asyncio.current_task())
            if streams is not None:
                place.close = partial(_close, streams[1].transport)
                await Exchange(self, place, *streams)
        except TimeoutError as error:  # as that of a client which leaves without the end of TLS
            log.debug("a connection did not end in time: %s", error)
        except Exception:  # one of the edges: of one connection, never of the server
            log.warning("a connection broke off", exc_info=True)
        finally:
            self.room.leave(place)
            place.close = bool

    async def _opened(self, accepted: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The connection, by TLS where that is configured; None where the client does not come so far."""
        reader = asyncio.StreamReader(_READ_AHEAD, self.loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self.loop)
        tls: dict[str, Any] = {}
        if self.certificate is not None:
            tls = {
                "ssl": self.certificate.context,
                "ssl_handshake_timeout": self.terms.handshake_s,
                "ssl_shutdown_timeout": _GOODBYE_S,
            }
        try:
            transport, _ = await self.loop.connect_accepted_socket(lambda: protocol, accepted, **tls)
        except (OSError, EOFError) as error:  # ssl.SSLError is one
            log.debug("a handshake failed: %s", error)
            accepted.close()
            return None
        except asyncio.CancelledError:
            accepted.close()
            raise
        return reader, asyncio.StreamWriter(transport, protocol, reader, self.loop)


def _certificate(config: Config) -> Certificate | None:
    """The certificate of Hypercorn's settings, in a context as Hypercorn makes it."""
    if config.certfile is None or config.keyfile is None:
        return None

    def make() -> ssl.SSLContext:
        made = config.create_ssl_context()
        assert made is not None  # noqa: S101  both files are named
        return made

    return Certificate(Path(config.certfile), Path(config.keyfile), make)


def _close(transport: asyncio.WriteTransport) -> None:
    """At once, but for an answer that is still being written."""
    if transport.get_write_buffer_size():
        transport.close()
    else:
        transport.abort()


__all__ = ["Connections", "Exchange", "Room", "Terms"]
