"""Hypercorn around the application, in this process: signals, TLS, logs, a clean end."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import uvloop
from hypercorn.config import Config as Hypercorn
from hypercorn.utils import LifespanFailureError, wrap_app

from terrapod_server import app
from terrapod_server.config.settings import Config
from terrapod_server.kit.db import database, filelock
from terrapod_server.kit.http.certificates import Certificate
from terrapod_server.kit.http.connections import Connections, Terms
from terrapod_server.kit.room import Composition
from terrapod_server.kit.work import memory
from terrapod_shared.notify import Manager
from terrapod_shared.operator_errors import OperatorError

log = logging.getLogger("terrapod")
#: After so many turns of the younger generations the garbage collector looks through all that is there.
_OLDEST_TURNS = 200
_BACKLOG = 100
#: Requests that one connection may send before it is closed. A busy client pays for a new TLS handshake so rarely that it
#: does not count; a balancer in front still sees connections move to other servers. Nothing gathers in a connection
#: meanwhile: the server took as much memory after 10,000 requests of one as after 1,000.
_REQUESTS_PER_CONNECTION = 100_000


class CannotListen(OperatorError):
    """The address or the port is not to be had; the text is for the user."""


def run(config: Config, composition: Composition = app.COMPOSITION) -> None:
    """Serves until SIGTERM or SIGINT; SIGHUP loads the certificate again."""
    log_as(config.log_level)
    allow_connections()
    uvloop.run(until_signalled(lambda stop: serve_until(config, stop, hangup=_on_hangup(), composition=composition)))


def allow_connections() -> None:
    """As many as the system lets this process have: the usual soft limit of 1,024 files is too few for a fleet."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def log_as(level: str) -> None:
    """Logs to standard error. Libraries that would log headers or statements in full tell no more than warnings."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("hpack", "httpcore", "httpx", "tortoise", "aiosqlite", "botocore", "aiobotocore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)  # a stack trace a second while the database is away


def _on_hangup() -> asyncio.Event:
    """An event that SIGHUP sets, which then ends the program no more."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, event.set)
    return event


