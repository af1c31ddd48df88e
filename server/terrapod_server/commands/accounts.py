"""Accounts and first tokens that an operator makes on the server's host, written into the audit log."""

import asyncio
import contextlib
import os
import pwd
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta

from terrapod_server import app
from terrapod_server.access import actions as access
from terrapod_server.audit.writer import Writer
from terrapod_server.commands import options
from terrapod_server.config.settings import Config
from terrapod_server.identity import actions as identity
from terrapod_server.identity.signin import passwords
from terrapod_server.identity.signin.providers import SIGN_IN
from terrapod_server.kit.caller import Deed
from terrapod_server.kit.services import Services
from terrapod_shared import clock
from terrapod_shared.errors import Conflict, NotFound, Unavailable

ADMIN_EMAIL = "admin@localhost"


def in_app(config: Config, work: Callable[[Services], Awaitable[None]]) -> None:
    """Does the work with the database open and migrated, beside a server that may be running. Raises OperatorError."""
    options.owned(config)

    async def run() -> None:
        async with app.opened(config) as made:
            await work(made.services)

    asyncio.run(run())


@contextlib.asynccontextmanager
async def _recording(services: Services) -> AsyncIterator[None]:
    """The audit log, open for deeds: that of an app that serves already is. Raises Unavailable where they cannot be kept."""
    audit = Writer.of(services)
    if audit is None or audit.is_running:
        yield
        return
    message = f"the audit log cannot be written below {audit.folder}"
    try:
        await audit.start()
    except OSError as error:
        raise Unavailable(f"{message}: {error.strerror or error}") from None
    try:
        yield
    finally:
        await audit.stop()
    if audit.backlog:
        raise Unavailable(message)


def _operator(method: str, path: str, kind: str, resource_id: str, status: int, program: str) -> Deed:
    """What somebody does at the command line of this host; the name is that of the host's user."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    return Deed(
        actor_kind="operator", actor=f"{name} on {socket.gethostname()}", method=method, path=path,
        resource_type=kind, resource_id=resource_id, status=status, program=program,
    )  # fmt: skip


async def make_user(services: Services, email: str, password: str, *, is_admin: bool) -> None:
    """A user with a password, empty for none. Raises Invalid, or Conflict where there is one already."""
    kept = await _hashed(services, email, password) if password else ""
    async with _recording(services):
        user = await identity.create_user(email, password_hash=kept)
        if is_admin:
            await access.make_admin(identity.LOCAL, user.email)
        path = "/api/v2/organizations/{org}/users"
        services.recorder.note(_operator("POST", path, "users", user.id, 201, "terrapod-server users create"))


async def set_password(services: Services, email: str, password: str) -> None:
    """Gives the user another password; all its sessions end. Raises NotFound, Invalid."""
    user = await identity.user(email)
    hashed = await _hashed(services, user.email, password)
    async with _recording(services):
        await identity.set_password(user, hashed)
        deed = _operator("PATCH", "/api/v2/users/{user}", "users", user.id, 200, "terrapod-server users set-password")
        services.recorder.note(deed)


async def _hashed(services: Services, email: str, password: str) -> str:
    await passwords.check_quality(password, email)
    hashed: str = await services.ask(SIGN_IN).passwords.hash(password)
    return hashed


async def admin_token(description: str) -> str:
    """A new token of the first administrator, who is made where there is none."""
    return (await _admin_token(description, None)).text or ""


async def _admin_token(description: str, until: datetime | None) -> identity.TokenRow:
    """Raises Conflict where the first administrator was deactivated: its tokens are good for nothing."""
    try:
        admin = await identity.user(ADMIN_EMAIL)
    except NotFound:
        admin = await identity.create_user(ADMIN_EMAIL)
    if not admin.is_active:
        message = (
            f"{ADMIN_EMAIL} was deactivated, so a token of it would not be accepted: make another administrator by "
            "terrapod-server users create --admin"
        )
        raise Conflict(message)
    await access.make_admin(identity.LOCAL, ADMIN_EMAIL)
    return await identity.create_token(admin.id, description, expired_at=until)


async def create_admin_token(services: Services, description: str, days: int) -> tuple[str, str]:
    """Id and text of a new token of the first administrator, in the audit log; 0 days: it does not expire.

    Raises Conflict, and Unavailable where the audit log cannot be written: then there is no such token.
    """
    token = await _admin_token(description, clock.now() + timedelta(days=days) if days else None)
    try:
        async with _recording(services):
            path = "/api/v2/users/{user}/authentication-tokens"
            program = "terrapod-server tokens create"
            services.recorder.note(_operator("POST", path, "authentication-tokens", token.id, 201, program))
    except BaseException:
        await identity.delete_token(token)
        raise
    return token.id, token.text or ""
