"""The pages' endpoints, and those of `terraform login`: what browsers and the CLI call without a token."""

import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

from starlette.responses import Response

from terrapod_server.identity import actions, oauth, pages, rules, sessions
from terrapod_server.identity.browser import Visitor, form_of, person, single
from terrapod_server.identity.model import Session, User
from terrapod_server.identity.pages import Way
from terrapod_server.identity.signin import passwords
from terrapod_server.identity.signin.providers import Attempt, SignIn
from terrapod_server.kit import html
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Endpoint, Raw
from terrapod_server.kit.api.render import encode
from terrapod_server.kit.caller import Access
from terrapod_shared import clock
from terrapod_shared.errors import Invalid, NotFound, TerrapodError, Unauthorized

Handler = Callable[[Call], Awaitable[Response]]
#: Of a person's API tokens, on the page.
_TOKENS_SHOWN = 100
_WRONG = "The e-mail address or the password is wrong."


async def begin_session(
    call: Call, visitor: Visitor, user: User, provider: str, roles: tuple[str, ...], page: str, device: str = ""
) -> Response:
    """Signs the browser in, with a new session in place of one that it may have had, and leads on."""
    agent = call.request.headers.get("user-agent", "")
    session, token = await sessions.begin(user, provider, roles, call.address, agent)
    await end_session(call, visitor)
    call.about("sessions", session.id, actor=person(user, session))
    response = html.redirect(rules.own_page(page))
    visitor.sign_in(response, token, user, device or visitor.device(user))
    return visitor.keep(response)


async def end_session(call: Call, visitor: Visitor) -> None:
    if visitor.signed_in:
        session, user = visitor.signed_in
        await sessions.end(session.id, user.id)
        await call.services.authenticator.changed()


def _sign_in_page(
    call: Call, visitor: Visitor, goes_on: str, email: str = "", error: str = "", status: int = 200
) -> Response:
    sign_in: SignIn = call.services.sign_in
    ways = [Way(name, provider.settings.shown) for name, provider in sign_in.providers.items()]
    local = sign_in.settings.local
    return visitor.keep(
        pages.sign_in(visitor.csrf, goes_on, ways, local=local, email=email, error=error, status=status)
    )


async def show_sign_in(call: Call) -> Response:
    """The sign-in page; somebody who is signed in already goes on at once."""
    visitor = await Visitor(call).identify()
    goes_on = rules.own_page(call.param("next") or "")
    return html.redirect(goes_on) if visitor.signed_in else _sign_in_page(call, visitor, goes_on)


async def sign_in(call: Call) -> Response:
    """Sign in with a password of this server."""
    form = await form_of(call)
    visitor = await Visitor(call).identify()
    visitor.check_csrf(form)
    email, goes_on = form.get("email", ""), rules.own_page(form.get("next", ""))
    service: SignIn = call.services.sign_in
    attempt = await _attempt(call, visitor, email)
    try:
        user = await service.by_password(email, form.get("password", ""), attempt)
    except TerrapodError as error:
        response = _sign_in_page(call, visitor, goes_on, email, f"{error.detail}.", error.status)
        response.headers.update(error.headers)
        return response
    if user is None:
        return _sign_in_page(call, visitor, goes_on, email, _WRONG, 401)
    return await begin_session(call, visitor, user, actions.LOCAL, (), goes_on, attempt.device)


async def _attempt(call: Call, visitor: Visitor, email: str) -> Attempt:
    account = rules.address_of(email)
    user = await User.get_or_none(email=account) if account else None
    if user:  # whose password is guessed; what is nobody's address may be a password in the wrong field
        call.about("users", user.id)
    device = visitor.device(user)
    return Attempt(call.services.sign_in.brake, "sign-in", call.address, account or email, device)


async def sign_out(call: Call) -> Response:
    """End the browser's session at once."""
    form = await form_of(call)
    visitor = await Visitor(call).identify()
    visitor.check_csrf(form)
    await end_session(call, visitor)
    response = html.message("Signed out", "Your session is over.", link=(html.SIGN_IN, "Sign in again"))
    visitor.sign_out(response)
    return response


async def root(call: Call) -> Response:
    """Leads to one's account, or to sign in."""
    visitor = await Visitor(call).identify()
    return html.redirect("/account" if visitor.signed_in else html.SIGN_IN)


async def account(call: Call) -> Response:
    """The person's own page: sessions, API tokens and password."""
    visitor = await Visitor(call).identify()
    done = {
        "password": "Your password was changed; all other sessions were ended.",
        "session": "The session was ended.",
        "token": "The token was ended.",
    }
    return await _account_page(visitor, done=done.get(call.param("done") or "", ""))


async def _account_page(visitor: Visitor, *, error: str = "", done: str = "") -> Response:
    session, user = visitor.signed_in or _nobody()
    tokens, count = await actions.newest_tokens(user.id, _TOKENS_SHOWN)
    held = pages.Held(await sessions.of_user(user.id), tokens, count - len(tokens))
    return visitor.keep(pages.account(visitor.csrf, user, session, held, error=error, done=done))


def _nobody() -> tuple[Session, User]:
    raise Unauthorized("your session is over: sign in again")


