"""One request as a handler sees it, and what the whole server shares."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from terrapod_server.kit.api.declare import Level, Linked, Page
from terrapod_server.kit.http import body, departure
from terrapod_server.kit.http.budget import Held
from terrapod_server.kit.http.metrics import Measured
from terrapod_shared.errors import BadRequest, Invalid, TooLarge

if TYPE_CHECKING:
    from terrapod_server.config.settings import Config
    from terrapod_server.kit.asgi.guard import Guard
    from terrapod_server.kit.http.address import Addresses
    from terrapod_server.kit.http.budget import Budget
    from terrapod_server.kit.http.certificates import Certificate
    from terrapod_server.kit.http.rate_limits import Limiter
    from terrapod_server.kit.http.signed import Signer
    from terrapod_server.kit.work.bus import Bus, Subscription
    from terrapod_server.kit.work.workers import Workers
    from terrapod_server.store.cipher import KeyRing
    from terrapod_server.store.port import Store

#: An object of the store that is no larger is read before its answer begins.
_SMALL_OBJECT = 2 << 20
#: How many rows' levels are remembered of one caller, who itself is remembered for seconds.
_LEVELS_MOST = 4096
PAGE_SIZE = 20
PAGE_SIZE_MAX = 100


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who calls. A person (`user`) has rights; runs and listeners have what their endpoints check."""

    kind: Literal["user", "run", "listener", "anonymous"] = "anonymous"
    id: str = ""
    name: str = ""
    token_id: str = ""
    session_id: str = ""
    provider: str = ""  #: which way of signing in vouches for the person
    rights: Any = None  #: a person's `access.rules.Rights`
    lease: int = 0
    workspace_id: str = ""
    phase: str = ""
    pool_id: str = ""

    @property
    def is_admin(self) -> bool:
        """A platform admin, by a token that is not limited to one workspace."""
        return self.rights is not None and self.rights.is_admin and not self.rights.only_workspace

    @property
    def is_auditor(self) -> bool:
        """May look into all that admins may look into."""
        return self.rights is not None and self.rights.sees_all

    @property
    def is_limited(self) -> bool:
        """Whether the token gives less than the person has."""
        return self.rights is not None and (self.rights.is_read_only or bool(self.rights.only_workspace))


ANONYMOUS = Principal()


@dataclass(frozen=True, kw_only=True)
class Deed:
    """A change that no request asked for, in the words of the request that would have made the same one."""

    actor_kind: Literal["server", "operator"]  #: the server by itself, or whoever calls its command line
    actor: str
    method: str
    path: str  #: as it is declared
    resource_type: str
    resource_id: str
    status: int
    program: str = ""


async def _nothing(*_: Any, **__: Any) -> None:
    """What a hook does until app.py has put a room's function in its place."""


def _nothing_at_once(*_: Any) -> None:
    """The same for a hook that nobody awaits."""


@dataclass(kw_only=True)
class Services:
    """What all rooms share. Made once by `app`, which also hands in what lower rooms ask of upper ones."""

    config: "Config"
    store: "Store"
    cipher: "KeyRing"
    bus: "Bus"
    signer: "Signer"
    guard: "Guard"
    addresses: "Addresses"
    limits: "Limiter"
    workers: "Workers"
    memory: "Budget"
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
    #: Gives each row of `runs` its place in the queue and why it waits. `(rows, principal)`.
    explain_waits: Callable[..., Awaitable[Any]] = _nothing
    run_has_status: Callable[..., Any] = _nothing  #: a condition in SQL: `(column, statuses)`
    #: What this process counts for Prometheus.
    measured: Measured = field(default_factory=Measured)
    certificate: "Certificate | None" = None  #: of TLS; None where it is served without
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


@dataclass(frozen=True)
class PageRequest:
    """`asked` tells whether the client named a size: some lists answer in full otherwise."""

    number: int
    size: int
    asked: bool

    @property
    def offset(self) -> int:
        return (self.number - 1) * self.size


