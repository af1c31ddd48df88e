"""What all rooms share, made once by `app`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request

from terrapod_server.config.settings import Config
from terrapod_server.kit.caller import Level, Principal
from terrapod_server.kit.http.address import Addresses
from terrapod_server.kit.http.budget import Budget
from terrapod_server.kit.http.certificates import Certificate
from terrapod_server.kit.http.metrics import Measured
from terrapod_server.kit.http.rate_limits import Limiter
from terrapod_server.kit.http.signed import Signer
from terrapod_server.kit.work.bus import Bus
from terrapod_server.kit.work.workers import Workers
from terrapod_server.store.cipher import KeyRing
from terrapod_server.store.port import Store


class Rights(Protocol):
    """What a handler asks of the guard, where the path alone does not say which thing a request is about."""

    async def identify(self, request: Request) -> Principal:
        """Who the bearer token belongs to. Raises Unauthorized."""
        ...

    async def demand(
        self, principal: Principal, needs: Level, parameter: str, identity: str, *, is_certain: bool = False
    ) -> Level:
        """The caller's level on a thing. Raises NotFound where it may not know of it, Forbidden where it is too low."""
        ...


async def _nothing(*_: Any, **__: Any) -> None:
    """What a hook does until app.py has put a room's function in its place."""


def _nothing_at_once(*_: Any) -> None:
    """The same for a hook that nobody awaits."""


@dataclass(kw_only=True)
class Services:
    """What all rooms share. Made once by `app`, which also hands in what lower rooms ask of upper ones."""

    config: Config
    store: Store
    cipher: KeyRing
    bus: Bus
    signer: Signer
    guard: Rights
    addresses: Addresses
    limits: Limiter
    workers: Workers
    memory: Budget
    audit: Any = None  #: the writer of the audit log; None where it is switched off
    authenticator: Any  #: of identity: makes run tokens, forgets what it knew of tokens
    sign_in: Any  #: of identity: passwords, and the providers at which people sign in
    on_configuration_uploaded: Callable[..., Awaitable[Any]] = _nothing
    configuration_in_use: Callable[..., Awaitable[Any]] = _nothing
    on_state_finalized: Callable[..., Awaitable[Any]] = _nothing
    on_workspace_unlocked: Callable[..., Awaitable[Any]] = _nothing
    #: Frees the lock of a run that has left the state unknown; whether there was one. `(services, workspace_id, principal)`.
    release_run_lock: Callable[..., Awaitable[Any]] = _nothing
    local_engines: Callable[..., Awaitable[Any]] = _nothing
    pool_for: Callable[..., Awaitable[Any]] = _nothing
    #: Whether a run is of a workspace. `(workspace_id, run_id)`.
    has_run: Callable[..., Awaitable[Any]] = _nothing
    #: Gives each row of `runs` its place in the queue and why it waits. `(rows, principal)`.
    explain_waits: Callable[..., Awaitable[Any]] = _nothing
    run_has_status: Callable[..., Any] = _nothing  #: a condition in SQL: `(column, statuses)`
    #: What this process counts for Prometheus.
    measured: Measured = field(default_factory=Measured)
    certificate: Certificate | None = None  #: of TLS; None where it is served without
    #: What rooms remember for as long as the server runs.
    remembered: dict[str, Any] = field(default_factory=dict)
    #: Told of every request that is over: `(request, endpoint, status, request_id, took_s)`.
    record: Callable[..., None] = _nothing_at_once
    #: Told of every change that no request asked for: `(deed)`.
    note: Callable[..., None] = _nothing_at_once
    #: Asked before a request that will be recorded; raises Unavailable where nothing more can be kept.
    check_record: Callable[[], None] = _nothing_at_once
    #: Asked inside the transaction that deletes a workspace; may refuse with Conflict. `(workspace, only_empty)`.
    before_workspace_deleted: list[Callable[..., Awaitable[Any]]] = field(default_factory=list)
    #: Called inside the same transaction; topics of the bus to wake when it has committed, or None. `(workspace_id)`.
    on_workspace_deleted: list[Callable[..., Awaitable[Any]]] = field(default_factory=list)
    #: Called after it: removes the files. `(services, workspace_id)`.
    clear_deleted: Callable[..., Awaitable[Any]] = _nothing
