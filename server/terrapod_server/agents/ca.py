"""The authority of listeners: made once, its keys sealed in the database."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tortoise.exceptions import IntegrityError

from terrapod_server.agents.model import Authority
from terrapod_server.kit.services import Services
from terrapod_shared import signing

_ID = 1
_RAW = (serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())


@dataclass(frozen=True)
class Keys:
    """The authority, opened."""

    ca_key: Ed25519PrivateKey
    ca: x509.Certificate
    work_key: Ed25519PrivateKey

    @property
    def ca_pem(self) -> str:
        return self.ca.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def server_key(self) -> str:
        return signing.raw_public(self.work_key.public_key())


#: Opened once in a process, by the key ring that opened it.
_opened: dict[int, Keys] = {}


async def certificates() -> list[bytes]:
    """The authority's certificate in PEM; none before the first listener."""
    return [row.certificate.encode() for row in await Authority.all()]


async def keys(services: Services) -> Keys:
    """The authority; made at the first call ever, by one of the processes that make it at once."""
    found = _opened.get(id(services))
    if found is not None:
        return found
    row = await Authority.get_or_none(id=_ID)
    if row is None:
        ca_key, ca = signing.make_ca()
        try:
            row = await Authority.create(
                id=_ID,
                certificate=ca.public_bytes(serialization.Encoding.PEM).decode(),
                key=services.cipher.seal(ca_key.private_bytes(*_RAW), "authority key"),
                work_key=services.cipher.seal(Ed25519PrivateKey.generate().private_bytes(*_RAW), "authority work"),
            )
        except IntegrityError:
            row = await Authority.get(id=_ID)
    opened = Keys(
        Ed25519PrivateKey.from_private_bytes(services.cipher.unseal(row.key, "authority key")),
        x509.load_pem_x509_certificate(row.certificate.encode()),
        Ed25519PrivateKey.from_private_bytes(services.cipher.unseal(row.work_key, "authority work")),
    )
    _opened.clear()
    _opened[id(services)] = opened
    return opened
