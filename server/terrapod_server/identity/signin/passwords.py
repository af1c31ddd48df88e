"""Passwords of local accounts: Argon2id, in threads of their own, and which ones are good enough.

The threads are few on purpose: each hash takes tens of mebibytes and a core,
and a flood of guesses must take neither from the rest of the server.
"""

import asyncio
import importlib
import secrets
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from terrapod_server.config.settings import Auth
from terrapod_shared.errors import Invalid

LEAST, MOST = 12, 256
#: The top of zxcvbn's scale, more than 10^10 guesses: at 3 `Summer2024!!!` still passes.
_SCORE = 4
#: It looks at no more than this: its time grows with the length, and so many letters are good anyway.
_LOOKED_AT = 72


class Passwords:
    """Hashes and verifies by the settings' parameters; hashes made by others verify too."""

    def __init__(self, settings: Auth) -> None:
        self._hasher = PasswordHasher(
            time_cost=settings.argon2_passes, memory_cost=settings.argon2_kib, parallelism=settings.argon2_lanes
        )
        self._threads = ThreadPoolExecutor(2, "password")

    async def hash(self, text: str) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._hasher.hash, _plain(text))

    async def verify(self, kept: str, text: str) -> bool:
        """Whether it is the password. An empty `kept`, of nobody or of one without a password, takes as long."""
        good = await asyncio.get_running_loop().run_in_executor(self._threads, self._verify, kept, text)
        return good and bool(kept)

    def is_outdated(self, kept: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(kept)

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    def _verify(self, kept: str, text: str) -> bool:
        nobodys = self._nobodys  # in either case, so that the first who asks learns nothing
        try:
            return len(text) <= MOST and self._hasher.verify(kept or nobodys, _plain(text))
        except (VerificationError, InvalidHashError):
            return False

    @cached_property
    def _nobodys(self) -> str:
        """Of a password that nobody has; made at the first use, and thrown away with the process."""
        return self._hasher.hash(secrets.token_urlsafe())


def _plain(text: str) -> str:
    """One spelling for what a person typed on different keyboards (NIST SP 800-63B)."""
    return unicodedata.normalize("NFKC", text)


async def check_quality(text: str, email: str, pointer: str = "/data/attributes/password") -> None:
    """Raises Invalid, with what to do, for a password that would be guessed."""
    if not LEAST <= len(text) <= MOST:
        message = f"a password has {LEAST} to {MOST} characters"
        raise Invalid(message, pointer=pointer)
    advice = await asyncio.to_thread(_advice, text, email)
    if advice:
        raise Invalid(advice, pointer=pointer)


def _advice(text: str, email: str) -> str:
    own = [email, *email.replace("@", ".").split("."), "terrapod", "terraform", "opentofu"]
    # imported only here, only when a password is set: its lists of words are 14 MiB of memory
    found = importlib.import_module("zxcvbn").zxcvbn(text[:_LOOKED_AT], user_inputs=own, max_length=_LOOKED_AT)
    if found["score"] >= _SCORE:
        return ""
    said = found["feedback"]
    hints = " ".join(part.rstrip(".") + "." for part in (said["warning"], *said["suggestions"]) if part)
    return f"this password is easy to guess. {hints}".strip()
