"""The pages of identity: signing in and out, one's own account, and the consent of `terraform login`.

Each field has its label, and an error is said in the title, beside its fields
and to screen readers.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from starlette.responses import Response

from terrapod_server.identity import actions, browser, oauth, rules, sessions
from terrapod_server.identity.model import User
from terrapod_server.identity.signin.provider import CALLBACK
from terrapod_server.identity.signin.providers import SIGN_IN, Attempt
from terrapod_server.kit import html
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Limit, Page, Recorded
from terrapod_server.kit.caller import Access
from terrapod_server.kit.http.forms import single
from terrapod_shared import clock, ids
from terrapod_shared.errors import Invalid, NotFound, TerrapodError

#: Of a person's API tokens, on one page.
_TOKENS_SHOWN = 100
_WRONG = "The e-mail address or the password is wrong."


async def root(_call: Call) -> Response:
    """Leads to one's account, or to sign in."""
    return html.redirect("/account")


@dataclass(frozen=True)
class Way:
    """A provider on the sign-in page."""

    name: str
    title: str


def _sign_in_page(call: Call, goes_on: str, email: str = "", error: str = "", status: int = 200) -> Response:
    service = call.services.ask(SIGN_IN)
    return html.page(
        "identity/sign_in.html", call.browser, status=status, title="Sign in", wrong=bool(error), goes_on=goes_on,
        ways=[Way(name, provider.settings.shown) for name, provider in service.providers.items()],
        local=service.settings.local, email=email, error=error,
    )  # fmt: skip


async def show_sign_in(call: Call) -> Response:
    """The sign-in page; somebody who is signed in already goes on at once."""
    goes_on = rules.own_page(call.param("next") or "")
    return html.redirect(goes_on) if await browser.signed_in(call) else _sign_in_page(call, goes_on)


async def sign_in(call: Call) -> Response:
    """Sign in with a password of this server."""
    form = call.form
    email, goes_on = form.get("email", ""), rules.own_page(form.get("next", ""))
    service = call.services.ask(SIGN_IN)
    attempt = await _attempt(call, email)
    try:
        user = await service.by_password(email, form.get("password", ""), attempt)
    except TerrapodError as error:
        response = _sign_in_page(call, goes_on, email, f"{error.detail}.", error.status)
        response.headers.update(error.headers)
        return response
    if user is None:
        return _sign_in_page(call, goes_on, email, _WRONG, 401)
    return await _begin_session(call, user, actions.LOCAL, (), goes_on, attempt.device)


async def _attempt(call: Call, email: str) -> Attempt:
    account = rules.address_of(email)
    user = await User.get_or_none(email=account) if account else None
    if user:  # whose password is guessed; what is nobody's address may be a password in the wrong field
        call.about("users", user.id)
    device = browser.device(call, user)
    return Attempt(call.services.ask(SIGN_IN).brake, "sign-in", call.address, account or email, device)


async def _begin_session(
    call: Call, user: User, provider: str, roles: tuple[str, ...], page: str, device: str = ""
) -> Response:
    """Signs the browser in, with a new session in place of one that it may have had, and leads on."""
    agent = call.request.headers.get("user-agent", "")
    session, token = await sessions.begin(user, provider, roles, call.address, agent)
    await _end_session(call)
    call.about("sessions", session.id, actor=browser.person(user, session))
    response = html.redirect(rules.own_page(page))
    browser.sign_in(call, response, token, user, device or browser.device(call, user))
    return response


async def _end_session(call: Call) -> None:
    if found := await browser.signed_in(call):
        session, user = found
        await sessions.end(session.id, user.id)
        await call.services.authenticator.changed()


async def sign_out(call: Call) -> Response:
    """End the browser's session at once."""
    await _end_session(call)
    response = html.message("Signed out", "Your session is over.", link=(html.SIGN_IN, "Sign in again"))
    browser.sign_out(call, response)
    return response


async def account(call: Call) -> dict[str, Any]:
    """The person's own page: sessions, API tokens and password."""
    session, user = await browser.own_session(call)
    paging = html.paging(call.request, "/account", _TOKENS_SHOWN, await actions.count_tokens(user.id))
    return {
        "title": "Your account", "width": "wide", "user": user, "session": session, "error": "",
        "live": await sessions.of_user(user.id), "longest": sessions.LONGEST, "now": clock.now(),
        "tokens": await actions.newest_tokens(user.id, paging.offset, _TOKENS_SHOWN), "paging": paging,
        "device": rules.device,
    }  # fmt: skip


async def end_sessions(call: Call) -> Response:
    """End one of the person's other sessions, or all of them."""
    session, user = await browser.own_session(call)
    session_id = call.form.get("session", "")
    call.about("sessions", session_id if ids.is_valid(session_id, "ses") else "")
    if session_id == "others":
        await sessions.end_all(user.id, but=session.id)
        call.browser.say("All other sessions were ended.")
    elif await sessions.end(session_id[:40], user.id):
        call.browser.say("The session was ended.")
    else:
        call.browser.say("There is no such session; it may have ended already.")
    await call.services.authenticator.changed()
    return html.redirect("/account")


