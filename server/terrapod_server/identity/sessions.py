"""Sessions of people: begun by a sign-in, prolonged by use, ended by signing out or by an administrator.

A session's token is opaque and only its hash is kept, so ending one is
deleting a row.
"""

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from terrapod_server.identity import onetime, uses
from terrapod_server.identity.model import Session, User
from terrapod_shared import clock, ids

#: Begins every session's token, so that secret scanners find it.
PREFIX = "tpodses_"
#: A session that is not used ends after this, and each ends after LONGEST.
IDLE = timedelta(hours=12)
LONGEST = timedelta(days=7)
#: Use is written down, and the session prolonged, at most this often.
_NOTED = timedelta(minutes=5)
_HINT = 8


def fingerprint(token: str) -> str:
    """What is kept of a token. It has 256 random bits, so no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


async def begin(
    user: User,
    provider: str,
    roles: Sequence[str],
    address: str,
    user_agent: str,
    *,
    since: datetime | None = None,
) -> tuple[Session, str]:
    """The row and the token's text, which is nowhere kept. `roles` are those that the provider's claims gave.

    `since` is when the person signed in, where an earlier session of theirs
    made this one: it lasts no longer than that one may.
    """
    text, now = PREFIX + secrets.token_urlsafe(32), clock.now()
    row = await Session.create(
        id=ids.make("ses"),
        user_id=user.id,
        hash=fingerprint(text),
        hint=text[-_HINT:],
        provider=provider,
        roles=list(roles),
        address=address[:64],
        user_agent=user_agent.replace("\0", "")[:254],
        created_at=since or now,
        last_used_at=now,
        expires_at=min(now + IDLE, (since or now) + LONGEST),
    )
    await User.filter(id=user.id).update(last_login_at=now)
    return row, text


async def find(token: str) -> tuple[Session, User, str, list[str]] | None:
    """Session, user, provider, and the roles that its claims gave; None for a token that lets nobody in."""
    if not token.startswith(PREFIX):
        return None
    row = await Session.get_or_none(hash=fingerprint(token))
    now = clock.now()
    if row is None or row.expires_at <= now:
        return None
    user = await User.get_or_none(id=row.user_id)
    if user is None or not user.is_active:
        return None
    if row.last_used_at <= now - _NOTED:
        row.last_used_at, row.expires_at = now, min(now + IDLE, row.created_at + LONGEST)
        await uses.note(Session.filter(id=row.id).update(last_used_at=now, expires_at=row.expires_at))
    return row, user, row.provider, list(row.roles)


async def of_user(user_id: str) -> list[Session]:
    """Those that are live, newest first."""
    return await Session.filter(user_id=user_id, expires_at__gt=clock.now()).order_by("-created_at", "-id")


async def end(session_id: str, user_id: str) -> bool:
    """Ends one session of the user; False where there is none."""
    return bool(await Session.filter(id=session_id, user_id=user_id).delete())


async def end_all(user_id: str, *, but: str = "") -> int:
    """Ends all sessions of the user, and what is under way for it; `but` one that stays. Tells how many."""
    await onetime.forget_user(user_id)
    return await Session.filter(user_id=user_id).exclude(id=but).delete()


async def purge() -> None:
    await Session.filter(expires_at__lte=clock.now()).delete()
