"""Users and their tokens: made, changed, removed, and found by what a request carries."""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias

from tortoise.exceptions import IntegrityError

from terrapod_server.access import actions as access
from terrapod_server.access import rules
from terrapod_server.identity import sessions, uses
from terrapod_server.identity.model import ApiToken, User, UserIdentity
from terrapod_server.identity.ports import Leases
from terrapod_server.identity.sessions import fingerprint
from terrapod_server.kit.caller import Level, Principal
from terrapod_server.kit.db.conditions import Where, like
from terrapod_server.kit.db.database import in_transaction
from terrapod_server.kit.http.signed import Signer
from terrapod_server.kit.work.bus import Bus
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, Invalid, NotFound

#: Begins every token of ours, so that secret scanners find them.
TOKEN_PREFIX = "tpod_"  # noqa: S105
RUN_TOKEN_PREFIX = "tpodrun_"  # noqa: S105
#: How long an answer about a token may be remembered within one process.
REMEMBERED_S = 5.0
REMEMBERED_MOST = 10_000
_USE_NOTED = timedelta(minutes=1)
_RUN_TOKEN_S = 86_400 * 7
LOCAL = "local"  #: the provider that this server is itself
_TOPIC = "rights"
#: A token as other rooms hold it.
TokenRow: TypeAlias = ApiToken


async def user(key: str) -> User:
    """A user by id or by address. Raises NotFound."""
    found = await (User.get_or_none(email=key.lower()) if "@" in key else User.get_or_none(id=key))
    if found is None:
        raise NotFound
    return found


async def check_still_in(user_id: str) -> None:
    """For URLs that carry a person's right: raises NotFound once that person was deactivated or deleted."""
    if user_id and not await User.exists(id=user_id, is_active=True):
        raise NotFound


async def users(user_ids: list[str]) -> list[User]:
    return await User.filter(id__in=user_ids)


def has_email_like(column: str, text: str) -> Where:
    """A condition: the address of the user whose id is in the column holds the text."""
    users = like('u."email"', text)
    return Where(f'{column} IN (SELECT u."id" FROM "user_account" u WHERE {users.sql})', users.values)  # noqa: S608  our own words


async def create_user(email: str, **values: Any) -> User:
    """Raises Invalid for what is no address, Conflict for one that is taken."""
    name, at, host = email.partition("@")
    if not (name and at and host) or any(letter.isspace() or not letter.isprintable() for letter in email):
        message = f"{email[:80]!r} is not an e-mail address"
        raise Invalid(message, pointer="/data/attributes/email")
    try:
        return await User.create(id=ids.make("user"), email=email.lower(), **values)
    except IntegrityError:
        message = f"there is a user {email.lower()} already"
        raise Conflict(message) from None


async def update_user(row: User, values: Mapping[str, Any], caller: Principal, *, force: bool) -> User:
    """Raises Conflict where the caller would shut itself out, without `force`."""
    if row.id == caller.id and values.get("is_active") is False:
        rules.check_lockout(Level.ADMIN, Level.NONE, force=force)
    row.update_from_dict(dict(values))
    row.updated_at = clock.now()
    async with in_transaction():
        await row.save(update_fields=[*values, "updated_at"])
        if not row.is_active:
            await ApiToken.filter(user_id=row.id).delete()
            await sessions.end_all(row.id)
    return row


async def set_display_name(row: User, name: str) -> User:
    """Changes what others see of a user."""
    row.display_name = name
    await row.save(update_fields=["display_name", "updated_at"])
    return row


async def set_password(row: User, password_hash: str, *, but: str = "") -> None:
    """Every session that the old password began is over, `but` one."""
    async with in_transaction():
        await User.filter(id=row.id).update(password_hash=password_hash, updated_at=clock.now())
        await sessions.end_all(row.id, but=but)


async def delete_user(row: User, caller: Principal, *, force: bool) -> None:
    """With tokens and roles. Raises Conflict as `update_user` does."""
    if row.id == caller.id:
        rules.check_lockout(Level.ADMIN, Level.NONE, force=force)
    async with in_transaction():
        await ApiToken.filter(user_id=row.id).delete()
        await sessions.end_all(row.id)
        await UserIdentity.filter(user_id=row.id).delete()
        await access.delete_for_email(row.email)
        await User.filter(id=row.id).delete()


async def create_token(user_id: str, description: str, **values: Any) -> ApiToken:
    """The row with the token's `text`, which is nowhere kept and cannot be had again. Raises Invalid."""
    until = values.get("expired_at")
    if until is not None and until <= clock.now():
        message = "expired-at must be in the future"
        raise Invalid(message, pointer="/data/attributes/expired-at")
    text = TOKEN_PREFIX + secrets.token_urlsafe(32)
    row = await ApiToken.create(
        id=ids.make("at"), user_id=user_id, hash=fingerprint(text), description=description, **values
    )
    row.text = text
    return row


