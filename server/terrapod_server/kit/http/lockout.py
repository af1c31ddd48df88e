"""The brake on guessing: how often something secret may be tried, by address and by account.

Kept in the database, so that all server processes count together. A try is
charged before the secret is looked at, by one statement, so that no number of
guesses at the same time gets past; what was right is paid back. Eight tries
are there at once and one comes back every two minutes: at most fifteen within
any quarter of an hour.

Strangers share the tries of an account. Whoever came in before, from the same
address or with the same device's cookie, has tries of its own there: guessing
by others, from however many addresses, does not lock an account's owner out.
An account that does not exist is counted like any other.

    attempt = await brake.check("sign-in", call.address, account=email, device=cookie)
    ...                      # look at the password; wrong: nothing more to do
    await brake.succeeded(attempt, device)
"""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tortoise.expressions import F

from terrapod_server.kit.db import database
from terrapod_server.kit.http.networks import group
from terrapod_server.kit.model import Brake
from terrapod_server.kit.work.periodic import Job
from terrapod_shared.errors import TooManyRequests

TRIES = 8
EACH_S = 120.0
#: Requests at once, and processes, do not read quite the same time: the eighth must not fail for a millisecond.
_SKEW_S = 1.0
#: How long an account's address or device stays known after it came in.
KNOWN_S = 90 * 86_400.0


@dataclass(frozen=True)
class Attempt:
    """A try that was charged."""

    what: str
    account: str
    address: str
    device: str
    charged: tuple[str, ...]


async def check(what: str, address: str, account: str = "", device: str = "", *, now: float | None = None) -> Attempt:
    """Charges a try to `address` and `account`. Raises TooManyRequests; then nothing may be looked at.

    `what` separates kinds of secrets; `now` is the time in unix seconds.
    """
    now = time.time() if now is None else now
    account, address = account.strip().lower(), group(address)
    by_address = _key(what, "address", address)
    at_address, on_device = _key(what, "known", account, address), _key(what, "known", account, device)
    known = await _known([at_address, on_device], now) if account else set()
    if device and on_device in known:  # it need not answer for whoever else guesses at its address
        charges = [_key(what, "device", account, device)]
    elif at_address in known:
        charges = [by_address, _key(what, "account there", account, address)]
    elif account:
        charges = [by_address, _key(what, "account", account)]
    else:
        charges = [by_address]
    await _charge(charges, now)
    return Attempt(what, account, address, device, tuple(charges))


async def succeeded(attempt: Attempt, device: str = "", *, now: float | None = None) -> None:
    """Pays the try back; address and device are known to the account from now on. `device` may be a new one."""
    now = time.time() if now is None else now
    await _give_back(attempt.charged)
    if attempt.account:
        for origin in {attempt.address, device or attempt.device} - {""}:
            key = _key(attempt.what, "known", attempt.account, origin)
            await Brake.update_or_create({"full_at": now + KNOWN_S}, id=key)


async def _known(keys: list[str], now: float) -> set[str]:
    return {row.id for row in await Brake.filter(id__in=keys, full_at__gt=now)}


async def _charge(keys: list[str], now: float) -> None:
    """Takes a try from each; from none where one has none left. Raises TooManyRequests."""
    for place, key in enumerate(keys):
        if await _take(key, now):
            continue
        await _give_back(keys[:place])
        row = await Brake.get_or_none(id=key)
        wait_s = max(1.0, (row.full_at if row else now) + EACH_S - TRIES * EACH_S - now)
        error = TooManyRequests(f"too many tries; try again in {math.ceil(wait_s)} s")
        error.headers |= {"Retry-After": str(math.ceil(wait_s)), "X-RateLimit-Reset": f"{wait_s:.1f}"}
        raise error


async def _take(key: str, now: float) -> bool:
    """One try, by one statement: no two processes take the last one."""
    most = "GREATEST" if database.is_postgres() else "MAX"
    rows = await database.query(
        f"""
        WITH one AS (SELECT 1)
        INSERT INTO brake (id, full_at) VALUES ($1, $2)
        ON CONFLICT (id) DO UPDATE SET full_at = {most}(brake.full_at, $3) + $4
        WHERE brake.full_at + $4 <= $5
        RETURNING id
        """,  # noqa: S608  one of two words of ours
        [key, now + EACH_S, now, EACH_S, now + TRIES * EACH_S + _SKEW_S],
    )
    return bool(rows)


async def _give_back(keys: Sequence[str]) -> None:
    for key in keys:
        await Brake.filter(id=key).update(full_at=F("full_at") - EACH_S)


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


async def purge(_services: object) -> None:
    """Who has all tries back, and what is known no longer, is forgotten."""
    await Brake.filter(full_at__lt=time.time()).delete()


JOBS = (Job("purge brake", 600, purge),)
