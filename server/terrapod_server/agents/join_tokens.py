"""The verbs of join tokens."""

import hashlib
import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from terrapod_server.agents.model import JoinToken, Pool
from terrapod_server.kit.db.database import query
from terrapod_shared import clock, ids
from terrapod_shared.errors import Invalid, Unauthorized

TOKEN_PREFIX = "tpodjoin_"  # noqa: S105
TOKEN_LIFE = timedelta(hours=1)


def fingerprint(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


async def create(pool_id: str, user_id: str, values: Mapping[str, Any]) -> tuple[JoinToken, str]:
    """The row and the token's text, which is nowhere kept. One use and one hour unless said otherwise.

    Raises Invalid for an end that is past.
    """
    text = TOKEN_PREFIX + secrets.token_urlsafe(32)
    values = dict(values)
    ends = {name: values.pop(name) for name in ("expired_at", "expires_at") if name in values}
    until = ends.get("expires_at", ends.get("expired_at")) if ends else clock.now() + TOKEN_LIFE
    if until is not None and until <= clock.now():
        message = "a join token cannot end before it begins"
        raise Invalid(message, pointer=f"/data/attributes/{list(ends)[-1].replace('_', '-')}")
    row = await JoinToken.create(
        id=ids.make("at"), pool_id=pool_id, created_by_id=user_id, hash=fingerprint(text), expires_at=until, **values
    )
    return row, text


async def make(pool_name: str, description: str) -> str:
    row = await Pool.get(name=pool_name)
    return (await create(row.id, "", {"description": description}))[1]


async def find(token_id: str) -> JoinToken | None:
    """A join token, without its text; None where there is none of that id."""
    return await JoinToken.get_or_none(id=token_id)


async def delete(row: JoinToken) -> None:
    """Revokes a join token."""
    await row.delete()


async def spend(text: str) -> str:
    """Takes one use of a token, by one statement; the pool that it is for. Raises Unauthorized."""
    rows = await query(
        """
        WITH one AS (SELECT 1)
        UPDATE join_token SET use_count = use_count + 1, last_used_at = $2
        WHERE hash = $1 AND NOT revoked AND (expires_at IS NULL OR expires_at > $2)
          AND (max_uses IS NULL OR use_count < max_uses)
        RETURNING pool_id
        """,
        [fingerprint(text), clock.now()],
    )
    if not rows:
        message = "the join token is unknown, spent, revoked or over"
        raise Unauthorized(message)
    return str(rows[0]["pool_id"])