async def until_signalled(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs `work` with an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await work(stop)


async def serve_until(
    config: Config,
    stop: asyncio.Event,
    ready: asyncio.Event | None = None,
    made: list[app.App] | None = None,
    before: Callable[[app.App], Awaitable[None]] | None = None,
    hangup: asyncio.Event | None = None,
    composition: Composition = app.COMPOSITION,
) -> None:
    """Serves until `stop` is set; then requests under way finish, and long polls end with nothing.

    `before` is done once the database is open and nobody is served yet; `ready` is set once it serves; the app is put into `made`. The certificate is loaded again when its files change, and when `hangup` is set. systemd is told, where it asks. Raises CannotListen, app.Unusable, and what else a start raises.
    """
    with bound(config.host, config.port) as listening, contextlib.ExitStack() as stack:
        built = app.build(config, composition)
        try:
            stack.enter_context(database.only_server(config.database))
        except filelock.Held as other:
            file = config.database.removeprefix("sqlite://")
            who = f"another server (process {other.pid})" if other.pid else "another server"
            message = f"{who} uses {file}: SQLite takes one server, PostgreSQL several"
            raise app.Unusable(message) from None
        if made is not None:
            made.append(built)
        built.asgi.before_serving += [partial(before, built)] if before else []
        await _serve(config, built, listening, stop, ready, hangup)


async def _serve(
    config: Config,
    built: app.App,
    listening: socket.socket,
    stop: asyncio.Event,
    ready: asyncio.Event | None,
    hangup: asyncio.Event | None,
) -> None:
    manager = Manager.of(os.environ)
    hypercorn = Hypercorn()
    hypercorn.alpn_protocols = ["h2", "http/1.1"] if config.http2 else ["http/1.1"]
    hypercorn.graceful_timeout = config.shutdown_s
    hypercorn.shutdown_timeout = config.shutdown_s + 5
    hypercorn.keep_alive_timeout = 75
    hypercorn.keep_alive_max_requests = _REQUESTS_PER_CONNECTION
    hypercorn.accesslog = None
    hypercorn.errorlog = logging.getLogger("hypercorn.error")
    hypercorn.include_server_header = False
    if config.tls.certificate:
        hypercorn.certfile, hypercorn.keyfile = config.tls.certificate, config.tls.key
        hypercorn.keyfile_password = ""  # a key with a passphrase is refused: nobody is there to be asked

    async def stopping() -> None:
        await stop.wait()
        manager.stopping()
        built.services.bus.close()

    def serving() -> None:
        listening.listen(_BACKLOG)  # who comes before the loop does waits for it
        manager.ready()
        manager.status(f"Serves {config.url}")
        if ready is not None:
            ready.set()

    built.asgi.on_started += [serving, _settle_memory]
    alive = asyncio.create_task(manager.keep_alive())
    connections = Connections(wrap_app(built.asgi, 0, "asgi"), hypercorn, _terms(config, built))  # type: ignore[arg-type]
    built.services.certificate = connections.certificate
    if connections.certificate is not None:  # nobody is told that it is ready before it can greet anybody
        built.asgi.before_serving.append(partial(_load, connections.certificate))
    reloading = asyncio.create_task(_reload(connections.certificate, hangup)) if hangup else None
    try:
        await connections.serve(listening, stopping)
    except LifespanFailureError:
        if built.asgi.failure is None:
            raise
        raise built.asgi.failure from None
    finally:
        alive.cancel()
        if reloading:
            reloading.cancel()


async def _load(certificate: Certificate) -> None:
    """Raises app.Unusable for files that cannot be used."""
    try:
        await certificate.load()
    except (OSError, ValueError) as error:
        raise app.Unusable(certificate.why_refused(error)) from None


async def _reload(certificate: Certificate | None, hangup: asyncio.Event) -> None:
    """Loads the certificate again each time that `hangup` is set."""
    while True:
        await hangup.wait()
        hangup.clear()
        if certificate is None:
            log.info("SIGHUP: there is no certificate to load again")
        else:
            await certificate.reload()


def _terms(config: Config, built: app.App) -> Terms:
    limits = config.limits
    most = limits.connections or resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4
    return Terms(most=most, most_per_address=limits.connections_per_address, is_exempt=built.services.addresses.is_many)


def bound(host: str, port: int) -> socket.socket:
    """A socket with this address, on which nobody listens yet. Raises CannotListen, before anything is begun."""
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        known.sort(key=lambda each: each[0] != socket.AF_INET)  # a name that has both is bound by its IPv4 address
        family, kind, protocol, _, address = known[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        why = f"{host} port {port} cannot be listened on: {error.strerror or error}"
        raise CannotListen(f"{why}: {_advice(error)}") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        why = f"{host} port {port} cannot be listened on: {error.strerror or error}"
        raise CannotListen(f"{why}: {_advice(error)}") from None
    return found


def _advice(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no such name is known: set `host` to an address of this host"
    return {
        errno.EADDRINUSE: "end the program that has it, or choose another `port`",
        errno.EADDRNOTAVAIL: "no interface has this address: set `host` to one of this host",
        errno.EACCES: "set a `port` from 1024 on, or let a proxy have this one",
    }.get(error.errno or 0, "set another `host` or `port`")


def _settle_memory() -> None:
    """What the start has used goes back to the system, and what it has made is never looked through again."""
    gc.collect()
    gc.freeze()
    # What waits for long is soon looked through again and again: with the polls of 5,000 listeners that took 0.8 s every
    # 4 s, and found nothing. Garbage of short lives is found as early as before.
    gc.set_threshold(*gc.get_threshold()[:2], _OLDEST_TURNS)
    memory.give_back()
