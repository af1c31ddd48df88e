"""The pages of identity: what is put into their templates.

Each form carries the browser's proof, each field its label, and an error is
said in the title, beside its fields and to screen readers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response

from terrapod_server.identity import rules, sessions
from terrapod_server.identity.model import ApiToken, Session, User
from terrapod_server.identity.oauth import Ask
from terrapod_server.kit import html
from terrapod_shared import clock

html.add_filter("device", rules.device)


@dataclass(frozen=True)
class Way:
    """A provider on the sign-in page."""

    name: str
    title: str


def sign_in(
    csrf: str, goes_on: str, ways: Sequence[Way], *, local: bool, email: str = "", error: str = "", status: int = 200
) -> Response:
    """The form of local accounts, and a link for each provider."""
    return html.page(
        "identity/sign_in.html", status=status, title="Sign in", wrong=bool(error),
        csrf=csrf, goes_on=goes_on, ways=ways, local=local, email=email, error=error,
    )  # fmt: skip


def consent(csrf: str, ask: Ask, user: User, host: str) -> Response:
    """Asks the person before anything is made."""
    return html.page(
        "identity/consent.html", title="Allow access?", forms=ask.origin, csrf=csrf, ask=ask, user=user, host=host
    )


@dataclass(frozen=True)
class Held:
    """What a person has: live sessions, and the newest tokens with the count of the others."""

    sessions: Sequence[Session]
    tokens: Sequence[ApiToken]
    others: int


def account(csrf: str, user: User, current: Session, held: Held, *, error: str = "", done: str = "") -> Response:
    """Who is signed in and where, API tokens, and the password."""
    return html.page(
        "identity/account.html", status=422 if error else 200, title="Your account", width="wide", wrong=bool(error),
        csrf=csrf, user=user, session=current, live=held.sessions, longest=sessions.LONGEST, tokens=held.tokens,
        others=held.others, now=clock.now(), error=error, done=done,
    )  # fmt: skip
