"""The caller's own account, users, and the tokens of both."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from terrapod_server.access import actions as access
from terrapod_server.identity import actions
from terrapod_server.identity.model import ApiToken, User
from terrapod_server.identity.signin import passwords
from terrapod_server.identity.signin.providers import SIGN_IN
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, One, Raw, Resource
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.paging import Rows
from terrapod_shared.errors import Forbidden, Invalid, NotFound


def _private(column: str) -> Callable[[User, Call], Any]:
    """Shown to the person and to who may look at all users; null to those who get it by `include` of something else."""

    def value(user: User, call: Call) -> Any:
        is_shown = call.principal.is_auditor or call.principal.id == user.id
        return getattr(user, column) if is_shown else None

    return value


USER = Resource(
    type="users",
    attributes=(
        Attr(
            "username", str, "the name that other pages show: the address", write=True, value=lambda user, _: user.email
        ),
        Attr("email", str, "address, in lower case", write=True, minimum=3, maximum=254),
        Attr("display-name", str, "how the user wants to be called", write=True, maximum=254),
        Attr("avatar-url", str, "always empty", value=lambda *_: ""),
        Attr("is-active", bool, "whether the user may come in", write=True, value=_private("is_active")),
        Attr("is-admin", bool, "whether the user is a platform admin", value=_private("is_admin")),
        Attr("is-site-admin", bool, "the same, as go-tfe calls it", value=_private("is_admin")),
        Attr("is-service-account", bool, "whether this is a program", value=lambda *_: False),
        Attr("v2-only", bool, "always false", value=lambda *_: False),
        Attr("two-factor", dict, "not done here", value=lambda *_: {"enabled": False, "verified": False}),
        Attr(
            "has-password",
            bool,
            "whether it can sign in with a password of this server",
            value=_private("has_password"),
        ),
        Attr("password", str, "that password; set by admins, never shown", write=True, maximum=256, only_in="sent"),
        Attr("last-login-at", str, "when it last signed in", value=_private("last_login_at")),
        Attr("created-at", str, "when it was made"),
        Attr("force", bool, "also where callers shut themselves out", write=True, only_in="sent"),
        Attr(
            "permissions",
            dict,
            "what the user may change about itself",
            value=lambda *_: {
                "can-create-organizations": False,
                "can-change-email": False,
                "can-change-username": False,
                "can-manage-user-tokens": True,
            },
        ),
    ),
    load=lambda keys: actions.users(list(keys)),
    prepare=lambda rows, _call: _prepare(rows),
)
#: Tokens of users, and tokens to join a pool with: clients know one type for both.
TOKEN = Resource(
    type="authentication-tokens",
    accepts=("agent-tokens",),
    attributes=(
        Attr("description", str, "what it is for", write=True, maximum=254),
        Attr("token", str, "shown once, at creation", value=lambda row, _: getattr(row, "text", None)),
        Attr("created-at", str, "when it was made"),
        Attr("last-used-at", str, "when it was last used, to the minute"),
        Attr(
            "expired-at",
            datetime,
            "until when it is good; null: until it is deleted",
            write=True,
            nullable=True,
            value=lambda row, _: row.expires_at if hasattr(row, "pool_id") else row.expired_at,
        ),
        Attr(
            "read-only",
            bool,
            "a user's: whether it may change nothing",
            write=True,
            value=lambda row, _: getattr(row, "read_only", False),
        ),
        Attr(
            "workspace-id",
            str,
            "a user's: the one workspace that it is good for",
            write=True,
            nullable=True,
            maximum=40,
            value=lambda row, _: getattr(row, "workspace_id", "") or None,
        ),
        Attr(
            "max-uses",
            int,
            "a pool's: how often it can be used; null: any number",
            write=True,
            nullable=True,
            minimum=1,
            maximum=(1 << 31) - 1,
            value=lambda row, _: getattr(row, "max_uses", None),
        ),
        Attr("use-count", int, "a pool's: how often it was used", value=lambda row, _: getattr(row, "use_count", None)),
        Attr(
            "expires-at",
            datetime,
            "a pool's: the same as expired-at",
            write=True,
            nullable=True,
            value=lambda row, _: getattr(row, "expires_at", None),
        ),
        Attr(
            "is-revoked",
            bool,
            "a pool's: whether it was revoked",
            value=lambda row, _: getattr(row, "revoked", False),
        ),
    ),
    relations=(
        One(
            "created-by",
            "users",
            key=lambda row, _: (row.created_by_id if hasattr(row, "pool_id") else row.user_id) or None,
        ),
        One("agent-pool", "agent-pools", key=lambda row, _: getattr(row, "pool_id", None)),
    ),
)


async def _prepare(rows: Sequence[User]) -> None:
    admins = {email for _, email in await access.admins(row.email for row in rows)}
    for row in rows:
        row.is_admin = row.email in admins


async def details(call: Call) -> User:
    """Who the token belongs to."""
    return await actions.user(call.principal.id)


async def update_own(call: Call) -> User:
    """Change what others see of the caller."""
    row = await actions.user(call.principal.id)
    _check_names(call, row.email)
    others = "an admin does that, and a password is changed at account/password"
    call.refuse_others({"display_name", "username", "email", "is_active"}, others)
    if not call.attributes.get("is_active", True):
        message = "is-active cannot be set here: an admin does that"
        raise Invalid(message, pointer="/data/attributes/is-active")
    return await actions.set_display_name(row, call.attributes.get("display_name", row.display_name))


def _check_names(call: Call, email: str) -> None:
    """The address is who the user is, and the name that is shown. Raises Invalid for another one."""
    for name in ("username", "email"):
        if call.attributes.get(name, email).lower() != email:
            message = f"{name} is the user's address, {email}, which stays"
            raise Invalid(message, pointer=f"/data/attributes/{name}")


async def index(call: Call) -> Rows:
    """Users, newest first."""
    found = User.all()
    if text := call.param("filter[email]"):
        found = found.filter(email__icontains=text)
    return await call.rows(found.order_by("-id"))


async def show(call: Call) -> User:
    """One user, by id or by address."""
    return await actions.user(call.path["user"])


async def create(call: Call) -> User:
    """Make a user, who has no right until roles are assigned to the address."""
    values = {name: value for name, value in call.attributes.items() if name in ("display_name", "is_active")}
    if "email" not in call.attributes:
        message = "a user needs an email"
        raise Invalid(message, pointer="/data/attributes/email")
    _check_names(call, call.attributes["email"].lower())
    if "password" in call.attributes:
        values["password_hash"] = await _hashed(call, call.attributes["email"])
    return await actions.create_user(call.attributes["email"], **values)


async def _hashed(call: Call, email: str) -> str:
    """The password that was sent, as it is kept. Raises Invalid for a weak one."""
    password = call.attributes["password"]
    await passwords.check_quality(password, email)
    hashed: str = await call.services.ask(SIGN_IN).passwords.hash(password)
    return hashed


async def update(call: Call) -> User:
    """Change a user; one who is deactivated is out at once, with all tokens."""
    values = {name: value for name, value in call.attributes.items() if name in ("display_name", "is_active")}
    force = call.attributes.get("force", False)
    row = await show(call)
    _check_names(call, row.email)
    kept = await _hashed(call, row.email) if "password" in call.attributes else ""
    row = await actions.update_user(row, values, call.principal, force=force)
    if kept:
        await actions.set_password(row, kept)
        row.password_hash = kept
    await call.services.authenticator.changed()
    return row


async def delete(call: Call) -> None:
    """Remove a user with all tokens, sessions and roles."""
    await actions.delete_user(await show(call), call.principal, force=call.flag("force"))
    await call.services.authenticator.changed()


async def _own(call: Call, *, is_reading: bool) -> User:
    """The user whose tokens the path is about: the caller, or to look at them any for who may look at all."""
    named = call.path["user"]
    is_own = named.lower() in (call.principal.id, call.principal.name)
    if not is_own and not call.principal.is_auditor:
        raise NotFound
    row = await actions.user(named)
    if not is_own and not is_reading:
        message = "a token is made by the user whom it is for"
        raise Forbidden(message)
    return row


async def tokens(call: Call) -> Rows:
    """The user's tokens, newest first."""
    owner = await _own(call, is_reading=True)
    return await call.rows(ApiToken.filter(user_id=owner.id).order_by("-id"))


