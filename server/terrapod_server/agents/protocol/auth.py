"""Is this request a listener's: signature, nonce, protocol, and a body that is the one that was signed."""

import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial, wraps

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from starlette.requests import Request
from starlette.responses import Response

from terrapod_server.agents import ca, nonces
from terrapod_server.agents.model import Listener
from terrapod_server.agents.rules import GRACE
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db.row_cache import Reader
from terrapod_server.kit.services import Services
from terrapod_shared import clock, signing, wire
from terrapod_shared.errors import (
    BadRequest,
    ClockSkew,
    NotFound,
    ProtocolMismatch,
    Unauthorized,
    UnknownListener,
)

Do = Callable[[Call], Awaitable[Response]]
_READER = Reader(Listener)


async def authenticate(request: Request, services: Services) -> Principal:
    """Who signed the request. Raises Unauthorized, ClockSkew, ProtocolMismatch, and NotFound for another's path."""
    row, verified = await verify_once(request, services)
    request.state.listener = row
    request.state.digest, request.state.nonce = verified.content_digest, verified.nonce
    request.state.is_late = row.certificate_until < clock.now()
    return Principal(kind="listener", id=row.id, name=row.name, lease=verified.lease, pool_id=row.pool_id)


def _vouch(key: Ed25519PrivateKey, listener_id: str, nonce: str, answer: Response) -> None:
    """Signs an answer, a refusal too, for the one request that it answers."""
    signature = signing.sign_answer(key, listener_id, nonce, answer.status_code, bytes(answer.body))
    answer.headers[wire.ANSWER_SIGNATURE_HEADER] = signature


async def verify_once(request: Request, services: Services) -> tuple[Listener, signing.Verified]:
    """Checks protocol, signature and whose path it is, and spends the nonce. Raises as `authenticate`.

    From the signature on, what the server answers is signed too, refusals included.
    """
    check_protocol(request)
    row, verified = await verify(request, services)
    key = (await ca.keys(services)).work_key
    request.scope["vouch"] = partial(_vouch, key, row.id, verified.nonce)
    if request.path_params.get("listener", row.id) != row.id:
        raise NotFound
    await nonces.spend(f"{row.id} {verified.nonce}")
    return row, verified


def check_protocol(request: Request) -> None:
    """An older listener ends what it has, and takes nothing new. Raises ProtocolMismatch with the versions that are taken."""
    takes_work = request.url.path.rstrip("/").endswith("/runs/next")
    least = wire.PROTOCOL if takes_work else wire.PROTOCOL_LEAST
    said = request.headers.get(wire.PROTOCOL_HEADER, "")
    if said not in {str(number) for number in range(least, wire.PROTOCOL + 1)}:
        what = "takes no new work: upgrade it" if said == str(wire.PROTOCOL_LEAST) else "is not understood here"
        error = ProtocolMismatch(
            f"this server speaks version {wire.PROTOCOL} of the listener protocol; a listener of version"
            f" {said[:10] or '?'} {what}"
        )
        error.meta = {"least": least, "most": wire.PROTOCOL}
        raise error


async def verify(request: Request, services: Services) -> tuple[Listener, signing.Verified]:
    """The listener whose key signed the request. Raises Unauthorized; a listener that is gone is a NotFound.

    The time that a ClockSkew carries is signed: a proxy cannot set a listener's clock.
    """
    found: list[Listener] = []

    async def resolve(key_id: str) -> Ed25519PublicKey | None:
        record = await _READER.one('t."id" = $1', key_id)
        if record is None:
            message = "this listener is not known here: join again"
            raise UnknownListener(message)
        found.append(record.row)
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(record.row.public_key))

    raw = request.scope.get("raw_path") or request.url.path.encode()
    target = raw.partition(b"?")[0].decode("ascii", "replace")
    if query := request.scope.get("query_string", b""):
        target += "?" + query.decode("ascii", "replace")
    try:
        verified = await signing.verify_request(request.method, target, request.headers, resolve)
    except ClockSkew as error:
        key, nonce = (await ca.keys(services)).work_key, str(error.meta.pop("nonce"))
        error.meta["signature"] = signing.sign_clock(key, found[0].id, nonce, error.meta["server-time"])
        raise
    row = found[0]
    now = clock.now()
    if row.revoked_at is not None or row.certificate_until + GRACE < now:
        message = "this listener's certificate is revoked or long over: join again"
        raise Unauthorized(message)
    if row.certificate_until < now and not _may_late(request):
        message = "this listener's certificate is over: renew it first"
        raise Unauthorized(message)
    return row, verified


def _may_late(request: Request) -> bool:
    """What a listener that was off for long may do: renew, beat, deliver state and logs, end its phase."""
    path = request.url.path.rstrip("/")
    is_delivery = request.method == "PUT" and path.endswith(("/state", "/log"))
    return is_delivery or request.method == "PATCH" or path.endswith(("/renew", "/heartbeat"))


def signs(do: Do) -> Do:
    """An endpoint whose answers are signed, each for its own request: a proxy can neither make one nor show it again."""

    @wraps(do)
    async def answer(call: Call) -> Response:
        response = await do(call)
        if response.status_code != 204:  # noqa: PLR2004  which says nothing
            call.request.scope["vouch"](response)
        return response

    return answer


def body(call: Call) -> AsyncIterator[bytes]:
    """The chunks of an upload; after the last one the digest that was signed is compared. Raises BadRequest."""
    call.expect_upload()
    return _checked(call)


async def _checked(call: Call) -> AsyncIterator[bytes]:
    seen = hashlib.sha256()
    async for chunk in call.stream():
        seen.update(chunk)
        yield chunk
    try:
        signing.check_body(call.request.state.digest, seen.digest())
    except BadRequest:  # it was changed on the way: the refusal is no word on what the listener asked for
        call.request.scope.pop("vouch", None)
        raise


async def small(call: Call, most: int = 1 << 20) -> bytes:
    """A body that is a message. Raises BadRequest, TooLarge, TooSlow."""
    call.limit_bytes = min(call.limit_bytes, most) if call.limit_bytes else most
    return await call.body(chunks=_checked(call))
