"""Who sent it: signed requests (RFC 9421), certificates of listeners, sealed values (HPKE, RFC 9180).

The signature library checks nothing by itself: it accepts a signature over no
component, and one a day old (measured with 3.0.0). So `verify_request` asks
for every component, label, tag, algorithm, age and nonce itself.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import http_sf
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hpke, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from http_message_signatures.exceptions import HTTPMessageSignaturesException

from terrapod_shared import wire
from terrapod_shared.errors import BadRequest, ClockSkew, Unauthorized

_RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
_ANY_AGE = timedelta(days=36_500)
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


@dataclass
class _Message:
    """A request as the library wants it."""

    method: str
    url: str
    headers: dict[str, str]


class _OneKey(HTTPSignatureKeyResolver):
    def __init__(self, private: Ed25519PrivateKey | None = None, public: Ed25519PublicKey | None = None) -> None:
        self._private, self._public = private, public

    def resolve_private_key(self, key_id: str) -> Ed25519PrivateKey | None:  # noqa: ARG002
        return self._private

    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey | None:  # noqa: ARG002
        return self._public


def content_digest(sha256: bytes) -> str:
    """The `Content-Digest` header of a body with this SHA-256 (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def new_nonce() -> str:
    return secrets.token_urlsafe(18)


def sign_request(
    key: Ed25519PrivateKey,
    key_id: str,
    method: str,
    url: str,
    *,
    body_sha256: bytes,
    lease: int,
    now: float,
    nonce: str = "",
    protocol: int = wire.PROTOCOL,
) -> dict[str, str]:
    """The headers that a listener's request carries: digest, lease, protocol and the signature over them.

    `nonce` is a fresh one of `new_nonce`, where the caller is to know it.
    """
    headers = {
        "Content-Digest": content_digest(body_sha256),
        wire.LEASE_HEADER: str(lease),
        wire.PROTOCOL_HEADER: str(protocol),
    }
    message = _Message(method, url, dict(headers))
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=_OneKey(private=key))
    signer.sign(
        message,
        key_id=key_id,
        created=datetime.fromtimestamp(now, UTC),
        nonce=nonce or new_nonce(),
        label=wire.SIGNATURE_LABEL,
        tag=wire.SIGNATURE_TAG,
        include_alg=True,
        covered_component_ids=wire.SIGNED_COMPONENTS,
        use_existing_digest=True,
    )
    return {**headers, "Signature": message.headers["Signature"], "Signature-Input": message.headers["Signature-Input"]}


@dataclass(frozen=True)
class Verified:
    """What a good signature vouches for."""

    key_id: str
    nonce: str
    created: float
    lease: int
    protocol: str
    content_digest: str


