"""How an endpoint of the API answers: its document is read, its handler is called, and what that gives is rendered."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from terrapod_server.kit.api import parse, render
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Endpoint
from terrapod_server.kit.api.render import Registry, encode
from terrapod_server.kit.asgi import idempotency
from terrapod_server.kit.db import database_errors
from terrapod_server.kit.paging import Rows
from terrapod_shared import errors

log = logging.getLogger(__name__)

_TAKEN = frozenset({"application/vnd.api+json", "application/json"})
#: A body of this size and more is decoded in a thread.
_LARGE_JSON = 256 << 10
#: What a body and the document in it take, as a multiple of the body.
_BODY_WEIGHT = 3
_ACCEPTED_STATUS = 202
_SAFE = frozenset({"GET", "HEAD"})


async def answer(endpoint: Endpoint, call: Call, registry: Registry) -> Response:
    """Reads what was sent, lets the handler do it, and shows what it gives; a repeat gets the first answer again."""
    raw = await _read(endpoint, call) if endpoint.method not in _SAFE else b""
    if endpoint.method != "POST" or idempotency.HEADER not in call.request.headers:
        return await _render(registry, endpoint, call, await _done(endpoint, call))
    attempt = idempotency.Attempt(call, raw)
    earlier = await attempt.begin()
    if earlier is not None:
        status, body = earlier
        return Response(body, status, dict(endpoint.headers), endpoint.media if body else None)
    try:
        result = await _done(endpoint, call)
    except BaseException:
        await asyncio.shield(attempt.forget())
        raise
    response = await _render(registry, endpoint, call, result)
    try:
        await attempt.end(response.status_code, bytes(response.body))
    except Exception as error:  # noqa: BLE001  the work is done and committed, so that it may not be told as failed
        url = call.services.config.database
        database_errors.log_failure(log, f"keeping the answer to a repeat of {endpoint.path}", error, url)
    return response


async def _done(endpoint: Endpoint, call: Call) -> Any:
    """What the handler gives; of a change it is noted which thing it was about."""
    result = await endpoint.do(call)
    resource = endpoint.resource
    is_row = not endpoint.many and not isinstance(result, Response | None)
    if resource is not None and is_row and endpoint.method not in _SAFE:
        row = render.opened(result)
        call.about(resource.type, resource.id(row), getattr(row, "workspace_id", "") or "")
    return result


async def _read(endpoint: Endpoint, call: Call) -> bytes:
    """Decodes the body into `call`; the bytes are given back for the repeat check."""
    call.raw = raw = await call.body(_BODY_WEIGHT)
    if not endpoint.body and not raw:
        return raw
    media = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if raw and media and media not in _TAKEN:
        message = f"the body must be application/vnd.api+json or application/json, not {media[:80]}"
        raise errors.UnsupportedMedia(message)
    large = len(raw) >= _LARGE_JSON
    call.document = await asyncio.to_thread(parse.decode, raw) if large else parse.decode(raw)
    if not endpoint.body:
        return raw
    resource = endpoint.takes or endpoint.resource
    if endpoint.body_many:
        data = call.document.get("data") if isinstance(call.document, Mapping) else None
        if not isinstance(data, list):
            message = "data must be a list of resource identifiers"
            raise errors.Invalid(message, pointer="/data")
        parse.check_count(data, "data", "/data")
        call.items = [parse.linked(item, f"/data/{index}") for index, item in enumerate(data)]
    elif resource is not None:
        required = endpoint.status == 201 or endpoint.method == "PATCH"  # noqa: PLR2004
        data = parse.resource_object(call.document, required=required)
        parse.check_type(data, resource)
        call.attributes = parse.attributes(data, resource)
        call.relations = parse.relations(data, resource)
    return raw


async def _render(registry: Registry, endpoint: Endpoint, call: Call, result: Any) -> Response:
    if isinstance(result, Response):
        return result
    if result is None:
        return Response(
            status_code=endpoint.status if endpoint.status == _ACCEPTED_STATUS else 204,
            headers=dict(endpoint.headers),
        )
    if endpoint.resource is None:
        document = result
    elif endpoint.many:
        page = result if isinstance(result, Rows) else Rows(list(result))
        document = await registry.many(endpoint.resource, page, call, endpoint.view)
    else:
        document = await registry.one(endpoint.resource, result, call, endpoint.view)
    return Response(encode(document), endpoint.status, dict(endpoint.headers), endpoint.media)
