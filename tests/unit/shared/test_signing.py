"""Every omission that the signature library would let pass."""

import hashlib
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from terrapod_shared import errors, signing

KEY = Ed25519PrivateKey.generate()
URL = "https://server.example/api/v2/listeners/listener-1/runs/next?wait=30"
TARGET = "/api/v2/listeners/listener-1/runs/next?wait=30"


async def resolve(_key_id: str) -> Ed25519PublicKey:
    return KEY.public_key()


def signed(**changed: str) -> dict[str, str]:
    headers = signing.sign_request(
        KEY, "listener-1", "GET", URL, body_sha256=hashlib.sha256(b"").digest(), lease=7, now=time.time()
    )
    return {**headers, **changed}


async def test_a_good_request_is_known() -> None:
    found = await signing.verify_request("GET", TARGET, signed(), resolve)
    assert (found.key_id, found.lease, found.protocol) == ("listener-1", 7, "2")
    signing.check_body(found.content_digest, hashlib.sha256(b"").digest())
    with pytest.raises(errors.BadRequest):
        signing.check_body(found.content_digest, hashlib.sha256(b"x").digest())


@pytest.mark.parametrize(
    "missing", ["Signature", "Signature-Input", "Content-Digest", "Terrapod-Lease", "Terrapod-Protocol"]
)
async def test_nothing_may_be_missing(missing: str) -> None:
    headers = signed()
    del headers[missing]
    with pytest.raises(errors.Unauthorized):
        await signing.verify_request("GET", TARGET, headers, resolve)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"@method" ', ""), ('"@path" ', ""), ('"@query" ', ""), ('"content-digest" ', ""), ('"terrapod-lease" ', ""),
        (' "terrapod-protocol"', ""), ('tag="terrapod-listener"', 'tag="other"'), ('alg="ed25519"', 'alg="hmac-sha256"'),
        ("terrapod=(", "other=("), (";nonce=", ";none="),
    ],
)  # fmt: skip
async def test_nothing_may_be_left_out_of_the_signature(old: str, new: str) -> None:
    headers = signed()
    changed = headers["Signature-Input"].replace(old, new)
    assert changed != headers["Signature-Input"]
    with pytest.raises(errors.Unauthorized):
        await signing.verify_request("GET", TARGET, {**headers, "Signature-Input": changed}, resolve)


async def test_what_was_signed_cannot_be_changed() -> None:
    for method, target in (("POST", TARGET), ("GET", TARGET + "0"), ("GET", TARGET.replace("next", "last"))):
        with pytest.raises(errors.Unauthorized):
            await signing.verify_request(method, target, signed(), resolve)
    with pytest.raises(errors.Unauthorized):
        await signing.verify_request("GET", TARGET, signed(**{"Terrapod-Lease": "8"}), resolve)


async def test_an_old_request_is_told_the_time() -> None:
    with pytest.raises(errors.ClockSkew) as skew:
        await signing.verify_request("GET", TARGET, signed(), resolve, now=time.time() + 100)
    assert abs(skew.value.meta["server-time"] - time.time() - 100) < 5


async def test_another_key_is_nobody() -> None:
    async def other(_key_id: str) -> Ed25519PublicKey:
        return Ed25519PrivateKey.generate().public_key()

    with pytest.raises(errors.Unauthorized):
        await signing.verify_request("GET", TARGET, signed(), other)


def test_an_answer_is_for_one_listener_and_one_request() -> None:
    server = Ed25519PrivateKey.generate()
    public = signing.raw_public(server.public_key())
    signature = signing.sign_answer(server, "listener-1", "nonce-1", 200, b"work")
    signing.verify_answer(public, "listener-1", "nonce-1", 200, b"work", signature)
    for listener, nonce, status, body in (
        ("listener-2", "nonce-1", 200, b"work"), ("listener-1", "nonce-2", 200, b"work"),
        ("listener-1", "nonce-1", 202, b"work"), ("listener-1", "nonce-1", 200, b"other"),
    ):  # fmt: skip
        with pytest.raises(errors.Unauthorized):
            signing.verify_answer(public, listener, nonce, status, body, signature)
    for wrong in ("", "not base64!", signature[:-4], "Ä"):
        with pytest.raises(errors.Unauthorized):
            signing.verify_answer(public, "listener-1", "nonce-1", 200, b"work", wrong)


def test_a_time_is_the_servers_and_of_one_request() -> None:
    server = Ed25519PrivateKey.generate()
    public, now = signing.raw_public(server.public_key()), 1_790_000_000.1234567
    signature = signing.sign_clock(server, "listener-1", "nonce-1", now)
    assert signing.verify_clock(public, "listener-1", "nonce-1", now, signature) == now
    for nonce, time_, signed_ in (
        ("nonce-2", now, signature), ("nonce-1", now + 1, signature), ("nonce-1", now, ""), ("nonce-1", now, None),
        ("nonce-1", "never", signature), ("nonce-1", None, signature), ("nonce-1", float("nan"), signature),
        ("nonce-1", 10**400, signature), ("nonce-1", float("inf"), signature),
    ):  # fmt: skip
        with pytest.raises(errors.Unauthorized):
            signing.verify_clock(public, "listener-1", nonce, time_, signed_)


@pytest.mark.parametrize("target", [f"{TARGET}#", f"{TARGET}#&wait=60", TARGET.replace("?", "#?")])
async def test_nothing_hides_behind_a_fragment(target: str) -> None:
    """The library signs no fragment, and a server would read it as a part of the query."""
    with pytest.raises(errors.Unauthorized, match="#"):
        await signing.verify_request("GET", target, signed(), resolve)


def test_sealed_values_open_for_one_purpose() -> None:
    key = X25519PrivateKey.generate()
    sealed = signing.seal(signing.raw_public(key.public_key()), b"run|1", b"secret")
    assert signing.unseal(key, b"run|1", sealed) == b"secret"
    for opener, info in ((key, b"run|2"), (X25519PrivateKey.generate(), b"run|1")):
        with pytest.raises(errors.Unauthorized):
            signing.unseal(opener, info, sealed)


def test_only_the_key_of_a_request_counts() -> None:
    key, ca = signing.make_ca()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("evil.example")]), critical=False)
        .sign(KEY, None)
    )
    public = signing.public_key_of_csr(request.public_bytes(Encoding.PEM).decode())
    certificate = signing.issue(key, ca, public, "listener-1", "apool-1", 24)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["terrapod://listener/listener-1", "terrapod://pool/apool-1"]
    weak = x509.CertificateSigningRequestBuilder().subject_name(request.subject).sign(
        ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    )  # fmt: skip
    for text in ("nonsense", weak.public_bytes(Encoding.PEM).decode()):
        with pytest.raises(errors.BadRequest):
            signing.public_key_of_csr(text)


@pytest.mark.parametrize("ahead", [-300, -61, 61, 300])
async def test_a_clock_that_is_off_is_told_the_time(ahead: int) -> None:
    headers = signed()
    with pytest.raises(errors.ClockSkew) as skew:
        await signing.verify_request("GET", TARGET, headers, resolve, now=time.time() - ahead)
    assert abs(skew.value.meta["server-time"] - time.time() + ahead) < 5


@pytest.mark.parametrize("ahead", [-55, -6, 6, 59])
async def test_a_clock_that_is_off_a_little_is_taken(ahead: int) -> None:
    await signing.verify_request("GET", TARGET, signed(), resolve, now=time.time() - ahead)
