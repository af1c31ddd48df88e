"""What a running listener says of itself: to systemd, and to whoever asks its own port; see docs/monitoring.md."""

import asyncio
import contextlib
import errno
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from terrapod_listener import __version__
from terrapod_listener.config import Config
from terrapod_listener.daemon import port
from terrapod_listener.link.client import Server
from terrapod_listener.supervise import spool
from terrapod_shared import wire
from terrapod_shared.notify import Manager
from terrapod_shared.prometheus import MEDIA, Sample, family, process

log = logging.getLogger(__name__)
_JSON = "application/json"
#: Of health and metrics, where the settings name none; so many are tried from there on.
PORT = 9846
_PORTS = 100


@dataclass(frozen=True)
class Facts:
    """The daemon at one moment."""

    phases: list[str]  #: of the runs in hand
    live: set[str]  #: ids of runs that are not settled: their copies in the spool are not what waits
    is_draining: bool
    server: Server


class Observer:
    """Knows by `ask` how the daemon is. `tell` is to be called when that has changed."""

    def __init__(self, home: Path, config: Config, ask: Callable[[], Facts]) -> None:
        self._home, self._config, self._ask = home, config, ask
        self._manager = Manager.of(os.environ)
        self.address = ""  #: at which it answers, while it runs
        #: An idle listener's long poll is its heartbeat, so the silence of one is no sign yet.
        self._patience_s = max(float(wire.LEASE_S), config.poll_s + wire.BEAT_S)

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        """Answers on the port and feeds the watchdog, for as long as the daemon runs."""
        self._ask().server.standing.on_change = self.tell
        alive = asyncio.create_task(self._manager.keep_alive())
        try:
            async with self._listening():
                yield
        finally:
            alive.cancel()

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        server = await self._server() if self._config.health_port != 0 else None
        if server:
            host, number = server.sockets[0].getsockname()[:2]
            self.address = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
        try:
            yield
        finally:
            if server:
                server.close()

    async def _server(self) -> asyncio.Server | None:
        """Listens on the port of the settings, else on the default one or the next that is free.

        Raises SystemExit where a port that the settings name cannot be listened on. Without one it costs only what is
        seen by it: the work goes on.
        """
        host, chosen = self._config.health_host, self._config.health_port
        ports = [chosen] if chosen else range(PORT, PORT + _PORTS)
        why, is_taken = "", False
        for number in ports:
            try:
                server = await port.serve(host, number, self.answer)
            except OSError as error:
                why = f"cannot listen on {host} port {number}: {os.strerror(error.errno or errno.EIO)}"
                is_taken = error.errno == errno.EADDRINUSE
                if chosen or not is_taken:
                    break
                continue
            if number != ports[0]:
                log.warning("health and metrics are on %s port %d: port %d is taken", host, number, PORT)
            return server
        if chosen:
            advice = (
                "end the program that has it, or set another port" if is_taken else "set another port, or health_host"
            )
            raise SystemExit(f"health_port: {why}; {advice} (port 0: none) in listener.toml")
        log.warning("no health and no metrics: %s (health_port of listener.toml, 0 for none)", why)
        return None

    def tell(self) -> None:
        """Ready once the server has been asked: a server that is away is waited for, and not a failed start."""
        facts = self._ask()
        if facts.server.standing.is_known:
            self._manager.ready()
        if facts.is_draining:
            self._manager.stopping()
        self._manager.status(self._line(facts))

    def _line(self, facts: Facts) -> str:
        what = f"{len(facts.phases)} of {self._config.capacity} runs"
        if facts.is_draining:
            what = f"Drains, {len(facts.phases)} runs go on"
        return f"{what}; the server does not answer: {facts.server.standing.why}" if facts.server.standing.why else what

    def _age_s(self, facts: Facts) -> float | None:
        at = facts.server.standing.heard_at
        return None if at is None else time.monotonic() - at

    async def answer(self, path: str) -> port.Answer | None:
        """What is at a path; None for nothing."""
        if path == "/health":
            return port.Answer(200, _JSON, b'{"status":"ok"}')
        if path == "/ready":
            return self._ready()
        if path == "/metrics":
            return port.Answer(200, MEDIA, ("\n".join(await self._metrics()) + "\n").encode())
        return None

    def _ready(self) -> port.Answer:
        """503 where it takes no work: it drains, or its server has not answered for a lease's time."""
        facts = self._ask()
        age_s = self._age_s(facts)
        server = (
            "ok"
            if age_s is not None and age_s <= self._patience_s
            else facts.server.standing.why or "it has not answered"
        )
        checks = {"server": server, "work": "draining" if facts.is_draining else "ok"}
        is_ready = set(checks.values()) == {"ok"}
        body = msgspec.json.encode({"status": "ready" if is_ready else "not ready", "checks": checks})
        return port.Answer(200 if is_ready else 503, _JSON, body)

    async def _metrics(self) -> list[str]:
        facts = self._ask()
        age_s, held = self._age_s(facts), Counter(facts.phases)
        waiting = await asyncio.to_thread(spool.count, self._home, facts.live)
        build = {"version": __version__, "python": platform.python_version()}
        ended = [({"phase": p, "outcome": o}, n) for (p, o), n in sorted(facts.server.standing.ended.items())]
        age: list[Sample] = [] if age_s is None else [({}, age_s)]
        until = facts.server.identity.expires().timestamp()
        gauges: list[tuple[str, str, list[Sample]]] = [
            ("build_info", "What runs here.", [(build, 1)]),
            ("runs", "Runs in hand.", [({"phase": each}, held[each]) for each in ("plan", "apply")]),
            ("capacity", "Runs at once.", [({}, self._config.capacity)]),
            ("draining", "1 while it takes no more work.", [({}, facts.is_draining)]),
            ("spooled_states", "States that the server does not have yet.", [({}, waiting)]),
            ("heartbeat_age_seconds", "Since the server last answered a heartbeat or a poll for work.", age),
            ("certificate_expiry_timestamp_seconds", "End of the certificate, in seconds of the epoch.", [({}, until)]),
        ]
        lines = [line for name, about, of in gauges for line in family(f"terrapod_listener_{name}", "gauge", about, of)]
        about = "Phases whose end was reported to the server; refused: given back."
        return [*lines, *family("terrapod_listener_phases_ended_total", "counter", about, ended), *process()]
