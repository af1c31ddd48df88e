"""OpenPGP signatures over checksum lists. Imported at the first check: most servers never fetch."""

import re
from importlib import resources
from pathlib import Path

import pysequoia

#: Whose keys come along, by tool; `docs/engines.md` names their fingerprints.
_SHIPPED = {"terraform": "hashicorp.asc", "tofu": "opentofu.asc"}
_ARMOR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----.*?-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)
_RSA = 1


class NotSigned(Exception):
    """Says why a signature is worth nothing."""


def keys(tool: str, file: str = "") -> list[pysequoia.Cert]:
    """The keys of a file, or those that come along for the tool. Raises NotSigned where they cannot be read.

    A publisher that prolongs its key lists it twice, before and after, in
    blocks of their own; each is needed for the signatures of its time, so
    the same key's blocks are put together.
    """
    try:
        raw = Path(file).read_bytes() if file else _shipped(tool)
        found: dict[str, pysequoia.Cert] = {}
        for block in _ARMOR.findall(raw) or [raw]:
            for cert in pysequoia.Cert.split_bytes(block):
                known = found.get(cert.fingerprint)
                found[cert.fingerprint] = known.merge(cert) if known else cert
    except (OSError, RuntimeError, ValueError) as error:
        message = f"the keys in {file} cannot be read: {_first_line(error)}"
        raise NotSigned(message) from None
    if not found:
        message = f"there is no OpenPGP key in {file}"
        raise NotSigned(message)
    return list(found.values())


def _shipped(tool: str) -> bytes:
    return (resources.files("terrapod_server.engines") / "keys" / _SHIPPED[tool]).read_bytes()


def verify(certs: list[pysequoia.Cert], content: bytes, signature: bytes) -> str:
    """Fingerprint of the key, of those, by which a detached signature over `content` is good. Raises NotSigned."""
    try:
        sig = pysequoia.Sig.from_bytes(canonical(signature))
    except (RuntimeError, ValueError, OSError):
        message = "what should be its signature is none"
        raise NotSigned(message) from None
    try:
        result = pysequoia.verify(bytes=content, store=lambda _: certs, signature=sig)
    except (RuntimeError, ValueError):
        issuer = (sig.issuer_fingerprint or sig.issuer_key_id or "unknown").upper()
        known = ", ".join(cert.fingerprint.upper() for cert in certs)
        message = f"its signature, by the key {issuer}, is not good by {known}"
        raise NotSigned(message) from None
    return str(result.valid_sigs[0].certificate).upper()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def canonical(signature: bytes) -> bytes:
    """The same RSA signature, its number without leading zero bits; anything else as it is.

    Go's own OpenPGP library, by which HashiCorp has signed releases, counts
    whole bytes where the standard wants the number's bits. GnuPG overlooks
    that, Sequoia takes such a packet for no signature.
    """
    try:
        head = _head(signature)
        body = signature[head:]
        if body[0] != 4 or body[2] != _RSA:  # noqa: PLR2004  the version that both publishers use
            return signature
        at = 6 + int.from_bytes(body[4:6], "big")  # behind the hashed part
        at += 2 + int.from_bytes(body[at : at + 2], "big") + 2  # the other part, and two bytes of the digest
        size = (int.from_bytes(body[at : at + 2], "big") + 7) // 8
        if len(body) != at + 2 + size or size == 0:
            return signature
        number = int.from_bytes(body[at + 2 :], "big")
    except IndexError:
        return signature
    bits = number.bit_length()
    packet = body[:at] + bits.to_bytes(2, "big") + number.to_bytes((bits + 7) // 8, "big")
    return b"\xc2\xff" + len(packet).to_bytes(4, "big") + packet


def _head(packet: bytes) -> int:
    """Bytes before the body of a single signature packet; IndexError where it is none."""
    tag, first = packet[0], packet[1]
    if tag == 0xC2:  # noqa: PLR2004  the new form
        return 2 if first < 192 else 3 if first < 224 else 6  # noqa: PLR2004  one, two or five bytes of length
    if tag & 0xFC == 0x88 and tag & 3 != 3:  # noqa: PLR2004  the old form, its length in 1, 2 or 4 bytes
        return 1 + (1 << (tag & 3))
    raise IndexError
