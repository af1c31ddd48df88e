"""The token endpoint of `terraform login`: what programs call with a code, and without a token."""

import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Literal

from starlette.responses import Response

from terrapod_server.identity import actions, oauth
from terrapod_server.identity.browser import person
from terrapod_server.identity.model import Session, User
from terrapod_server.identity.signin.providers import SIGN_IN, Attempt
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Endpoint, Raw
from terrapod_server.kit.api.render import encode
from terrapod_server.kit.caller import Access
from terrapod_server.kit.http.forms import FIELDS_BYTES, fields_of
from terrapod_shared import clock
from terrapod_shared.errors import TerrapodError

Handler = Callable[[Call], Awaitable[Response]]


async def exchange(call: Call, gives: Literal["token", "session"]) -> tuple[oauth.Grant, User, Session]:
    """A code for what it stands for; guesses are counted. Raises oauth.Refused."""
    call.limit_bytes = FIELDS_BYTES
    form = await fields_of(call.request.headers.get("content-type", ""), call.stream())
    attempt = Attempt(call.services.ask(SIGN_IN).brake, "code", call.address)
    await attempt.begin()
    grant, user, session = await oauth.redeem(form, gives)
    await attempt.succeeded()
    call.about("users", user.id, actor=person(user, session))
    return grant, user, session


def rfc6749(handler: Handler) -> Handler:
    """Errors in the form of RFC 6749, which OAuth clients read."""

    @functools.wraps(handler)
    async def answered(call: Call) -> Response:
        headers = {"Cache-Control": "no-store", "Pragma": "no-cache"}
        try:
            return await handler(call)
        except oauth.Refused as error:
            status, body = 400, {"error": error.error, "error_description": error.description}
        except TerrapodError as error:
            name = "invalid_request" if error.status < 429 else "temporarily_unavailable"  # noqa: PLR2004
            status, body = error.status, {"error": name, "error_description": error.detail}
            headers |= error.headers
        return Response(encode(body), status, headers, "application/json")

    return answered


@rfc6749
async def token(call: Call) -> Response:
    """Exchange an authorization code for an API token, as `terraform login` does."""
    grant, user, session = await exchange(call, "token")
    days = call.services.config.auth.login_token_days
    agent = call.request.headers.get("user-agent", "").partition(" ")[0]
    made = await actions.create_token(
        user.id,
        f"{grant.ask.client.title} ({agent})".replace("\0", "")[:254],
        expired_at=clock.now() + timedelta(days=days) if days else None,
        provider=session.provider,
    )
    body = {"access_token": made.text, "token_type": "bearer", **({"expires_in": days * 86400} if days else {})}
    return Response(encode(body), 200, {"Pragma": "no-cache"}, "application/json")


#: What a program sends to exchange its code.
CODE_FORM = ("grant_type", "code", "code_verifier", "client_id", "redirect_uri")
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Raw("POST", "/oauth/token", token, Access.PUBLIC, takes=CODE_FORM, gives=dict[str, Any]),
)