async def _signed_in_form(call: Call) -> tuple[Visitor, dict[str, str]]:
    form = await form_of(call)
    visitor = await Visitor(call).identify()
    visitor.check_csrf(form)
    if visitor.signed_in is None:
        _nobody()
    return visitor, form


async def end_sessions(call: Call) -> Response:
    """End one of the person's other sessions, or all of them."""
    visitor, form = await _signed_in_form(call)
    session, user = visitor.signed_in or _nobody()
    if form.get("session") == "others":
        await sessions.end_all(user.id, but=session.id)
    else:
        await sessions.end(form.get("session", ""), user.id)
    await call.services.authenticator.changed()
    return html.redirect("/account?done=session")


async def end_token(call: Call) -> Response:
    """End one of the person's API tokens."""
    visitor, form = await _signed_in_form(call)
    _, user = visitor.signed_in or _nobody()
    token_id = form.get("token", "")
    call.about("authentication-tokens", token_id)
    if not await actions.end_token(token_id, user.id):
        raise NotFound("there is no such token of yours; it may have been ended already")
    await call.services.authenticator.changed()
    return html.redirect("/account?done=token")


async def change_password(call: Call) -> Response:
    """Change the person's own password."""
    visitor, form = await _signed_in_form(call)
    session, user = visitor.signed_in or _nobody()
    new = form.get("password", "")
    if new != form.get("again"):
        return await _account_page(visitor, error="The new password was not typed the same twice.")
    try:
        await replace_password(call, user, form.get("current", ""), new, session.id, visitor.device(user))
    except Invalid as error:
        return await _account_page(visitor, error=f"{error.detail}.")
    response = html.redirect("/account?done=password")
    await user.refresh_from_db()
    visitor.sign_in(response, visitor.token, user, visitor.device(user))  # known by the new password from now on
    return response


async def replace_password(call: Call, user: User, current: str, new: str, session_id: str, device: str = "") -> None:
    """Raises Invalid for a wrong current password or a weak new one; ends all other sessions."""
    service: SignIn = call.services.sign_in
    attempt = Attempt(service.brake, "sign-in", call.address, user.email, device)
    if await service.by_password(user.email, current, attempt) is None:
        message = "the current password is wrong"
        raise Invalid(message, pointer="/data/attributes/current-password")
    await passwords.check_quality(new, user.email)
    await actions.set_password(user, await service.passwords.hash(new), but=session_id)
    await call.services.authenticator.changed()


def _asked(call: Call) -> oauth.Ask:
    return oauth.ask_of(single(call.request.query_params.multi_items()))


async def authorize(call: Call) -> Response:
    """Ask the person whether a program may have a token; first to sign in, where needed."""
    ask = _asked(call)
    visitor = await Visitor(call).identify()
    if visitor.signed_in is None:
        return html.redirect(f"/sign-in?{urlencode({'next': f'/oauth/authorize?{ask.query()}'})}")
    host = urlsplit(call.base).netloc
    return visitor.keep(pages.consent(visitor.csrf, ask, visitor.signed_in[1], host))


async def consent(call: Call) -> Response:
    """The person's answer; only `allow` makes a code."""
    ask = _asked(call)
    visitor, form = await _signed_in_form(call)
    session, _ = visitor.signed_in or _nobody()
    if form.get("answer") == "allow":
        return html.redirect(await oauth.issue(ask, session))
    if form.get("answer") == "other":
        await end_session(call, visitor)
        response = html.redirect(f"/sign-in?{urlencode({'next': f'/oauth/authorize?{ask.query()}'})}")
        visitor.sign_out(response)
        return response
    return html.message(
        "Not allowed",
        f"Nothing was made, and {ask.client.title} got nothing. It may wait still: end it by Ctrl-C, or by closing its "
        "terminal. You can close this page.",
    )


async def exchange(call: Call, gives: Literal["token", "session"]) -> tuple[oauth.Grant, User, Session]:
    """A code for what it stands for; guesses are counted. Raises oauth.Refused."""
    form = await form_of(call)
    attempt = Attempt(call.services.sign_in.brake, "code", call.address)
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
_PAGE: dict[str, Any] = {"page": True, "gives": "text/html"}
_PUBLIC: dict[str, Any] = {**_PAGE, "needs": Access.PUBLIC}
_OWN: dict[str, Any] = {**_PAGE, "needs": Access.SELF}
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Raw("GET", "/", root, **_PUBLIC),
    Raw("GET", "/sign-in", show_sign_in, **_PUBLIC),
    Raw("POST", "/sign-in", sign_in, takes=("csrf", "next", "email", "password"), **_PUBLIC),
    Raw("POST", "/sign-out", sign_out, takes=("csrf",), **_PUBLIC),
    Raw("GET", "/account", account, **_OWN),
    Raw("POST", "/account/password", change_password, takes=("csrf", "current", "password", "again"), **_OWN),
    Raw("POST", "/account/sessions", end_sessions, takes=("csrf", "session"), **_OWN),
    Raw("POST", "/account/tokens", end_token, takes=("csrf", "token"), **_OWN),
    Raw("GET", "/oauth/authorize", authorize, **_PUBLIC),
    Raw("POST", "/oauth/authorize", consent, takes=("csrf", "answer"), **_PUBLIC),
    Raw("POST", "/oauth/token", token, Access.PUBLIC, takes=CODE_FORM, gives=dict[str, Any]),
)
