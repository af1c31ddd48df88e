"""What all rooms share, made once by `app`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from terrapod_server.config.settings import Config
from terrapod_server.kit.caller import Deed, Level, Principal
from terrapod_server.kit.http.address import Addresses
from terrapod_server.kit.http.budget import Budget
from terrapod_server.kit.http.certificates import Certificate
from terrapod_server.kit.http.metrics import Measured
from terrapod_server.kit.http.rate_limits import Limiter
from terrapod_server.kit.http.signed import Signer
from terrapod_server.kit.ports import MultiPort, Port, Providers
from terrapod_server.kit.work.bus import Bus
from terrapod_server.kit.work.outbox import Outbox
from terrapod_server.kit.work.workers import Workers
from terrapod_server.store.cipher import KeyRing
from terrapod_server.store.port import Store

P = TypeVar("P")


class Demands(Protocol):
    """What a handler asks of the guard, where the path alone does not say which thing a request is about."""

    async def identify(self, request: Request) -> Principal:
        """Who the bearer token belongs to. Raises Unauthorized."""
        ...

    async def demand(
        self, principal: Principal, needs: Level, parameter: str, identity: str, *, is_certain: bool = False
    ) -> Level:
        """The caller's level on a thing. Raises NotFound where it may not know of it, Forbidden where it is too low."""
        ...


class Authenticator(Protocol):
    """Who callers are, and what is remembered of them."""

    def start(self) -> None:
        """Hears from other server processes what it is to forget."""
        ...

    async def stop(self) -> None:
        """To be awaited when the bus is closed."""
        ...

    async def bearer(self, token: str) -> Principal | None:
        """Who a bearer token belongs to; None for one that is good for nothing."""
        ...

    async def changed(self) -> None:
        """Forgets in every server process who may do what. To be called when a token, user, role or assignment changed."""
        ...

    def issue_run_token(self, run_id: str, phase: str, number: int, workspace_id: str) -> str:
        """A token that ends with the lease of this number."""
        ...


class Recorder(Protocol):
    """The audit log, as whoever is recorded sees it."""

    def record(self, request: Request, endpoint: Any, status: int, request_id: str, took_s: float) -> None:
        """Told of every request that is over; `endpoint` is its declaration, or None where there is none."""
        ...

    def note(self, deed: Deed) -> None:
        """Told of every change that no request asked for."""
        ...

    def check(self) -> None:
        """Asked before a request that will be recorded. Raises Unavailable where nothing more can be kept."""
        ...


class NotRecorded:
    """The recorder of a server whose audit log is switched off."""

    def record(self, request: Request, endpoint: Any, status: int, request_id: str, took_s: float) -> None: ...

    def note(self, deed: Deed) -> None: ...

    def check(self) -> None: ...


@dataclass(kw_only=True)
class Services:
    """What all rooms share. Made once by `app`."""

    config: Config
    store: Store
    cipher: KeyRing
    bus: Bus
    signer: Signer
    guard: Demands
    addresses: Addresses
    limits: Limiter
    workers: Workers
    memory: Budget
    outbox: Outbox  #: takes events to whoever wants them
    authenticator: Authenticator
    recorder: Recorder = field(default_factory=NotRecorded)
    providers: Providers = field(default_factory=Providers)  #: what rooms do for lower ones
    #: What this process counts for Prometheus.
    measured: Measured = field(default_factory=Measured)
    certificate: Certificate | None = None  #: of TLS; None where it is served without
    #: What rooms remember for as long as the server runs.
    remembered: dict[str, Any] = field(default_factory=dict)

    def ask(self, port: Port[P]) -> P:
        """Who provides this port, which the start has made sure that somebody does."""
        return self.providers.ask(port)

    def ask_all(self, port: MultiPort[P]) -> Sequence[P]:
        """All who provide this port, those of higher rooms first."""
        return self.providers.ask_all(port)
