"""Joining a pool, and renewing the certificate."""

import asyncio
import base64
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from terrapod_listener import __version__
from terrapod_listener.link.client import PASSING, Answer, Server, mismatch, pause_s, tls
from terrapod_listener.link.identity import Identity, Kept, load, raw_private
from terrapod_shared import answers, errors, signing, wire
from terrapod_shared.client import is_mistrust, not_reached
from terrapod_shared.operator_errors import OperatorError

log = logging.getLogger(__name__)
#: A person waits for it.
_PATIENCE_S = 20.0
_JOINED = 201
#: More bytes than a file of a join token has.
TOKEN_MOST = 1024


class NoToken(Exception):
    """What was given is no join token; the text is for the operator."""


def token_of(data: bytes, source: str) -> str:
    """The join token that stands alone in the data of a file or of standard input. Raises NoToken."""
    word = data.strip()
    if not word:
        raise NoToken(f"{source} holds no join token: it is empty")
    if len(data) > TOKEN_MOST or not all(0x21 <= letter <= 0x7E for letter in word):  # noqa: PLR2004  printable ASCII
        raise NoToken(f"{source} holds no join token: a token is one word of letters, digits and signs")
    return word.decode("ascii")


class _Wrapped(msgspec.Struct):
    data: msgspec.Raw


async def join(home: Path, server: str, token: str, name: str, ca_file: Path | None) -> Identity:
    """Makes keys, spends the token, keeps what came back. Raises the server's error.

    The same request is made again where its answer is lost: the server knows the key that it gave the place to.
    """
    key, sealing = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    name = name or socket.gethostname()
    _check_address(server)
    ca = await asyncio.to_thread(_authority, ca_file) if ca_file else ""
    message = wire.Join(
        join_token=token,
        name=name,
        csr=signing.make_csr(key, name),
        sealing_key=signing.raw_public(sealing.public_key()),
        version=__version__,
    )
    body = msgspec.json.encode(message)
    old = load(home)
    path = "/api/v2/agent-pools/join"
    if old is not None and old.kept.server == server and old.kept.name == name:
        client = Server(old)  # the old key vouches for the name
        try:
            joined = await _patiently(lambda: _signed(client, path, body))
        except (errors.Unauthorized, errors.NotFound):
            joined = await _patiently(lambda: _post(server, path, body, ca))
        finally:
            await client.close()
    else:
        joined = await _patiently(lambda: _post(server, path, body, ca))
    kept = Kept(
        server=server.rstrip("/"),
        name=name,
        listener_id=joined.listener_id,
        pool_id=joined.pool_id,
        key=raw_private(key),
        sealing_key=raw_private(sealing),
        certificate=joined.certificate,
        server_key=joined.server_key,
        ca=ca,
    )
    identity = Identity(kept, home)
    identity.save(kept)
    return identity


def _check_address(server: str) -> None:
    try:
        url = httpx.URL(server)
        is_good = url.scheme in ("https", "http") and bool(url.host)
    except httpx.InvalidURL:
        is_good = False
    if not is_good:
        raise OperatorError(f"{server!r} is no address of a server: name it as https://HOST or https://HOST:PORT")


def _authority(file: Path) -> str:
    """The PEM text of a file. Raises OperatorError where it holds no certificate."""
    try:
        text = file.read_text(encoding="ascii")
        tls(text)
    except (UnicodeDecodeError, ssl.SSLError):
        raise OperatorError(
            f"{file} holds no certificate in PEM form: name the file of the authority with --ca"
        ) from None
    return text


async def _patiently(once: Callable[[], Awaitable[wire.Joined]]) -> wire.Joined:
    """Again for a while, where the server has not answered. Raises its refusals at once."""
    attempt, until = 0, time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await once()
        except (errors.ProtocolMismatch, errors.TooManyRequests, _Mistrust):
            raise
        except PASSING as error:
            wait_s = pause_s(attempt)
            if time.monotonic() + wait_s > until:
                raise
            log.warning("%s; trying again", error.detail)
            await asyncio.sleep(wait_s)
            attempt += 1


class _Mistrust(errors.Unavailable):
    """Whoever is there has no certificate that is trusted."""


async def _signed(client: Server, path: str, body: bytes) -> wire.Joined:
    return _joined(client.identity.kept.server, await client.call("POST", path, body=body, is_signed=False))


async def _post(server: str, path: str, body: bytes, ca: str) -> wire.Joined:
    async with httpx.AsyncClient(base_url=server, verify=tls(ca), timeout=30.0) as client:
        try:
            answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        except (httpx.HTTPError, ssl.SSLError) as error:
            kind = _Mistrust if is_mistrust(error) else errors.Unavailable
            raise kind(not_reached(server, error)) from None
    if answer.status_code != _JOINED or not answers.is_servers(answer.headers):
        raise answers.error_of(server, answer.status_code, answer.headers, answer.content)
    return _joined(server, Answer(answer.status_code, answer.headers, answer.content))


def _joined(server: str, answer: Answer) -> wire.Joined:
    if answer.headers.get(wire.PROTOCOL_HEADER) != str(wire.PROTOCOL):
        log.warning("this listener cannot work yet: %s", mismatch(server, answer.headers))
    return _unwrapped(server, answer, wire.Joined)


_M = TypeVar("_M", bound=wire.Message)


def _unwrapped(server: str, answer: Answer, kind: type[_M]) -> _M:
    """Raises Foreign for an answer that was cut off, or changed on the way."""
    try:
        return msgspec.json.decode(msgspec.json.decode(answer.content, type=_Wrapped).data, type=kind)
    except msgspec.DecodeError as error:
        raise answers.foreign(server, f"answered with what is no {kind.__name__} ({error})") from None


async def renew(server: Server) -> None:
    """A new key and certificate; the old key signs the request. Raises the server's error."""
    identity = server.identity
    old, waiting = identity.kept, identity.kept.next_key
    new = waiting or raw_private(Ed25519PrivateKey.generate())
    identity.save(msgspec.structs.replace(old, next_key=new))
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(new))
    body = msgspec.json.encode(wire.Renew(csr=signing.make_csr(key, old.name)))
    try:
        answer = await server.call("POST", f"{server.base}/renew", body=body)
    except errors.Unauthorized:
        if not waiting:
            raise
        # an earlier answer was lost: the server may know the new key alone
        identity.kept = msgspec.structs.replace(old, key=new)
        try:
            answer = await server.call("POST", f"{server.base}/renew", body=body)
        except errors.TerrapodError:
            identity.kept = old
            raise
    renewed = _unwrapped(old.server, answer, wire.Renewed)
    identity.save(msgspec.structs.replace(old, key=new, next_key="", certificate=renewed.certificate))
