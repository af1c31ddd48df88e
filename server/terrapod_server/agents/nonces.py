"""Nonces of signed requests: each is good once, in whichever server process it comes."""

import time

from terrapod_server.kit.db import database
from terrapod_server.kit.services import Services
from terrapod_shared.errors import SeenBefore

#: How long one is remembered, which is longer than a signature is good.
KEPT_S = 120
#: Those that this process has seen, with the time when they may be forgotten; all there is on SQLite.
_seen: dict[str, float] = {}


async def spend(nonce: str) -> None:
    """Uses up a nonce. Raises SeenBefore for one that was."""
    now = time.monotonic()
    while _seen and next(iter(_seen.values())) < now:  # the oldest are first
        del _seen[next(iter(_seen))]
    fresh = nonce not in _seen
    if fresh:
        _seen[nonce] = now + KEPT_S
    if fresh and database.is_postgres():
        # by the database's clock, as they are purged: a server whose own is ahead would forget them too early
        fresh = bool(
            await database.query(
                """
                WITH one AS (SELECT 1)
                INSERT INTO listener_nonce (id, at) VALUES ($1, clock_timestamp()) ON CONFLICT DO NOTHING RETURNING id
                """,
                [nonce],
            )
        )
    if not fresh:
        message = "this signed request was seen before"
        raise SeenBefore(message)


async def purge(_services: Services) -> None:
    """Forgets those whose signature is good no more."""
    if database.is_postgres():  # SQLite has none: its one process remembers them
        old = f"clock_timestamp() - interval '{KEPT_S} seconds'"
        await database.query(
            f"WITH gone AS (DELETE FROM listener_nonce WHERE at < {old} RETURNING 1) SELECT count(*) FROM gone"  # noqa: S608
        )
