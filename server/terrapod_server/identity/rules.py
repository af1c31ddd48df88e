"""What a sign-in decides by values alone: who is redirected where, which claims are believed, and what they give. Pure."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

#: What `terraform login` listens on (its upper bound is exclusive, so 10010 itself is never chosen).
PORTS = (10000, 10010)
#: A provider's clock may differ from ours by so much.
LEEWAY_S = 30
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_LONGEST = 255
#: Our own pages to which a sign-in may lead on.
_PAGES = frozenset({"/account", "/oauth/authorize"})
#: Below this are pages of things. A part of theirs has no dot, so that nothing leads up and out.
_APP = re.compile(r"/app(?:/[A-Za-z0-9_-]{1,100}){1,8}")
#: Marks in the User-Agent of a browser or a system, each before those that it also carries.
_BROWSERS = (("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrome/", "Chrome"), ("CriOS/", "Chrome"),
    ("FxiOS/", "Firefox"), ("Safari/", "Safari"))  # fmt: skip
_SYSTEMS = (("Android", "Android"), ("iPhone", "iPhone"), ("iPad", "iPad"), ("CrOS", "ChromeOS"), ("Windows", "Windows"),
    ("Mac OS X", "macOS"), ("Linux", "Linux"), ("linux", "Linux"))  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """What a provider says of the person that it let in. `is_vouched`: that the address is this person's."""

    provider: str
    subject: str
    email: str
    is_vouched: bool
    name: str
    roles: tuple[str, ...]


class ClaimRule(Protocol):
    """One rule of the settings: whoever has this value in this claim has these roles."""

    @property
    def claim(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def roles(self) -> Sequence[str]: ...


def is_loopback(redirect_uri: str) -> bool:
    """Whether it is what `terraform login` listens at: loopback, its ports, `/login`, and nothing besides."""
    if not redirect_uri.isascii() or not redirect_uri.isprintable() or "\\" in redirect_uri:
        return False
    try:
        parts = urlsplit(redirect_uri)
        port = parts.port
    except ValueError:
        return False
    if port is None or not PORTS[0] <= port <= PORTS[1]:
        return False
    # rebuilt of its parts, so that nothing which parsers read in two ways can be in it
    return any(redirect_uri == f"http://{host}:{port}/login" for host in ("localhost", "127.0.0.1"))


def own_page(text: str) -> str:
    """The page of ours that `text` names, with its query; the account's for anything else."""
    path = text.partition("?")[0]
    is_ours = path in _PAGES or _APP.fullmatch(path)
    return text if is_ours and text.isascii() and text.isprintable() else "/account"


def device(user_agent: str) -> str:
    """A browser and its system, as people call them; of a program its own name."""
    browser = next((name for mark, name in _BROWSERS if mark in user_agent), "")
    system = next((name for mark, name in _SYSTEMS if mark in user_agent), "")
    if user_agent.startswith("Mozilla/") and browser:
        return f"{browser} on {system}" if system else browser
    return user_agent.partition(" (")[0][:60].strip() or "Unknown program"


def is_challenge(text: str) -> bool:
    return bool(_CHALLENGE.fullmatch(text))


def challenge_of(verifier: str) -> str:
    """PKCE's S256 (RFC 7636, 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def proves(verifier: str, challenge: str) -> bool:
    return bool(_VERIFIER.fullmatch(verifier)) and hmac.compare_digest(challenge_of(verifier), challenge)


def check_id_token(claims: Mapping[str, Any], *, issuer: str, client_id: str, nonce: str, now: float) -> None:
    """OpenID Connect Core 3.1.3.7, of a token whose signature is good. Raises ValueError."""
    if claims.get("iss") != issuer:
        raise ValueError(f"iss is {str(claims.get('iss'))[:120]!r}, not {issuer!r}")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if client_id not in audiences:
        raise ValueError("aud does not name this server's client_id")
    authorized = claims.get("azp")
    if (authorized is None and len(audiences) > 1) or authorized not in (None, client_id):
        raise ValueError("azp does not name this server's client_id")
    for name in ("exp", "iat"):
        if name not in claims:
            raise ValueError(f"{name} is missing")
    at = {name: _time(claims, name) for name in ("exp", "iat", "nbf") if name in claims}
    if at["exp"] <= now - LEEWAY_S:
        raise ValueError("exp has passed")
    if at["iat"] > now + LEEWAY_S or at.get("nbf", 0.0) > now + LEEWAY_S:
        raise ValueError("iat or nbf is in the future")
    said = claims.get("nonce")
    if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
        raise ValueError("nonce is not the one of this sign-in")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST or "\0" in subject:
        raise ValueError("sub is missing or too long")


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is no number")  # noqa: TRY004  what was sent is wrong, not the call
    return float(value)


def roles_of(
    claims: Mapping[str, Any], roles_claim: str, prefixes: Iterable[str], rules: Iterable[ClaimRule]
) -> tuple[str, ...]:
    """Roles by explicit prefix or rule only: a group that happens to be called `admin` gives nothing."""
    found = {
        value.removeprefix(prefix)
        for value in values_of(claims, roles_claim)
        for prefix in prefixes
        if prefix and value.startswith(prefix)
    }
    for rule in rules:
        if rule.value in values_of(claims, rule.claim):
            found.update(rule.roles)
    return tuple(sorted(role for role in found if role))


def values_of(claims: Mapping[str, Any], name: str) -> list[str]:
    """The strings of a claim: itself, or its list's; `a.b` also finds `b` inside of `a`, as Keycloak nests them."""
    found: Any = claims.get(name)
    if found is None and "." in name:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    many = found if isinstance(found, list | tuple) else [found]
    return [value for value in many if isinstance(value, str)]


def address_of(text: Any) -> str:
    """An e-mail address in lower case; empty for what can be none."""
    if not isinstance(text, str) or not text.isprintable() or len(text) > _LONGEST - 1:
        return ""
    name, at, host = text.strip().lower().rpartition("@")
    return f"{name}@{host}" if name and at and host and " " not in text.strip() else ""
