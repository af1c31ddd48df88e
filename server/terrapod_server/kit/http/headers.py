"""Headers that every answer has; a page has its own besides (`html`)."""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.responses import Response

from terrapod_server.config.settings import Config
from terrapod_shared import wire

_YEAR_S = 365 * 24 * 3600
_COMMON = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "strict-origin-when-cross-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "tfp-api-version": "2.6",
    "tfp-appname": "Terrapod",  # by this and the next, clients tell our answers from a proxy's (`answers`)
    wire.PROTOCOL_HEADER.lower(): str(wire.PROTOCOL),
}
Pairs = tuple[tuple[bytes, bytes], ...]


def common(config: Config) -> Pairs:
    """Of every answer, as they go over the wire. One that an answer has already stays."""
    headers = dict(_COMMON)
    base = urlsplit(config.url)
    if base.scheme == "https" and _is_name_of_many(base.hostname or ""):
        headers["strict-transport-security"] = f"max-age={_YEAR_S}"
    return tuple((name.encode(), value.encode()) for name, value in headers.items())


def _is_name_of_many(host: str) -> bool:
    """A browser keeps HSTS by name: on `localhost` it would break whatever else a developer runs there."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost" and not host.endswith(".localhost")
    return False


def add(response: Response, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Adds those that the response does not have."""
    present = {name for name, _ in response.raw_headers}
    response.raw_headers += [pair for pair in pairs if pair[0] not in present]


__all__ = ["Pairs", "add", "common"]