def page_of(query: Mapping[str, str]) -> PageRequest:
    """Reads `page[number]` and `page[size]`; a size over 100 is clamped."""
    numbers = {}
    for name, least, default in (("page[number]", 1, 1), ("page[size]", 1, PAGE_SIZE)):
        text = query.get(name, "")
        if not text:
            numbers[name] = default
            continue
        if not text.isascii() or not text.isdigit() or int(text[:12]) < least:
            message = f"{name} must be a whole number from {least}, not {text[:40]!r}"
            raise Invalid(message)
        numbers[name] = min(int(text[:12]), 1 << 40)
    size = min(numbers["page[size]"], PAGE_SIZE_MAX)
    return PageRequest(min(numbers["page[number]"], (1 << 50) // size), size, bool(query.get("page[size]")))


@dataclass(kw_only=True)
class Call:
    """One request, handed to every handler."""

    request: Request
    services: Services
    path: dict[str, str]
    principal: Principal = ANONYMOUS
    level: Level = Level.NONE
    limit_bytes: int = 0
    limit_hint: str = ""  #: what to do with a body that is larger
    attributes: dict[str, Any] = field(default_factory=dict)
    relations: dict[str, list[Linked] | Linked | None] = field(default_factory=dict)
    items: list[Linked] = field(default_factory=list)
    document: Any = None
    raw: bytes = b""  #: of a JSON:API request, as it was sent

    def param(self, name: str, default: str | None = None) -> str | None:
        """A query parameter; absent or empty ones are `default`."""
        return self.query.get(name) or default

    def flag(self, name: str) -> bool:
        return (self.param(name) or "").lower() in {"1", "true", "yes"}

    @cached_property
    def query(self) -> Mapping[str, str]:
        return self.request.query_params if self.request.scope["query_string"] else {}

    @cached_property
    def page(self) -> PageRequest:
        return page_of(self.query)

    async def rows(self, queryset: Any, *, full_unless_asked: bool = False) -> Page:
        """The page of a Tortoise queryset that the client asked for, with the count of all."""
        page = self.page
        if full_unless_asked and not page.asked:
            return Page(await queryset)
        total = await queryset.count()
        if page.offset >= total:
            return Page([], total)
        return Page(await queryset.offset(page.offset).limit(page.size), total)

    def cut(self, rows: Sequence[Any]) -> Page:
        """The page of rows that are all in memory; for lists that are short by nature."""
        page = self.page
        return Page(rows[page.offset : page.offset + page.size], len(rows))

    def level_on(self, row: Any) -> Level:
        """The caller's level on a row of the answer: its own, where rows differ, else that of the request."""
        level = getattr(row, "level", None)
        return self.level if level is None else level

    def readable(self, rows: Sequence[Any]) -> list[Any]:
        """Of things with rights those that the caller may read; each gets its level."""
        rights = self.principal.rights
        found = []
        for row in rows if rights is not None else ():
            key = getattr(row, "as_read", None)  # all that decides it is in the row as it came of the database
            level = rights.remembered.get(key) if key is not None else None
            if level is None:
                level = rights.level(row.id, row.name, row.labels, row.owner_id)
                if key is not None and len(rights.remembered) < _LEVELS_MOST:
                    rights.remembered[key] = level
            row.level = level
            if row.level > Level.NONE:
                found.append(row)
        return found

    def listed(self, page: Page) -> Page:
        """A page of things with rights, filtered by the database, in which each row gets the caller's level on it."""
        if self.principal.is_admin and not self.principal.is_limited:
            self.level = Level.ADMIN
            return page
        return Page(self.readable(page.rows), page.total)

    def refuse_others(self, names: Collection[str], why: str) -> None:
        """Raises Invalid for a sent attribute that the resource has and this endpoint does not take, unless it is empty."""
        for column, value in self.attributes.items():
            if column not in names and value:
                attribute = column.replace("_", "-")
                message = f"{attribute} cannot be set here: {why}"
                raise Invalid(message, pointer=f"/data/attributes/{attribute}")

    def has_related(self, name: str) -> bool:
        return name in self.relations

    def related(self, name: str) -> str | None:
        """The id that a to-one relationship names, or None where it was not sent or is null."""
        linked = self.relations.get(name)
        if isinstance(linked, list):
            message = f"{name} is a to-one relationship"
            raise Invalid(message, pointer=f"/data/relationships/{name}/data")
        return linked.id if linked else None

    def related_many(self, name: str) -> list[Linked] | None:
        """The members of a to-many relationship, or None where it was not sent."""
        linked = self.relations.get(name)
        if isinstance(linked, Linked):
            message = f"{name} is a to-many relationship"
            raise Invalid(message, pointer=f"/data/relationships/{name}/data")
        return linked

    @cached_property
    def memory(self) -> Held:
        """What this request holds of the memory that all share, until its answer is sent."""
        who = f"{self.principal.kind} {self.principal.id or self.address}"
        held: Held = self.request.scope.setdefault("memory", Held(self.services.memory, who))
        return held

    @cached_property
    def address(self) -> str:
        """The client's address, as far as it can be believed."""
        return self.services.addresses.of(self.request)

    def about(self, kind: str, identity: str, workspace_id: str = "", actor: Principal | None = None) -> None:
        """Says for the record what the request is about, where its path does not, and who came in by it."""
        self.request.scope["about"] = (kind, identity, workspace_id)
        if actor is not None:
            self.request.scope["principal"] = actor

    def url(self, path: str) -> str:
        """Absolute URL of a path, as the client reaches us: the setting, else the Host it named."""
        return self.base + path

    @cached_property
    def base(self) -> str:
        """How absolute URLs begin in this answer."""
        return base_of(self.request, self.services.config)

    async def stored(
        self,
        key: str,
        media: str,
        size: int | None = None,
        headers: Mapping[str, str] | None = None,
        version: str = "",
    ) -> Response:
        """An object of the store as the answer; `size` where it is known, `version` as `Store.whole` has it.

        A small one that is damaged is an error.
        """
        store = self.services.store
        size = await store.size(key) if size is None else size
        if size <= _SMALL_OBJECT:
            await self.memory.add(size)
            return Response(await store.whole(key, _SMALL_OBJECT, version=version), media_type=media, headers=headers)
        return StreamingResponse(
            store.get(key), media_type=media, headers={"Content-Length": str(size), **(headers or {})}
        )

    async def wait(self, woken: "Subscription", timeout_s: float) -> bool:
        """`Subscription.wait` for a request whose body was read; ends also when the client leaves. Raises ClientDisconnect."""
        with departure.of(self.request.scope).tells(woken.wake):
            if await self._has_left():
                raise ClientDisconnect
            was_woken = await woken.wait(timeout_s)
        if await self._has_left():
            raise ClientDisconnect
        return was_woken

    async def _has_left(self) -> bool:
        """Asked twice: of a GET nobody has read the message that says that there is no body."""
        return await self.request.is_disconnected() or await self.request.is_disconnected()

    def expect_upload(self) -> None:
        """The body may be large: see `Body.expect_upload`."""
        body.of(self.request).expect_upload()

    def forget(self) -> None:
        """Lets go of what the client sent: whatever still refers to this call is not to hold that."""
        self.raw, self.document = b"", None
        self.attributes, self.relations, self.items = {}, {}, []

    async def body(self, weight: int = 1, chunks: AsyncIterator[bytes] | None = None) -> bytes:
        """All of the body, which counts `weight` times for the memory that it and what is made of it take.

        A body of a known length is not read before there is room for all of it:
        many that have some and wait for more would wait for each other.
        `chunks`: where it comes from, if not from the request itself.
        Raises as `stream`, and Unavailable.
        """
        length = self.request.headers.get("content-length", "")
        is_known = length.isdigit() and int(length[:20]) <= self.limit_bytes
        if is_known:
            await self.memory.add(weight * int(length))
        parts = []
        async for chunk in chunks or self.stream():
            if not is_known:
                await self.memory.add(weight * len(chunk))
            parts.append(chunk)
        return b"".join(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body's chunks. Raises TooLarge past the endpoint's limit, BadRequest when it is cut off."""
        seen = 0
        try:
            async for chunk in self.request.stream():
                seen += len(chunk)
                if self.limit_bytes and seen > self.limit_bytes:
                    raise too_large(self.limit_bytes, self.limit_hint)
                if chunk:
                    yield chunk
        except ClientDisconnect:
            message = f"the body ended after {seen} bytes, before it was whole"
            raise BadRequest(message) from None
        length = self.request.headers.get("content-length")
        if length is not None and length.isdigit() and int(length) != seen:
            message = f"the body has {seen} bytes and not the {length} of its Content-Length"
            raise BadRequest(message)


def base_of(request: Request, config: "Config") -> str:
    """How absolute URLs begin for this client: by the setting, else by the host that it named."""
    host = "" if config.public_url else request.headers.get("host", "")
    return f"{request.scope['scheme']}://{host}" if host else config.url


def too_large(limit_bytes: int, hint: str = "") -> TooLarge:
    return TooLarge(f"the body is larger than {limit_bytes} bytes{hint and '; '}{hint}")
