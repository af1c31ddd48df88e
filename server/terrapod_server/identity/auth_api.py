"""/api/v2/auth: providers, sessions, and signing out. The way to a provider and back is in `pages`."""

from typing import Any

import msgspec
from starlette.responses import Response

from terrapod_server.access import actions as access
from terrapod_server.identity import actions, sessions
from terrapod_server.identity.model import Session
from terrapod_server.identity.oauth_api import CODE_FORM, exchange, rfc6749
from terrapod_server.identity.signin.providers import SIGN_IN, Attempt
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, Raw, Resource
from terrapod_server.kit.api.render import encode
from terrapod_server.kit.caller import Access
from terrapod_shared import clock
from terrapod_shared.errors import Conflict, Invalid, NotFound

#: In the spelling of TFE, which knows this call too.
PASSWORD = Resource(
    type="passwords",
    accepts=("users",),
    attributes=(
        Attr("current_password", str, "the password until now", write=True, maximum=256),
        Attr("password", str, "the new one", write=True, maximum=256),
        Attr("password_confirmation", str, "the new one again; may be left out", write=True, maximum=256),
    ),
)


async def providers(call: Call) -> dict[str, Any]:
    """Where people can sign in."""
    service = call.services.ask(SIGN_IN)
    found = [{"name": actions.LOCAL, "type": "local", "display_name": "Password"}] if service.settings.local else []
    found += [
        {"name": name, "type": provider.kind, "display_name": provider.settings.shown}
        for name, provider in service.providers.items()
    ]
    return {"providers": found, "default_provider": found[0]["name"] if found else None}


async def metadata(call: Call) -> Response:
    """Who this server is to a SAML provider."""
    service = call.services.ask(SIGN_IN)
    document = service.known(call.path["provider"]).metadata(call.base)
    return Response(document, media_type="application/samlmetadata+xml")


@rfc6749
async def token(call: Call) -> Response:
    """Exchange the code of `auth/authorize` for a session of one's own."""
    grant, user, first = await exchange(call, "session")
    agent = call.request.headers.get("user-agent", "") or grant.ask.client.title
    session, text = await sessions.begin(user, first.provider, first.roles, call.address, agent, since=first.created_at)
    roles = await access.roles_for(session.provider, user.email, session.roles)
    body = {
        "session_token": text,
        "token_type": "bearer",
        "expires_at": clock.stamp(session.expires_at),
        "email": user.email,
        "roles": roles,
    }
    return Response(encode(body), 200, {"Pragma": "no-cache"}, "application/json")


class LiveSession(msgspec.Struct):
    """A session as its owner and administrators see it."""

    id: str
    provider_name: str
    token_hint: str
    is_current: bool
    address: str
    user_agent: str
    created_at: str
    last_active_at: str
    expires_at: str


def _shown(row: Session, call: Call) -> LiveSession:
    return LiveSession(
        id=row.id,
        provider_name=row.provider,
        token_hint=row.hint,
        is_current=row.id == call.principal.session_id,
        address=row.address,
        user_agent=row.user_agent,
        created_at=clock.stamp(row.created_at),
        last_active_at=clock.stamp(row.last_used_at),
        expires_at=clock.stamp(row.expires_at),
    )


async def index(call: Call) -> list[LiveSession]:
    """The caller's sessions, newest first."""
    return [_shown(row, call) for row in await sessions.of_user(call.principal.id)]


async def index_of_user(call: Call) -> list[LiveSession]:
    """A user's sessions, newest first."""
    user = await actions.user(call.path["user"])
    return [_shown(row, call) for row in await sessions.of_user(user.id)]


async def end(call: Call) -> None:
    """End one of the caller's sessions."""
    if not await sessions.end(call.path["session"], call.principal.id):
        raise NotFound
    await call.services.authenticator.changed()


async def end_all(call: Call) -> None:
    """End all of the caller's sessions, this one too."""
    await sessions.end_all(call.principal.id)
    await call.services.authenticator.changed()


async def end_of_user(call: Call) -> None:
    """End all sessions of a user; the user's tokens stay."""
    user = await actions.user(call.path["user"])
    await sessions.end_all(user.id)
    await call.services.authenticator.changed()


async def logout(call: Call) -> None:
    """End the session whose token this is."""
    principal = call.principal
    if not principal.session_id:
        message = (
            f"this is an API token and no session: DELETE /api/v2/authentication-tokens/{principal.token_id} ends it"
        )
        raise Conflict(message)
    await sessions.end(principal.session_id, principal.id)
    await call.services.authenticator.changed()


async def change_password(call: Call) -> None:
    """Change the caller's own password; all other sessions end."""
    sent = call.attributes
    for name in ("current_password", "password"):
        if not sent.get(name):
            message = f"{name} is needed"
            raise Invalid(message, pointer=f"/data/attributes/{name}")
    if sent.get("password_confirmation", sent["password"]) != sent["password"]:
        message = "password_confirmation is not the same as password"
        raise Invalid(message, pointer="/data/attributes/password_confirmation")
    user = await actions.user(call.principal.id)
    service = call.services.ask(SIGN_IN)
    attempt = Attempt(service.brake, "sign-in", call.address, user.email)
    await service.replace_password(
        user, sent["current_password"], sent["password"], attempt, but=call.principal.session_id
    )
    await call.services.authenticator.changed()


RESOURCES: tuple[Resource, ...] = (PASSWORD,)
_AUTH = "/api/v2/auth"
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", f"{_AUTH}/providers", None, providers, Access.PUBLIC),
    Raw("GET", f"{_AUTH}/saml/{{provider}}/metadata", metadata, Access.PUBLIC),
    Raw("POST", f"{_AUTH}/token", token, Access.PUBLIC, takes=CODE_FORM, gives=dict[str, Any]),
    Endpoint("GET", f"{_AUTH}/sessions", None, index, Access.SELF),
    Endpoint("DELETE", f"{_AUTH}/sessions", None, end_all, Access.SELF, body=False),
    Endpoint("DELETE", f"{_AUTH}/sessions/{{session}}", None, end, Access.SELF, body=False),
    Endpoint("GET", f"{_AUTH}/sessions/user/{{user}}", None, index_of_user, Access.AUDIT),
    Endpoint("DELETE", f"{_AUTH}/sessions/user/{{user}}", None, end_of_user, Access.PLATFORM, body=False),
    Endpoint("POST", f"{_AUTH}/logout", None, logout, Access.SELF, body=False),
    Endpoint(
        "PATCH",
        "/api/v2/account/password",
        PASSWORD,
        change_password,
        Access.SELF,
        requires=("current_password", "password"),
    ),
)
