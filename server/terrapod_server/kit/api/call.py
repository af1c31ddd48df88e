"""One request as a handler sees it."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from terrapod_server.config import hosts
from terrapod_server.config.settings import Config
from terrapod_server.kit.api.identifiers import Linked
from terrapod_server.kit.caller import ANONYMOUS, Level, Principal
from terrapod_server.kit.http import body, departure
from terrapod_server.kit.http.browser import Browser
from terrapod_server.kit.http.budget import Held
from terrapod_server.kit.http.multipart import Part
from terrapod_server.kit.paging import PageRequest, Rows, page_of
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.bus import Subscription
from terrapod_shared.errors import BadRequest, Invalid, TooLarge

#: An object of the store that is no larger is read before its answer begins.
_SMALL_OBJECT = 2 << 20
#: How many rows' levels are remembered of one caller, who itself is remembered for seconds.
_LEVELS_MOST = 4096


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
    form: dict[str, str] = field(default_factory=dict)  #: the fields of a form that was posted
    files: AsyncIterator[Part] | None = None  #: the files behind them

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

    async def rows(self, queryset: Any, *, full_unless_asked: bool = False) -> Rows:
        """The page of a Tortoise queryset that the client asked for, with the count of all."""
        page = self.page
        if full_unless_asked and not page.asked:
            return Rows(await queryset)
        total = await queryset.count()
        if page.offset >= total:
            return Rows([], total)
        return Rows(await queryset.offset(page.offset).limit(page.size), total)

    def cut(self, rows: Sequence[Any]) -> Rows:
        """The page of rows that are all in memory; for lists that are short by nature."""
        page = self.page
        return Rows(rows[page.offset : page.offset + page.size], len(rows))

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

    def listed(self, page: Rows) -> Rows:
        """A page of things with rights, filtered by the database, in which each row gets the caller's level on it."""
        if self.principal.is_admin and not self.principal.is_limited:
            self.level = Level.ADMIN
            return page
        return Rows(self.readable(page.rows), page.total)

    def refuse_others(self, names: Collection[str], why: str) -> None:
        """Raises Invalid for a sent attribute that the resource has and this endpoint does not take, unless it is empty."""
        for column, value in self.attributes.items():
            if column not in names and value:
                attribute = column.replace("_", "-")
                message = f"{attribute} cannot be set here: {why}"
                raise Invalid(message, pointer=f"/data/attributes/{attribute}")

    def has_related(self, name: str) -> bool:
        return name in self.relations

    def required(self, name: str) -> Any:
        """An attribute that must be sent. Raises Invalid where it was not."""
        column = name.replace("-", "_")
        if column not in self.attributes:
            raise Invalid(f"{name} is required", pointer=f"/data/attributes/{name}")
        return self.attributes[column]

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

    @property
    def browser(self) -> Browser:
        """What the browser carries that asks for a page; nothing else may ask for it."""
        found: Browser = self.request.scope["browser"]
        return found

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

    async def wait(self, woken: Subscription, timeout_s: float) -> bool:
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


def base_of(request: Request, config: Config) -> str:
    """How absolute URLs begin for this client: by the setting, else by the host that it named, if it named one."""
    host = "" if config.public_url else request.headers.get("host", "")
    return f"{request.scope['scheme']}://{host}" if hosts.is_authority(host) else config.url


def too_large(limit_bytes: int, hint: str = "") -> TooLarge:
    return TooLarge(f"the body is larger than {limit_bytes} bytes{hint and '; '}{hint}")
