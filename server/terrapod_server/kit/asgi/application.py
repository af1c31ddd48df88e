"""The ASGI application: finds the endpoint, asks the guard, reads, calls, renders.

Every answer leaves through here, so every error has the one form, every
answer its request id and headers, and every body its limit.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tortoise.exceptions import ValidationError as OrmValidation

from terrapod_server.kit import html
from terrapod_server.kit.api.call import Call, base_of, too_large
from terrapod_server.kit.api.declare import INLINE_HINT, INLINE_MOST, Limit, Page, Raw, Recorded, Route
from terrapod_server.kit.api.render import Registry, encode
from terrapod_server.kit.asgi import documents, pages
from terrapod_server.kit.asgi.guard import Guard
from terrapod_server.kit.asgi.routes import Routes
from terrapod_server.kit.caller import ANONYMOUS, Level, Principal
from terrapod_server.kit.db import database_errors
from terrapod_server.kit.http import headers
from terrapod_server.kit.http.body import Body, Pace
from terrapod_server.kit.http.browser import Browser
from terrapod_server.kit.http.forms import FIELDS_BYTES
from terrapod_server.kit.services import Services
from terrapod_shared import errors, ids

_Headers = Sequence[tuple[bytes, bytes]]

log = logging.getLogger(__name__)
access_log = logging.getLogger("terrapod.access")

JSON = "application/json"
_LARGE_FORM_BYTES = 512 << 10
_INLINE_BYTES = INLINE_MOST * 4 // 3 + 4
_ID_LONGEST = 64
_PATH_LONGEST = 40
_SAFE = frozenset({"GET", "HEAD"})
_UPLOADS = frozenset({Limit.CONFIGURATION, Limit.STATE, Limit.MODULE})


class Server:
    """`start` and `stop` are awaited at the ends of the ASGI lifespan."""

    def __init__(
        self,
        routes: Routes,
        registry: Registry,
        services: Services,
        guard: Guard,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
    ) -> None:
        self.routes, self.registry, self.services, self._guard = routes, registry, services, guard
        self._start, self._stop = start, stop
        self._headers = headers.common(services.config)
        #: Done at the end of the start, before anybody is served.
        self.before_serving: list[Callable[[], Awaitable[None]]] = []
        #: Why the start failed.
        self.failure: Exception | None = None
        #: Called once the start is done.
        self.on_started: list[Callable[[], object]] = []
        limits = services.config.limits
        self.pace = Pace(document_s=limits.document_s, stall_s=limits.stall_s)
        self._limits = {
            Limit.JSON: limits.json_bytes,
            Limit.CONFIGURATION: limits.configuration_bytes,
            Limit.STATE: limits.state_bytes,
            Limit.INLINE: limits.json_bytes + 2 * _INLINE_BYTES,  # a state and its JSON form
            Limit.MODULE: limits.module_bytes,
            Limit.FORM: FIELDS_BYTES,
            Limit.LARGE_FORM: _LARGE_FORM_BYTES,
            Limit.NONE: 0,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _begin(self) -> None:
        await self._start()
        try:
            for each in self.before_serving:
                await each()
        except BaseException:
            await self._stop()
            raise

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._begin()
                except Exception as error:  # noqa: BLE001  whoever serves raises it again
                    self.failure = error
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
                for tell in self.on_started:
                    tell()
            else:
                await self._stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(Request(scope, receive), self.pace)
        request = Request(scope, body)
        begun = time.perf_counter()
        asked_id = request.headers.get("x-request-id", "")
        request_id = (
            asked_id
            if asked_id.isascii() and 0 < len(asked_id) <= _ID_LONGEST and asked_id.isprintable()
            else ids.tail()
        )
        endpoint: Route | None = None
        status = 0
        measured = self.services.measured
        measured.in_flight += 1

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            raw_path = scope.get("raw_path") or scope["path"].encode()
            endpoint, path = self.routes.find(request.method, raw_path.partition(b"?")[0].decode("ascii", "replace"))
            scope["path_params"] = path
            response = await self._answer(endpoint, request, path)
            await self._send(response, request_id, scope, body, counted)
        except errors.TerrapodError as error:
            if status == 0:
                await self._send(_refusal(error, endpoint, request, request_id), request_id, scope, body, counted)
            else:
                # the answer has no end, so Hypercorn closes the connection and the client knows
                log.warning("request %s broke off: %s", request_id, error.detail)
        except ClientDisconnect:
            log.debug("request %s: the client left", request_id)
        except Exception as error:  # one of the three edges: a handler's failure is a 5xx, never a dead server
            url = self.services.config.database
            is_away = database_errors.log_failure(log, f"request {request_id}", error, url)
            if status == 0:
                told = database_errors.unavailable() if is_away else errors.Internal()
                await self._send(_refusal(told, endpoint, request, request_id), request_id, scope, body, counted)
            else:
                raise
        finally:
            took_s = time.perf_counter() - begun
            self.services.recorder.record(request, endpoint, status, request_id, took_s)
            measured.in_flight -= 1
            if (held := scope.get("memory")) is not None:
                held.let_go()
            measured.answered(endpoint.path if endpoint else "", status, took_s)
            if self.services.config.access_log:
                shown = _shown(endpoint, scope["path"])
                access_log.info(
                    "%s %s %s %.1f ms %s",
                    request.method,
                    shown,
                    status,
                    took_s * 1e3,
                    request_id,
                )

    async def _send(self, response: ASGIApp, request_id: str, scope: Scope, body: Body, send: Send) -> None:
        if isinstance(response, Response):
            headers.add(response, ((b"x-request-id", request_id.encode()), *scope.get("rate", ()), *self._headers))
            if scope["method"] == "HEAD":  # nothing is read that nobody gets: a state, or a stream without an end
                response = Response(status_code=response.status_code, headers=dict(response.headers))
            if not body.has_ended and not isinstance(response, StreamingResponse):
                await body.leave(response, send)
                return
        await response(scope, body, send)

    async def _answer(self, endpoint: Route, request: Request, path: dict[str, str]) -> Response:
        if path.get("org", "default") != "default":
            self._charge(request)
            raise errors.NotFound
        if b"%00" in request.scope.get("query_string", b""):
            self._charge(request)
            message = "a query parameter may not contain a NUL character"
            raise errors.BadRequest(message)
        try:
            return await self._admitted(endpoint, request, path)
        except OrmValidation:  # a value that fits no column: an id that can be none, or text that is too long
            if any(len(value) > _PATH_LONGEST for value in path.values()) or request.method in {
                "GET",
                "HEAD",
                "DELETE",
            }:
                raise errors.NotFound from None
            message = "a value is longer than what is kept of it"
            raise errors.Invalid(message) from None

    async def _admitted(self, endpoint: Route, request: Request, path: dict[str, str]) -> Response:
        if isinstance(endpoint, Page):  # nothing else looks at a cookie
            request.scope["browser"] = Browser(request, self.services.signer, base_of(request, self.services.config))
        principal, level = await self._admit(endpoint, request, path)
        request.scope["principal"], request.scope["is_admitted"] = principal, True
        if endpoint.method not in _SAFE or endpoint.recorded is Recorded.READS:
            self.services.recorder.check()
        call = Call(
            request=request,
            services=self.services,
            path=path,
            principal=principal,
            level=level,
            limit_bytes=self._limits[endpoint.limit],
        )
        if endpoint.limit in _UPLOADS:
            call.expect_upload()
        if endpoint.limit is Limit.INLINE:
            call.limit_hint = INLINE_HINT
        length = request.headers.get("content-length", "")
        if call.limit_bytes and length.isdigit() and int(length[:20]) > call.limit_bytes:
            raise too_large(call.limit_bytes, call.limit_hint)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity") and endpoint.limit is not Limit.CONFIGURATION:  # which is a gzip itself
            message = f"the body may not be compressed, and its Content-Encoding is {encoding[:40]!r}"
            raise errors.UnsupportedMedia(message)
        if isinstance(endpoint, Page):
            return await pages.answer(endpoint, call, self._guard)
        if isinstance(endpoint, Raw):
            return await self._raw(endpoint, call)
        try:
            return await documents.answer(endpoint, call, self.registry)
        finally:
            call.forget()

    def _charge(self, request: Request) -> None:
        """A refusal that is recorded costs its address, also where requests are not metered: else anybody could fill
        the log. Raises TooManyRequests, of which many make one entry."""
        self.services.limits.take(request, ANONYMOUS, self.services.addresses.of(request))

    async def _raw(self, endpoint: Raw, call: Call) -> Response:
        try:
            return await endpoint.do(call)
        except errors.NotFound:
            if endpoint.unmetered and call.principal is ANONYMOUS and endpoint.method not in _SAFE:  # a forged URL
                self._charge(call.request)
            raise

    async def _admit(self, endpoint: Route, request: Request, path: dict[str, str]) -> tuple[Principal, Level]:
        """Guard and rate limits. Raises what the guard raises, and TooManyRequests."""
        guard, limits = self._guard, self.services.limits
        if isinstance(endpoint, Raw) and endpoint.unmetered:
            try:
                return await guard.admit(endpoint, request, path, self.services)
            except errors.TerrapodError:
                self._charge(request)
                raise
        address = self.services.addresses.of(request)
        limits.enter(request, address)
        try:
            principal, level = await guard.admit(endpoint, request, path, self.services)
        except errors.Unauthorized:
            limits.refused(request, address)
            raise
        except errors.TerrapodError:
            limits.take(request, request.scope.get("principal", ANONYMOUS), address)
            raise
        request.scope["rate"] = limits.take(request, principal, address)
        return principal, level


def _shown(endpoint: Route | None, path: str) -> str:
    """A path as the access log may hold it: a secret in it gives rights, also where the path as a whole is wrong."""
    if endpoint is None:
        return "/".join(part if len(part) <= _PATH_LONGEST else "(long)" for part in path.split("/"))
    return endpoint.path if isinstance(endpoint, Raw) and endpoint.quiet else path


def _refusal(error: errors.TerrapodError, endpoint: Route | None, request: Request, request_id: str) -> Response:
    """Signed where the request was: whoever passes it on could show the refusal of another one. A page for browsers."""
    is_page = html.wants_page(request) if endpoint is None else isinstance(endpoint, Page)
    if is_page:
        return html.refusal(error, request, request_id)
    response = _error_response(error)
    if vouch := request.scope.get("vouch"):
        vouch(response)
    return response


def _error_response(error: errors.TerrapodError) -> Response:
    media = error.headers.pop("Content-Type", JSON)
    return Response(encode(errors.document(error)), error.status, error.headers, media)