async def end_token(call: Call) -> Response:
    """End one of the person's API tokens."""
    _, user = await browser.own_session(call)
    token_id = call.form.get("token", "")
    call.about("authentication-tokens", token_id if ids.is_valid(token_id, "at") else "")
    if not await actions.end_token(token_id, user.id):
        raise NotFound("there is no such token of yours; it may have been ended already")
    await call.services.authenticator.changed()
    call.browser.say("The token was ended.")
    return html.redirect("/account")


async def change_password(call: Call) -> Response:
    """Change the person's own password."""
    session, user = await browser.own_session(call)
    form, device = call.form, browser.device(call, user)
    new, error = form.get("password", ""), ""
    if new != form.get("again"):
        error = "The new password was not typed the same twice."
    else:
        try:
            service = call.services.ask(SIGN_IN)
            attempt = Attempt(service.brake, "sign-in", call.address, user.email, device)
            await service.replace_password(user, form.get("current", ""), new, attempt, but=session.id)
            await call.services.authenticator.changed()
        except Invalid as refused:
            error = f"{refused.detail}."
    if error:
        values = await account(call) | {"error": error}
        return html.page("identity/account.html", call.browser, status=422, wrong=True, **values)
    call.browser.say("Your password was changed; all other sessions were ended.")
    response = html.redirect("/account")
    await user.refresh_from_db()
    browser.sign_in(call, response, call.browser.session, user, device)  # known by the new password from now on
    return response


def _asked(call: Call) -> oauth.Ask:
    return oauth.ask_of(single(call.request.query_params.multi_items()))


async def authorize(call: Call) -> Response:
    """Ask the person whether a program may have a token."""
    ask = _asked(call)
    _, user = await browser.own_session(call)
    return html.page(
        "identity/consent.html", call.browser, title="Allow access?", forms=ask.origin, ask=ask, user=user,
        host=urlsplit(call.base).netloc,
    )  # fmt: skip


async def consent(call: Call) -> Response:
    """The person's answer; only `allow` makes a code."""
    ask = _asked(call)
    session, _ = await browser.own_session(call)
    if call.form.get("answer") == "allow":
        return html.redirect(await oauth.issue(ask, session))
    if call.form.get("answer") == "other":
        await _end_session(call)
        response = html.redirect(html.sign_in(f"/oauth/authorize?{ask.query()}"))
        browser.sign_out(call, response)
        return response
    return html.message(
        "Not allowed",
        f"Nothing was made, and {ask.client.title} got nothing. It may wait still: end it by Ctrl-C, or by closing its "
        "terminal. You can close this page.",
    )


async def depart(call: Call) -> Response:
    """Begin to sign in: at a provider, or on our own page.

    With `redirect_uri`, `code_challenge` and `state` the end is a code for `POST auth/token`.
    """
    query = single(call.request.query_params.multi_items())
    page = rules.own_page(query.get("next", ""))
    if "redirect_uri" in query:
        asked = {"client_id": "terrapod-cli", "response_type": "code", "code_challenge_method": "S256", **query}
        page = f"/oauth/authorize?{oauth.ask_of(asked).query()}"
    name = query.get("provider", actions.LOCAL)
    service = call.services.ask(SIGN_IN)
    if name == actions.LOCAL:
        return html.redirect(html.sign_in(page))
    return html.redirect(await service.depart(name, page, call.browser.id, call.base))


async def arrive(call: Call) -> Response:
    """Back from a provider, with a person or with a reason why not."""
    service = call.services.ask(SIGN_IN)
    arrival = await service.arrive(single(call.request.query_params.multi_items()), call.browser.id)
    user = await service.by_proof(arrival.proof)
    return await _begin_session(call, user, arrival.proof.provider, arrival.proof.roles, arrival.page)


async def deliver(call: Call) -> Response:
    """A SAML provider's answer, by way of the browser but without its cookies: it is sent on to show them."""
    handle = await call.services.ask(SIGN_IN).deliver(call.form)
    return html.redirect(f"{CALLBACK}?{urlencode({'proof': handle})}")


_ACCOUNT = "identity/account.html"
PAGES: tuple[Page, ...] = (
    Page("GET", "/", root, Access.USER, answers=(303,)),
    Page("GET", "/sign-in", show_sign_in, Access.PUBLIC),
    Page("POST", "/sign-in", sign_in, Access.PUBLIC, form=("next", "email", "password")),
    Page("POST", "/sign-out", sign_out, Access.SELF),
    Page("GET", "/account", account, Access.SELF, template=_ACCOUNT),
    Page("POST", "/account/password", change_password, Access.SELF, form=("current", "password", "again")),
    Page("POST", "/account/sessions", end_sessions, Access.SELF, form=("session",)),
    Page("POST", "/account/tokens", end_token, Access.SELF, form=("token",)),
    Page("GET", "/oauth/authorize", authorize, Access.SELF),
    Page("POST", "/oauth/authorize", consent, Access.SELF, form=("answer",)),
    Page("GET", "/api/v2/auth/authorize", depart, Access.PUBLIC, answers=(303,)),
    Page("GET", CALLBACK, arrive, Access.CAPABILITY, recorded=Recorded.READS, answers=(303,)),
    Page(
        "POST", CALLBACK, deliver, Access.CAPABILITY, form=("SAMLResponse", "RelayState"), limit=Limit.LARGE_FORM,
        is_cross_site=True, answers=(303,),
    ),
)  # fmt: skip
