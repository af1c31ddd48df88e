"""URLs that carry their own right: an HMAC over purpose, subject and expiry in one path segment."""

import base64
import hashlib
import hmac
import time
from collections import OrderedDict

from terrapod_shared.errors import NotFound

_MAC_BYTES = 16
#: How many good tokens are remembered.
_GOOD_MOST = 1024


class Signer:
    """Signs and checks. The key is derived from the key ring, so links survive a restart."""

    def __init__(self, key: bytes, older: tuple[bytes, ...] = ()) -> None:
        self._keys = (key, *older)
        #: What was found to be good lately, by purpose and token: a URL is often asked for again.
        self._good: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()

    def sign(self, purpose: str, subject: str, expires_s: float) -> str:
        """A token of letters, digits, `-` and `_`, good for `expires_s` seconds."""
        claim = f"{int(time.time() + expires_s):x}.{subject}".encode()
        return _text(_mac(self._keys[0], purpose, claim) + claim)

    def check(self, purpose: str, token: str) -> str:
        """The subject. Raises NotFound for a token that is forged, for another purpose, or over."""
        known = self._good.get((purpose, token))
        until, subject = known or self._claimed(purpose, token)
        if until < time.time():
            raise NotFound
        if known is None:
            self._good[purpose, token] = until, subject
            if len(self._good) > _GOOD_MOST:
                self._good.popitem(last=False)
        return subject

    def _claimed(self, purpose: str, token: str) -> tuple[int, str]:
        """When it ends, and the subject. Raises NotFound for a token that is forged."""
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except ValueError:
            raise NotFound from None
        mac, claim = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        if _text(raw) != token or not any(hmac.compare_digest(mac, _mac(key, purpose, claim)) for key in self._keys):
            raise NotFound
        until, _, subject = claim.decode().partition(".")
        return int(until, 16), subject


def _mac(key: bytes, purpose: str, claim: bytes) -> bytes:
    return hmac.digest(key, purpose.encode() + b"\0" + claim, hashlib.sha256)[:_MAC_BYTES]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
