"""Whose answer is it? A proxy, an ingress or a captive portal answers too, and its status is not the server's word.

The server's own answers say so by a header, all of them; an error says so by
its document as well. Whatever says neither has decided nothing: it is an
`errors.Foreign`, and the request is made again.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from terrapod_shared import errors, wire

_TOO_MANY = 429
_FIRST_ERROR = 400
#: Of every answer of the server, older ones' too: go-tfe reads the first.
_APP, _NAME = "TFP-AppName", "Terrapod"


def is_servers(headers: Mapping[str, str]) -> bool:
    """Whether the headers, whose names are found in any case, are those of the server."""
    return headers.get(_APP) == _NAME or wire.PROTOCOL_HEADER in headers


def error_of(host: str, status: int, headers: Mapping[str, str], body: bytes) -> errors.TerrapodError:
    """What an answer that is no success means: the server's error, or Foreign.

    A rate limit is one, whoever sets it.
    """
    try:
        document: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        document = None
    if status >= _FIRST_ERROR and (is_servers(headers) or errors.is_document(status, document)):
        return errors.from_document(status, document)
    if status == _TOO_MANY:
        return errors.TooManyRequests(f"{host} answered {status}")
    return foreign(host, f"answered {status}")


def foreign(host: str, what: str) -> errors.Foreign:
    """`what`: how it answered, such as `answered 404`."""
    return errors.Foreign(f"{host} {what}, and not as Terrapod does: is it a proxy's answer, or no Terrapod there?")
