"""Whether the server is there, which services it has, and its API as a document."""

import logging
from typing import Any

from starlette.responses import Response

from terrapod_server.encryption import known_keys
from terrapod_server.encryption.known_keys import Unusable
from terrapod_server.kit import html
from terrapod_server.kit.api import openapi
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Endpoint, Raw
from terrapod_server.kit.api.render import encode
from terrapod_server.kit.caller import Access
from terrapod_server.kit.db import database, database_errors
from terrapod_server.kit.http import static
from terrapod_server.kit.services import Services
from terrapod_server.system.ports import DECLARED

log = logging.getLogger(__name__)
_DOCUMENT = "openapi document"


async def health(_call: Call) -> Response:
    """Whether the process runs; asks nothing else."""
    return Response(encode({"status": "healthy"}), media_type="application/json")


async def ready(call: Call) -> Response:
    """Whether the database and the store answer, and the key file has the keys that are in use."""
    checks = {}
    for name, check in (("database", _database_answers), ("storage", call.services.store.healthy)):
        try:
            checks[name] = "healthy" if await check() else "unhealthy"
        except Exception as error:  # noqa: BLE001  whatever it is, the answer says that it is not healthy
            database_errors.log_failure(log, f"the check of the {name}", error, call.services.config.database)
            checks[name] = "unhealthy"
    if checks["database"] == "healthy" and not await _has_keys(call.services):
        checks["keys"] = "unhealthy"
    healthy = all(state == "healthy" for state in checks.values()) and not call.services.bus.is_closing
    body = encode({"status": "ready" if healthy else "not ready", "checks": checks})
    return Response(body, 200 if healthy else 503, media_type="application/json")


async def _database_answers() -> bool:
    return bool(await database.query("SELECT 1 AS one"))


async def _has_keys(services: Services) -> bool:
    """Whether this process, and one that would start now, can read all that is encrypted."""
    path = services.config.keys
    try:
        missing = await known_keys.missing(path, services.cipher)
    except Unusable as error:
        log.warning("%s", error)
        return False
    if missing:
        log.warning("keys are in use that this process or %s lacks: %s", path, ", ".join(sorted(missing)))
    return not missing


async def discovery(call: Call) -> Response:
    """Which services this host has; only what is served is named."""
    return Response(encode(call.services.ask(DECLARED).discovery), media_type="application/json")


async def icon(_call: Call) -> Response:
    """The icon of the pages."""
    return Response(html.ICON, media_type="image/svg+xml", headers={"Cache-Control": "public, max-age=86400"})


async def file(call: Call) -> Response:
    """A file of the pages, such as their style."""
    return static.answer(call.request, call.path["digest"], call.path["file"])


async def ping(call: Call) -> Response:
    """The version handshake: terraform reads the headers and nothing else, so no token is asked for."""
    announced = call.services.limits.announced
    limit = {"X-RateLimit-Limit": announced} if announced else {}
    return Response(status_code=204, headers={"X-TFE-Version": "v202505-1", **limit})


async def document(call: Call) -> Response:
    """This API as an OpenAPI 3.1 document."""
    remembered = call.services.remembered
    if _DOCUMENT not in remembered:  # made once it is asked for
        declared = call.services.ask(DECLARED)
        remembered[_DOCUMENT] = encode(openapi.document(declared.endpoints, declared.tags))
    return Response(remembered[_DOCUMENT], media_type="application/json")


ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Raw("GET", "/health", health, Access.PUBLIC, unmetered=True, gives=dict[str, str]),
    Raw("GET", "/ready", ready, Access.PUBLIC, unmetered=True, gives=dict[str, Any]),
    Raw("GET", "/.well-known/terraform.json", discovery, Access.PUBLIC, unmetered=True, gives=dict[str, Any]),
    Raw("GET", "/favicon.svg", icon, Access.PUBLIC, unmetered=True),
    Raw("GET", "/favicon.ico", icon, Access.PUBLIC, unmetered=True),
    Raw("GET", static.PATH, file, Access.PUBLIC, unmetered=True, answers=(200, 304), gives="text/css"),
    Raw("GET", "/api/v2/ping", ping, Access.PUBLIC, unmetered=True, answers=(204,)),
    Raw("GET", "/api/v2/openapi.json", document, Access.PUBLIC, unmetered=True, gives=dict[str, Any]),
)
