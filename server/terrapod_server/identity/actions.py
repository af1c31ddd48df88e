"""Making users and tokens, and finding out whose token a request carries."""

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from terrapod_server.identity.model import ApiToken, User
from terrapod_server.kit.call import Principal
from terrapod_server.kit.signed import Signer
from terrapod_shared import clock, ids
from terrapod_shared.errors import NotFound

#: Begins every token of ours, so that secret scanners find them.
TOKEN_PREFIX = "tpod_"  # noqa: S105
RUN_TOKEN_PREFIX = "tpodrun_"  # noqa: S105
#: How long an answer about a token may be remembered within one process.
REMEMBERED_S = 5.0
REMEMBERED_MOST = 10_000
_USE_NOTED = timedelta(minutes=1)
_RUN_TOKEN_S = 86_400 * 7


def fingerprint(token: str) -> str:
    """What is kept of a token. It has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


async def user(user_id: str) -> User:
    found = await User.get_or_none(id=user_id)
    if found is None:
        raise NotFound
    return found


async def users(user_ids: list[str]) -> list[User]:
    return await User.filter(id__in=user_ids)


async def create_user(email: str, *, is_admin: bool = False) -> User:
    return await User.create(id=ids.make("user"), email=email.lower(), is_admin=is_admin)


async def create_token(user_id: str, description: str, expired_at: datetime | None = None) -> tuple[ApiToken, str]:
    """The row and the token's text, which is nowhere kept and cannot be had again."""
    text = TOKEN_PREFIX + secrets.token_urlsafe(32)
    row = await ApiToken.create(
        id=ids.make("at"), user_id=user_id, hash=fingerprint(text), description=description, expired_at=expired_at
    )
    return row, text


@dataclass
class Authenticator:
    """Answers who a bearer token belongs to.

    `lease_is_live(run_id, phase, number)` tells whether a run's token is still
    good: it ends with its lease, whatever the token itself says.
    """

    signer: Signer
    lease_is_live: Callable[[str, str, int], Awaitable[bool]]
    _known: dict[str, tuple[float, Principal]] = field(default_factory=dict)

    async def bearer(self, token: str) -> Principal | None:
        """None for a token that is unknown, over, or of a user who may not come in."""
        if token.startswith(RUN_TOKEN_PREFIX):
            return await self._run(token)
        key = fingerprint(token)
        known = self._known.get(key)
        if known and known[0] > time.monotonic():
            return known[1]
        row = await ApiToken.get_or_none(hash=key)
        now = clock.now()
        if row is None or (row.expired_at is not None and row.expired_at <= now):
            return None
        owner = await User.get_or_none(id=row.user_id)
        if owner is None or not owner.is_active:
            return None
        if row.last_used_at is None or row.last_used_at < now - _USE_NOTED:
            await ApiToken.filter(id=row.id).update(last_used_at=now)
        principal = Principal(kind="user", id=owner.id, name=owner.email, token_id=row.id, is_admin=owner.is_admin)
        if len(self._known) >= REMEMBERED_MOST:
            self._known.clear()
        self._known[key] = (time.monotonic() + REMEMBERED_S, principal)
        return principal

    def forget(self) -> None:
        """Called when any token or user was changed or removed."""
        self._known.clear()

    def issue_run_token(self, run_id: str, phase: str, number: int, workspace_id: str) -> str:
        """A token that ends with the lease; it holds its own claim, so nothing is kept of it."""
        subject = f"{run_id}.{phase}.{number}.{workspace_id}"
        return RUN_TOKEN_PREFIX + self.signer.sign("run-token", subject, _RUN_TOKEN_S)

    async def _run(self, token: str) -> Principal | None:
        try:
            subject = self.signer.check("run-token", token.removeprefix(RUN_TOKEN_PREFIX))
        except NotFound:
            return None
        run_id, phase, number, workspace_id = subject.split(".")
        if not await self.lease_is_live(run_id, phase, int(number)):
            return None
        return Principal(kind="run", id=run_id, name=run_id, lease=int(number), workspace_id=workspace_id, phase=phase)