async def newest_tokens(user_id: str, offset: int, most: int) -> list[ApiToken]:
    """The user's tokens, newest first, from the one at `offset`."""
    return await ApiToken.filter(user_id=user_id).order_by("-created_at", "-id").offset(offset).limit(most)


async def count_tokens(user_id: str) -> int:
    """How many tokens the user has."""
    return await ApiToken.filter(user_id=user_id).count()


async def end_token(token_id: str, user_id: str) -> bool:
    """Ends one token of the user; False where there is none."""
    return bool(await ApiToken.filter(id=token_id[:40], user_id=user_id).delete())


async def token(token_id: str, caller: Principal) -> ApiToken:
    """A token of the caller's own; a platform admin finds everybody's. Raises NotFound."""
    row = await ApiToken.get_or_none(id=token_id)
    if row is None or caller.is_limited or (row.user_id != caller.id and not caller.is_admin):
        raise NotFound
    return row


async def delete_token(row: ApiToken) -> None:
    """Removes a token; who remembers tokens is told by `Authenticator.changed`."""
    await row.delete()


@dataclass
class Authenticator:
    """Answers who a bearer token belongs to.

    `leases` tell whether a run's token is still good: it ends with its lease,
    whatever the token itself says.
    """

    signer: Signer
    leases: Leases
    bus: Bus
    _known: dict[str, tuple[float, Principal]] = field(default_factory=dict)
    _forgotten: int = 0  #: how often
    _following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Hears from other server processes what it is to forget."""
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """To be awaited when the bus is closed."""
        if self._following is not None:
            await self._following

    async def bearer(self, token: str) -> Principal | None:
        """None for a token that is unknown, over, or of a user who may not come in."""
        if token.startswith(RUN_TOKEN_PREFIX):
            return await self._run(token)
        key = fingerprint(token)
        known = self._known.get(key)
        if known and known[0] > time.monotonic():
            return known[1]
        forgotten = self._forgotten
        principal = await (self._session(token) if token.startswith(sessions.PREFIX) else self._token(key))
        if principal is not None and forgotten == self._forgotten:  # else it may have been read before the change
            if len(self._known) >= REMEMBERED_MOST:
                self._known.clear()
            self._known[key] = (time.monotonic() + REMEMBERED_S, principal)
        return principal

    async def session(self, token: str) -> Principal | None:
        """Who is signed in by a browser's cookie: it holds a session's token, and any other is none there."""
        return await self.bearer(token) if token.startswith(sessions.PREFIX) else None

    @staticmethod
    async def _session(token: str) -> Principal | None:
        found = await sessions.find(token)
        if found is None:
            return None
        row, owner, provider, roles = found
        rights = await access.rights_of(owner.id, provider, owner.email, roles)
        return Principal(
            kind="user", id=owner.id, name=owner.email, session_id=row.id, provider=provider, rights=rights
        )

    @staticmethod
    async def _token(key: str) -> Principal | None:
        row = await ApiToken.get_or_none(hash=key)
        now = clock.now()
        if row is None or (row.expired_at is not None and row.expired_at <= now):
            return None
        owner = await User.get_or_none(id=row.user_id)
        if owner is None or not owner.is_active:
            return None
        if row.last_used_at is None or row.last_used_at < now - _USE_NOTED:
            await uses.note(ApiToken.filter(id=row.id).update(last_used_at=now))
        rights = await access.rights_of(
            owner.id, row.provider, owner.email, is_read_only=row.read_only, only_workspace=row.workspace_id
        )
        return Principal(
            kind="user", id=owner.id, name=owner.email, token_id=row.id, provider=row.provider, rights=rights
        )

    def forget(self) -> None:
        self._known.clear()
        self._forgotten += 1

    async def changed(self) -> None:
        """To be called after a token, user, role or assignment was changed or removed: all processes forget at once."""
        self.forget()
        await self.bus.publish(_TOPIC)

    async def _follow(self) -> None:
        """Forgets when another process says so; ends with the bus."""
        async with self.bus.subscribe(_TOPIC) as subscription:
            while not self.bus.is_closing:
                if await subscription.wait(3600):
                    self.forget()

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
        if not await self.leases.lease_is_live(run_id, phase, int(number)):
            return None
        return Principal(kind="run", id=run_id, name=run_id, lease=int(number), workspace_id=workspace_id, phase=phase)
