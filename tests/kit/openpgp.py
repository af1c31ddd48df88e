"""A key of the tests' own, as a publisher has one."""

from datetime import datetime
from pathlib import Path

import pysequoia


class Signer:
    """A fresh OpenPGP key."""

    def __init__(self, name: str = "publisher") -> None:
        self._secret = pysequoia.Tsk.generate(f"{name} <{name}@example.org>")
        self.certificate = self._secret.extract_certificate()
        self.public = str(self.certificate).encode()
        self.fingerprint = self.certificate.fingerprint.upper()

    def sign(self, content: bytes, *, armor: bool = False) -> bytes:
        """A detached signature."""
        mode = pysequoia.SignatureMode.DETACHED
        return bytes(pysequoia.sign(self._secret.signer(), content, mode=mode, armor=armor))

    def prolonged(self, until: datetime) -> pysequoia.Cert:
        """The public key with another end."""
        return self.certificate.set_expiration(until, self._secret.certifier())

    def write(self, path: Path) -> str:
        """Writes the public key; the file's name, for the settings."""
        path.write_bytes(self.public)
        return str(path)
