"""Who this listener is: keys made here that never leave, its certificate, and what it pinned of the server."""

import base64
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from terrapod_shared.files import write_private
from terrapod_shared.operator_errors import OperatorError

FILE = "identity.json"
_RAW = (serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file, mode 0600. Keys are raw, base64."""

    server: str
    name: str
    listener_id: str
    pool_id: str
    key: str
    sealing_key: str
    certificate: str
    server_key: str
    next_key: str = ""  #: of a renewal whose answer has not come yet
    ca: str = ""  #: PEM of the authority that vouches for the server's TLS; empty: the system's


@dataclass
class Identity:
    """The file, opened."""

    kept: Kept
    home: Path

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(self.kept.key))

    @property
    def sealing_key(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(base64.b64decode(self.kept.sealing_key))

    def renew_at(self) -> float:
        """Unix time of the half of the certificate's life, a little scattered so that fleets do not meet."""
        certificate = x509.load_pem_x509_certificate(self.kept.certificate.encode())
        begun, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        return (begun + ends) / 2 + random.Random(self.kept.certificate).uniform(0, (ends - begun) / 50)  # noqa: S311

    def expires(self) -> datetime:
        return x509.load_pem_x509_certificate(self.kept.certificate.encode()).not_valid_after_utc

    def is_over(self) -> bool:
        return self.expires() < datetime.now(UTC)

    def move(self, server: str, ca: str) -> None:
        """Notes another address of the server, or PEM of its authority; what is empty stays as it is."""
        moved = msgspec.structs.replace(self.kept, server=server.rstrip("/") or self.kept.server, ca=ca or self.kept.ca)
        if moved != self.kept:
            self.save(moved)

    def save(self, kept: Kept) -> None:
        self.kept = kept
        write_private(self.home / FILE, msgspec.json.encode(kept))


def load(home: Path) -> Identity | None:
    """The identity of a home, None where it has not joined yet. Raises OperatorError for a file that is none."""
    try:
        return Identity(msgspec.json.decode((home / FILE).read_bytes(), type=Kept), home)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise OperatorError(
            f"{home / FILE} is no identity of a listener ({error}): restore it, or remove it and join again"
        ) from None


def raw_private(key: Ed25519PrivateKey | X25519PrivateKey) -> str:
    return base64.b64encode(key.private_bytes(*_RAW)).decode()
