"""Joining a pool, and renewing the certificate."""

import asyncio
import base64
import socket
from pathlib import Path

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from terrapod_listener import __version__
from terrapod_listener.client import Server, error_of, tls
from terrapod_listener.identity import Identity, Kept, load, raw_private
from terrapod_shared import errors, signing, wire


class _Wrapped(msgspec.Struct):
    data: msgspec.Raw


async def join(home: Path, server: str, token: str, name: str, ca_file: Path | None) -> Identity:
    """Makes keys, spends the token, keeps what came back. Raises the server's error."""
    key, sealing = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    name = name or socket.gethostname()
    ca = await asyncio.to_thread(ca_file.read_text, encoding="ascii") if ca_file else ""
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
            answer = (await client.call("POST", path, body=body)).content
        except (errors.Unauthorized, errors.NotFound):
            answer = await _post(server, path, body, ca)
        finally:
            await client.close()
    else:
        answer = await _post(server, path, body, ca)
    joined = msgspec.json.decode(msgspec.json.decode(answer, type=_Wrapped).data, type=wire.Joined)
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


async def _post(server: str, path: str, body: bytes, ca: str) -> bytes:
    async with httpx.AsyncClient(base_url=server, verify=tls(ca), timeout=30.0) as client:
        try:
            answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        except httpx.HTTPError as error:
            raise errors.Unavailable(f"{server} cannot be reached: {str(error) or type(error).__name__}") from None
    if answer.status_code >= 400:  # noqa: PLR2004
        raise error_of(answer.status_code, answer.content)
    return answer.content


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
    renewed = msgspec.json.decode(msgspec.json.decode(answer.content, type=_Wrapped).data, type=wire.Renewed)
    identity.save(msgspec.structs.replace(old, key=new, next_key="", certificate=renewed.certificate))
