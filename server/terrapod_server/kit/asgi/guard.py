"""Who is calling, and may they: 401, 403 and 404 for rights are decided here only.

The guard knows no users and no roles. It asks functions that app.py hands in:
who a bearer token belongs to, who signed a listener's request, and which
level a caller has on the thing that a path names.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from terrapod_server.kit.api.declare import Page, Raw, Route
from terrapod_server.kit.caller import ANONYMOUS, Access, Level, Principal
from terrapod_server.kit.http.browser import Browser
from terrapod_server.kit.services import Services
from terrapod_shared.errors import Forbidden, NotFound, Unauthorized

_READING = frozenset({"GET", "HEAD"})


def _allowed(principal: Principal, needs: Access) -> Level:
    """The level on what is about no one thing. Raises Forbidden."""
    if needs is Access.USER:
        return Level.NONE
    if needs is Access.LISTENER:
        message = "only a listener's signed request may do this"
        raise Forbidden(message)
    if needs is Access.SELF:
        if principal.is_limited:
            message = "a token with limits may not do this"
            raise Forbidden(message)
        return Level.NONE
    if principal.is_admin:
        return Level.ADMIN
    if needs is Access.AUDIT and principal.is_auditor:
        return Level.READ
    message = f"only a platform admin{' or an auditor' if needs is Access.AUDIT else ''} may do this"
    raise Forbidden(message)


@dataclass
class Guard:
    """`level(principal, parameter, id, is_certain=…)` answers NONE where the caller may not even know of it."""

    bearer: Callable[[str], Awaitable[Principal | None]]
    listener: Callable[[Request, Services], Awaitable[Principal]]
    level: Callable[..., Awaitable[Level]]
    #: Who a session's token belongs to; asked for pages alone.
    session: Callable[[str], Awaitable[Principal | None]]

    async def admit(
        self, endpoint: Route, request: Request, path: dict[str, str], services: Services
    ) -> tuple[Principal, Level]:
        """The caller and the level on the path's thing. Raises Unauthorized, Forbidden or NotFound."""
        needs = endpoint.needs
        if isinstance(endpoint, Page):
            visitor = await self.visitor(request)
            if needs is Access.PUBLIC or needs is Access.CAPABILITY:
                return visitor, Level.NONE
            if visitor is ANONYMOUS:
                raise Unauthorized("sign in first")
            return visitor, await self._level(visitor, endpoint, path)
        if needs is Access.PUBLIC or needs is Access.CAPABILITY:
            return ANONYMOUS, Level.NONE
        is_signed = "signature" in request.headers
        if (needs is Access.LISTENER and (is_signed or not request.headers.get("authorization"))) or (
            is_signed and isinstance(endpoint, Raw) and endpoint.or_listener
        ):
            request.scope["path_params"] = path
            return await self.listener(request, services), Level.NONE
        principal = await self.identify(request)
        if principal.kind == "run" and not endpoint.run_token:
            if isinstance(needs, Level):
                raise NotFound
            message = "a run's token cannot be used for this"
            raise Forbidden(message)
        level = await self._level(principal, endpoint, path)
        if request.method not in _READING and principal.rights is not None and principal.rights.is_read_only:
            message = "this token may only read"
            raise Forbidden(message)
        return principal, level

    async def _level(self, principal: Principal, endpoint: Route, path: dict[str, str]) -> Level:
        needs = endpoint.needs
        return (
            _allowed(principal, needs) if isinstance(needs, Access) else await self.require(principal, endpoint, path)
        )

    async def require(self, principal: Principal, endpoint: Route, path: dict[str, str]) -> Level:
        """The caller's level on what the path names; at least the one that the endpoint needs."""
        if principal.kind == "run":  # the handler checks which things a run's token may read
            return Level.READ
        needs = endpoint.needs if isinstance(endpoint.needs, Level) else Level.READ
        identity = "/".join(path.get(part, "") for part in endpoint.guarded.split("/"))
        return await self.demand(principal, needs, endpoint.guarded, identity)

    async def demand(
        self, principal: Principal, needs: Level, parameter: str, identity: str, *, is_certain: bool = False
    ) -> Level:
        """The caller's level on a thing. Raises NotFound where it may not know of it, Forbidden where it is too low.

        `is_certain`: an admin too is told here that there is no such thing.
        """
        level = await self.level(principal, parameter, identity, is_certain=is_certain)
        if level is Level.NONE:
            raise NotFound
        if level < needs:
            message = f"this needs {needs.name.lower()}, and you have {level.name.lower()}"
            raise Forbidden(message)
        return level

    async def visitor(self, request: Request) -> Principal:
        """Who is signed in, in the browser that asks for a page."""
        browser: Browser = request.scope["browser"]
        principal = await self.session(browser.session) if browser.session else None
        if principal is None:
            return ANONYMOUS
        request.scope["principal"] = principal  # known to the record, whatever is answered
        return principal

    async def identify(self, request: Request) -> Principal:
        """Who the bearer token belongs to. Raises Unauthorized."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        principal = await self.bearer(token.strip()) if scheme.lower() == "bearer" and token else None
        if principal is None:
            error = Unauthorized("a valid bearer token is needed")
            error.headers["WWW-Authenticate"] = "Bearer"
            raise error
        request.scope["principal"] = principal  # known to the record, whatever is answered
        return principal
