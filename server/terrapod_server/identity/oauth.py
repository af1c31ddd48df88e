"""The authorization server of `terraform login`: authorization code with PKCE (RFC 6749, 7636, 8252).

Public clients only, loopback redirects only, S256 only; a code is good once
and for a minute, and every mistake spends it.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

import msgspec

from terrapod_server.identity import onetime, rules
from terrapod_server.identity.model import Session, User
from terrapod_shared import clock
from terrapod_shared.errors import BadRequest

_CODE_S = 60.0
_CODE = "authorization code"
_LONGEST_STATE = 512


@dataclass(frozen=True)
class Client:
    """A program that may ask. `gives` is what it gets for its code."""

    title: str
    gives: Literal["token", "session"]


CLIENTS = {
    "terraform-cli": Client("terraform login", "token"),
    "terrapod-cli": Client("terrapod login", "session"),
}


@dataclass(frozen=True)
class Ask:
    """A request for a code that may be shown to the person whose it is."""

    client_id: str
    redirect_uri: str
    challenge: str
    state: str

    @property
    def client(self) -> Client:
        return CLIENTS[self.client_id]

    @property
    def origin(self) -> str:
        """Where the browser is sent with the code."""
        parts = urlsplit(self.redirect_uri)
        return f"{parts.scheme}://{parts.netloc}"

    def query(self) -> str:
        return urlencode(
            {
                "client_id": self.client_id,
                "response_type": "code",
                "redirect_uri": self.redirect_uri,
                "code_challenge": self.challenge,
                "code_challenge_method": "S256",
                "state": self.state,
            }
        )


class Refused(Exception):
    """An error of RFC 6749, section 5.2."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(description)
        self.error, self.description = error, description


@dataclass(frozen=True)
class Grant:
    """What a code stands for."""

    ask: Ask
    user_id: str
    session_id: str


def ask_of(query: Mapping[str, str]) -> Ask:
    """Raises BadRequest, which is shown to the person: terraform would wait on after an error's redirect."""
    client_id, redirect_uri = query.get("client_id", ""), query.get("redirect_uri", "")
    state, challenge = query.get("state", ""), query.get("code_challenge", "")
    why = ""
    if client_id not in CLIENTS:
        why = f"client_id must be one of {', '.join(CLIENTS)}"
    elif not rules.is_loopback(redirect_uri):
        first, last = rules.PORTS
        why = f"redirect_uri must be http://localhost:PORT/login or http://127.0.0.1:PORT/login, with a port from {first} to {last}"
    elif query.get("response_type") != "code":
        why = "response_type must be code"
    elif query.get("code_challenge_method") != "S256" or not rules.is_challenge(challenge):
        why = "a code_challenge with code_challenge_method=S256 is needed (PKCE)"
    elif not state or len(state) > _LONGEST_STATE or not state.isprintable():
        why = f"a state of 1 to {_LONGEST_STATE} characters is needed"
    if why:
        raise BadRequest(why)
    return Ask(client_id, redirect_uri, challenge, state)


async def issue(ask: Ask, session: Session) -> str:
    """The URL on the person's own host that takes the code to the program."""
    code = secrets.token_urlsafe(32)
    grant = Grant(ask, session.user_id, session.id)
    await onetime.put(_CODE, code, _CODE_S, msgspec.to_builtins(grant), session.user_id)
    return f"{ask.redirect_uri}?{urlencode({'code': code, 'state': ask.state})}"


async def redeem(form: Mapping[str, str], gives: Literal["token", "session"]) -> tuple[Grant, User, Session]:
    """What a code stands for; it is spent by the first who shows it, right or wrong. Raises Refused."""
    if form.get("grant_type", "authorization_code") != "authorization_code":
        raise Refused("unsupported_grant_type", "grant_type must be authorization_code")
    missing = [name for name in ("code", "code_verifier") if not form.get(name)]
    if missing:
        raise Refused("invalid_request", f"{missing[0]} is missing")
    kept: Any = await onetime.take(_CODE, form["code"])
    bad = Refused("invalid_grant", "the code is unknown, used, or older than 60 seconds, or the rest does not fit it")
    if kept is None:
        raise bad
    grant = msgspec.convert(kept, Grant)
    fits = (
        grant.ask.client.gives == gives
        and form.get("client_id", grant.ask.client_id) == grant.ask.client_id
        and form.get("redirect_uri", grant.ask.redirect_uri) == grant.ask.redirect_uri
        and rules.proves(form["code_verifier"], grant.ask.challenge)
    )
    live = Session.filter(id=grant.session_id, user_id=grant.user_id, expires_at__gt=clock.now())
    session = await live.get_or_none() if fits else None
    user = await User.get_or_none(id=grant.user_id, is_active=True) if session else None
    if session is None or user is None:
        raise bad
    return grant, user, session


__all__ = ["CLIENTS", "Ask", "Client", "Grant", "Refused", "ask_of", "issue", "redeem"]
