"""Secrets that are good once and for a short time: codes, states of a sign-in, ids of assertions that were seen."""

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from tortoise.exceptions import IntegrityError

from terrapod_server.identity.model import OneTime
from terrapod_shared import clock
from terrapod_shared.errors import Conflict


def _key(kind: str, secret: str) -> str:
    return hashlib.sha256(f"{kind}\0{secret}".encode()).hexdigest()


async def put(kind: str, secret: str, good_s: float, data: Mapping[str, Any], user_id: str = "") -> None:
    """Keeps `data` under the secret's hash. Raises Conflict where that secret is there already."""
    until = clock.now() + timedelta(seconds=good_s)
    try:
        await OneTime.create(id=_key(kind, secret), data=dict(data), user_id=user_id, expires_at=until)
    except IntegrityError:
        message = f"this {kind} was used before"
        raise Conflict(message) from None


async def look(kind: str, secret: str) -> dict[str, Any] | None:
    """What is kept, without spending it."""
    row = await OneTime.get_or_none(id=_key(kind, secret))
    return None if row is None or row.expires_at <= clock.now() else dict(row.data)


async def take(kind: str, secret: str) -> dict[str, Any] | None:
    """What is kept, for exactly one of all that ask: the one whose DELETE found the row."""
    key = _key(kind, secret)
    row = await OneTime.get_or_none(id=key)
    if row is None or not await OneTime.filter(id=key).delete():
        return None
    return None if row.expires_at <= clock.now() else dict(row.data)


async def forget_user(user_id: str) -> None:
    """What is under way for the user comes to nothing."""
    await OneTime.filter(user_id=user_id).delete()


async def purge() -> None:
    await OneTime.filter(expires_at__lte=clock.now()).delete()
