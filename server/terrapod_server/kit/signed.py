"""URLs that carry their own right: an HMAC over purpose, subject and expiry in one path segment."""

import base64
import hashlib
import hmac
import time

from terrapod_shared.errors import NotFound

_MAC_BYTES = 16


class Signer:
    """Signs and checks. The key is derived from the key ring, so links survive a restart."""

    def __init__(self, key: bytes, older: tuple[bytes, ...] = ()) -> None:
        self._keys = (key, *older)

    def sign(self, purpose: str, subject: str, expires_s: float) -> str:
        """A token of letters, digits, `-` and `_`, good for `expires_s` seconds."""
        claim = f"{int(time.time() + expires_s):x}.{subject}".encode()
        return _text(_mac(self._keys[0], purpose, claim) + claim)

    def check(self, purpose: str, token: str) -> str:
        """The subject. Raises NotFound for a token that is forged, for another purpose, or over."""
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError:
            raise NotFound from None
        mac, claim = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if _text(raw) != token or not any(hmac.compare_digest(mac, _mac(key, purpose, claim)) for key in self._keys):
            raise NotFound
        until, _, subject = claim.decode().partition(".")
        if int(until, 16) < time.time():
            raise NotFound
        return subject


def _mac(key: bytes, purpose: str, claim: bytes) -> bytes:
    return hmac.digest(key, purpose.encode() + b"\0" + claim, hashlib.sha256)[:_MAC_BYTES]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