async def verify_request(
    method: str,
    target: str,
    headers: Mapping[str, str],
    resolve: Callable[[str], Awaitable[Ed25519PublicKey | None]],
    *,
    now: float | None = None,
) -> Verified:
    """Checks a listener's request. `target` is path and query as they were sent.

    Raises Unauthorized, and ClockSkew with the server's time, and the
    request's nonce, where only the time is wrong. The nonce and the body's
    digest are the caller's to check.
    """
    now = time.time() if now is None else now
    if "#" in target:  # the library takes what follows for a fragment, which no signature covers
        raise _refused("its path and query may not hold a #")
    lowered = {name.lower(): value for name, value in headers.items()}
    parameters = _parameters(lowered)
    key_id, nonce, created = parameters["keyid"], parameters["nonce"], parameters["created"]
    public = await resolve(key_id)
    if public is None:
        raise _refused("the key is not known")
    message = _Message(method, f"https://terrapod.invalid{target}", dict(lowered))
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=_OneKey(public=public))
    # its own 5 s would refuse a clock that is ahead without a word of the time; the age is judged below
    verifier.max_clock_skew = _ANY_AGE
    try:
        results = verifier.verify(message, max_age=_ANY_AGE)
    except (HTTPMessageSignaturesException, InvalidSignature, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _refused(f"the signature does not hold: {type(error).__name__}") from None
    if len(results) != 1:
        raise _refused("there must be one signature")
    if abs(now - created) > wire.SIGNATURE_AGE_S:
        skewed = ClockSkew(f"the request is dated {now - created:.0f} s before the server's time")
        skewed.meta |= {"server-time": now, "nonce": nonce}
        raise skewed
    lease = lowered[wire.LEASE_HEADER.lower()]
    if not (lease.isascii() and lease.isdigit() and len(lease) < 10):  # noqa: PLR2004
        raise _refused("the lease is no number")
    return Verified(
        key_id, nonce, float(created), int(lease), lowered[wire.PROTOCOL_HEADER.lower()], lowered["content-digest"]
    )


def _parameters(headers: Mapping[str, str]) -> dict[str, Any]:
    """The signature's parameters, once it is sure that it covers all that it must."""
    needed = ("signature", "signature-input", "content-digest", wire.LEASE_HEADER.lower(), wire.PROTOCOL_HEADER.lower())
    missing = [name for name in needed if not headers.get(name)]
    if missing:
        raise _refused(f"the request lacks {', '.join(missing)}")
    try:
        inputs: Any = http_sf.parse(headers["signature-input"].encode(), tltype="dictionary")
        components, parameters = inputs[wire.SIGNATURE_LABEL]
        covered = [name for name, _ in components]
    except (ValueError, KeyError, TypeError, http_sf.StructuredFieldError):
        raise _refused("Signature-Input cannot be read") from None
    if len(inputs) != 1 or covered != list(wire.SIGNED_COMPONENTS) or any(extra for _, extra in components):
        raise _refused(f"the signature must cover exactly {' '.join(wire.SIGNED_COMPONENTS)}")
    if parameters.get("tag") != wire.SIGNATURE_TAG or parameters.get("alg") != "ed25519":
        raise _refused(f"the signature must be ed25519 with the tag {wire.SIGNATURE_TAG}")
    keyid, nonce, created = (parameters.get(name) for name in ("keyid", "nonce", "created"))
    if isinstance(created, datetime):
        created = created.timestamp()
    if not isinstance(keyid, str) or not isinstance(nonce, str) or not 16 <= len(nonce) <= 64:  # noqa: PLR2004
        raise _refused("the signature needs keyid and a nonce of 16 to 64 letters")
    if not isinstance(created, int | float) or "expires" in parameters:
        raise _refused("the signature needs created, and no expires")
    return {"keyid": keyid, "nonce": nonce, "created": created}


def _refused(why: str) -> Unauthorized:
    return Unauthorized(f"the request is not signed as it must be: {why}")


def check_body(verified_digest: str, sha256: bytes) -> None:
    """Compares the digest that was signed with the body's. Raises BadRequest."""
    if verified_digest != content_digest(sha256):
        raise BadRequest("the body is not the one that was signed")


def sign_answer(key: Ed25519PrivateKey, listener_id: str, nonce: str, status: int, body: bytes) -> str:
    """The value of the header that vouches for an answer to the request with that nonce."""
    base = wire.answer_signature_base(listener_id, nonce, status, hashlib.sha256(body).hexdigest())
    return base64.b64encode(key.sign(base)).decode()


def verify_answer(server_key: str, listener_id: str, nonce: str, status: int, body: bytes, signature: str) -> None:
    """Raises Unauthorized for an answer that the pinned key did not sign, or signed for another listener or request."""
    base = wire.answer_signature_base(listener_id, nonce, status, hashlib.sha256(body).hexdigest())
    _verify(server_key, base, signature, "the answer is not signed by the server that this listener joined")


def sign_clock(key: Ed25519PrivateKey, listener_id: str, nonce: str, server_time: float) -> str:
    """Vouches for the server's time, unix seconds, in an answer to the request with that nonce."""
    return base64.b64encode(key.sign(wire.clock_signature_base(listener_id, nonce, server_time))).decode()


def verify_clock(server_key: str, listener_id: str, nonce: str, server_time: object, signature: object) -> float:
    """The time. Raises Unauthorized where the pinned key did not sign it for this request."""
    message = "the server's time is not signed by the server that this listener joined"
    if not isinstance(server_time, int | float) or not isinstance(signature, str):
        raise Unauthorized(message)
    try:
        base = wire.clock_signature_base(listener_id, nonce, server_time)
    except OverflowError:  # a whole number beyond what a time can be
        raise Unauthorized(message) from None
    _verify(server_key, base, signature, message)
    return float(server_time)


def _verify(server_key: str, base: bytes, signature: str, message: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(server_key)).verify(base64.b64decode(signature), base)
    except (InvalidSignature, ValueError):
        raise Unauthorized(message) from None


def seal(public_key: str, info: bytes, plain: bytes) -> str:
    """HPKE to a listener's sealing key, base64; `info` says what the value is for."""
    key = X25519PublicKey.from_public_bytes(base64.b64decode(public_key))
    return base64.b64encode(_SUITE.encrypt(plain, key, info=info)).decode()


def unseal(private_key: X25519PrivateKey, info: bytes, sealed: str) -> bytes:
    """Raises Unauthorized for what was not sealed to this key, with this info."""
    try:
        return bytes(_SUITE.decrypt(base64.b64decode(sealed), private_key, info=info))
    except Exception as error:  # noqa: BLE001  the library's errors have no common root
        raise Unauthorized(f"a sealed value does not open: {type(error).__name__}") from None


def raw_public(key: Ed25519PublicKey | X25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes(*_RAW)).decode()


def make_csr(key: Ed25519PrivateKey, name: str) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(key, None)
    return request.public_bytes(serialization.Encoding.PEM).decode()


def public_key_of_csr(pem: str) -> Ed25519PublicKey:
    """All that is taken of a request: its key, which must have signed it. Raises BadRequest."""
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        good = request.is_signature_valid
    except (ValueError, InvalidSignature, TypeError):
        key, good = None, False
    if not isinstance(key, Ed25519PublicKey) or not good:
        raise BadRequest("csr must be a PEM certificate request with an Ed25519 key, signed by that key")
    return key


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def make_ca(name: str = "Terrapod listeners") -> tuple[Ed25519PrivateKey, x509.Certificate]:
    key = Ed25519PrivateKey.generate()
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, None)
    )
    return key, certificate


def issue(
    ca_key: Ed25519PrivateKey,
    ca: x509.Certificate,
    public: Ed25519PublicKey,
    listener_id: str,
    pool_id: str,
    hours: float,
) -> x509.Certificate:
    """A listener's certificate: names and uses are the server's, whatever its request asked for."""
    now = datetime.now(UTC)
    uris = [x509.UniformResourceIdentifier(f"terrapod://listener/{listener_id}"),
            x509.UniformResourceIdentifier(f"terrapod://pool/{pool_id}")]  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(_name(listener_id))
        .issuer_name(ca.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=hours))
        .add_extension(x509.SubjectAlternativeName(uris), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(ca_key, None)
    )
