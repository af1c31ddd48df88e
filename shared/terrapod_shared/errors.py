"""Every error that a user or another program may see, at both ends of the wire. Pure.

TerrapodError                 never raised itself
 ├─ BadRequest           400  cannot be read
 ├─ Unauthorized         401  no credential, or none that is good
 │   ├─ ClockSkew        401  a signature's time is off; carries the server's
 │   └─ SeenBefore       401  a signed request came twice
 ├─ Forbidden            403  may see it, may not do this
 ├─ NotFound             404  is not there, or may not be seen
 │   └─ UnknownListener       the listener itself: it has to join again
 ├─ MethodNotAllowed     405
 ├─ TooSlow              408  the body did not come in time
 ├─ Conflict             409  is in a state in which this cannot be
 │   ├─ IllegalTransition
 │   ├─ LeaseEnded            a write that carries an old lease number
 │   └─ UnderWay              the first request with this Idempotency-Key has not ended
 ├─ TooLarge             413
 ├─ UnsupportedMedia     415
 ├─ Invalid              422  read, and wrong; carries a pointer to the member
 ├─ ProtocolMismatch     426  a listener of another protocol version
 ├─ TooManyRequests      429
 ├─ Internal             500
 ├─ BadGateway           502  somebody upstream failed us
 │   ├─ Foreign               the answer is not the server's: something in front of it gave it
 │   └─ Unreachable           and may answer later
 └─ Unavailable          503

The server renders them in one function (`document`); a client turns the
document back into the same class (`from_document`). Whose answer it is says
`answers`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class TerrapodError(Exception):
    """Root of the tree; never raised itself."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "internal server error"

    def __init__(self, detail: str = "", *, pointer: str | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.pointer = pointer
        #: Further members of the error object's `meta`, for programs.
        self.meta: dict[str, Any] = {}
        #: Further headers of the answer.
        self.headers: dict[str, str] = {}


class BadRequest(TerrapodError):
    status = 400
    title = "bad request"


class Unauthorized(TerrapodError):
    status = 401
    title = "unauthorized"


class ClockSkew(Unauthorized):
    """The request's time is not ours; `meta["server-time"]` is, in unix seconds."""

    title = "clock skew"


class SeenBefore(Unauthorized):
    """The nonce was used: something on the way sent the request twice. Signed anew it is a new one."""

    title = "seen before"


class Forbidden(TerrapodError):
    status = 403
    title = "forbidden"


class NotFound(TerrapodError):
    status = 404
    title = "not found"


class UnknownListener(NotFound):
    """The server has no listener with the id that signed: join again, and keep the work."""

    title = "unknown listener"


class MethodNotAllowed(TerrapodError):
    status = 405
    title = "method not allowed"


class TooSlow(TerrapodError):
    """The body did not come in time; what came of it was thrown away."""

    status = 408
    title = "request timeout"


class Conflict(TerrapodError):
    status = 409
    title = "conflict"


class IllegalTransition(Conflict):
    title = "illegal transition"


class LeaseEnded(Conflict):
    """The lease number that came with the write is not the newest."""

    title = "lease-ended"


class UnderWay(Conflict):
    """The same request, sent before, is still being answered: ask again in a moment."""

    title = "still under way"


class TooLarge(TerrapodError):
    status = 413
    title = "content too large"


class UnsupportedMedia(TerrapodError):
    status = 415
    title = "unsupported media type"


class Invalid(TerrapodError):
    """`pointer` is a JSON pointer into the request, such as `/data/attributes/name`."""

    status = 422
    title = "invalid"


class ProtocolMismatch(TerrapodError):
    status = 426
    title = "upgrade required"


class TooManyRequests(TerrapodError):
    status = 429
    title = "too many requests"


class Internal(TerrapodError):
    status = 500
    title = "internal server error"


class BadGateway(TerrapodError):
    status = 502
    title = "bad gateway"


class Foreign(BadGateway):
    """An answer that nothing shows to be the server's, whatever its status: it says nothing about the request."""

    title = "not the server's answer"


class Unreachable(BadGateway):
    """Somebody upstream does not answer now: the same may be asked later."""

    title = "upstream does not answer"


class Unavailable(TerrapodError):
    status = 503
    title = "service unavailable"


def _leaves(cls: type[TerrapodError]) -> list[type[TerrapodError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _leaves(sub))]


def document(error: TerrapodError) -> dict[str, Any]:
    """The JSON:API form: `{"errors": [{"status", "title", "detail", "source", "meta"}]}`."""
    entry: dict[str, Any] = {
        "status": str(error.status),
        "title": error.title,
        "detail": error.detail,
    }
    if error.pointer:
        entry["source"] = {"pointer": error.pointer}
    if error.meta:
        entry["meta"] = error.meta
    return {"errors": [entry]}


def is_document(status: int, body: object) -> bool:
    """Whether a decoded body is what `document` makes of an error of this status."""
    entries = body.get("errors") if isinstance(body, Mapping) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    if not isinstance(first, Mapping) or first.get("status") != str(status):
        return False
    return any(cls.status == status and cls.title == first.get("title") for cls in _leaves(TerrapodError)[1:])


def from_document(status: int, body: object) -> TerrapodError:
    """The error that a server rendered; an answer of no known form becomes its status' class."""
    classes = _leaves(TerrapodError)[1:]
    title, detail, pointer, meta = "", "", None, {}
    if isinstance(body, Mapping):
        entries = body.get("errors")
        first = entries[0] if isinstance(entries, list) and entries else None
        if isinstance(first, Mapping):
            title, detail = str(first.get("title", "")), str(first.get("detail", ""))
            source = first.get("source")
            pointer = str(source["pointer"]) if isinstance(source, Mapping) and "pointer" in source else None
            meta = dict(first["meta"]) if isinstance(first.get("meta"), Mapping) else {}
        elif isinstance(first, str):
            detail = first
    same = [cls for cls in classes if cls.status == status]
    cls = next((c for c in same if c.title == title), same[0] if same else None)
    if cls is None:
        cls = BadRequest if status < 500 else Internal  # noqa: PLR2004
    error = cls(detail or f"the server answered {status}", pointer=pointer)
    error.meta = meta
    return error