async def create_token(call: Call) -> ApiToken:
    """Make a token for oneself; its text is in this answer only."""
    owner, sent = await _own(call, is_reading=False), call.attributes
    call.refuse_others(
        {"description", "expired_at", "read_only", "workspace_id"}, "it is of tokens to join a pool with"
    )
    workspace_id = sent.get("workspace_id") or ""
    if workspace_id:
        guard = call.services.guard
        await guard.demand(call.principal, Level.READ, "workspace", workspace_id, is_certain=True)
    return await actions.create_token(
        owner.id,
        sent.get("description", ""),
        expired_at=sent.get("expired_at"),
        read_only=sent.get("read_only", False),
        workspace_id=workspace_id,
        provider=call.principal.provider,
    )


RESOURCES = (USER, TOKEN)
_USERS = "/api/v2/organizations/{org}/users"
_USER = "/api/v2/users/{user}"
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", "/api/v2/account/details", USER, details, Access.USER),
    Endpoint("PATCH", "/api/v2/account/update", USER, update_own, Access.SELF),
    Endpoint("GET", _USERS, USER, index, Access.AUDIT, many=True, filters=("filter[email]",)),
    Endpoint("POST", _USERS, USER, create, Access.PLATFORM, status=201, requires=("email",)),
    Endpoint("GET", _USER, USER, show, Access.AUDIT),
    Endpoint("PATCH", _USER, USER, update, Access.PLATFORM),
    Endpoint("DELETE", _USER, USER, delete, Access.PLATFORM, body=False),
    Endpoint("GET", _USER + "/authentication-tokens", TOKEN, tokens, Access.SELF, many=True),
    Endpoint("POST", _USER + "/authentication-tokens", TOKEN, create_token, Access.SELF, status=201),
)
