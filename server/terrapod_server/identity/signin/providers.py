"""Who somebody is who signs in: by a password of this server, or by what a provider says.

An identity is (provider, subject), and never an e-mail address: by address a
user is found only where the provider vouches for it. Somebody for whose
address nobody vouches is refused, since role assignments go by address.
"""

import hashlib
import importlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import msgspec
from tortoise.exceptions import IntegrityError

from terrapod_server.config.settings import Auth, SignInProvider
from terrapod_server.identity import actions, onetime, rules
from terrapod_server.identity.model import User, UserIdentity
from terrapod_server.identity.rules import Proof
from terrapod_server.identity.signin import passwords
from terrapod_server.identity.signin.passwords import Passwords
from terrapod_server.identity.signin.provider import Provider, Trip
from terrapod_server.kit.ports import Port
from terrapod_shared import clock
from terrapod_shared.errors import BadRequest, Conflict, Forbidden, Invalid, NotFound

#: The kinds of providers: each is a module beside this one, and a list in the settings.
_KINDS = {"oidc": "Oidc", "saml": "Saml"}
#: How long somebody may take at the provider.
_AWAY_S = 300.0
_STATE, _PROOF, _ASSERTION = "sign-in", "proof of a sign-in", "assertion"
_HANDLE_S = 60.0


class Brake(Protocol):
    """Slows guessing down: `check` charges a try before the secret is looked at, or raises TooManyRequests."""

    async def check(self, what: str, address: str, account: str = "", device: str = "") -> Any: ...
    async def succeeded(self, attempt: Any, device: str = "") -> None: ...


@dataclass
class Attempt:
    """One guess at a secret: the only place where guesses are counted and slowed down.

    `device` names the browser, to which its owner's right guess makes the
    account known: so guessing elsewhere does not lock the owner out.
    """

    brake: Brake | None
    what: str
    address: str
    account: str = ""
    device: str = ""
    _charged: Any = None

    async def begin(self) -> None:
        if self.brake:
            self._charged = await self.brake.check(self.what, self.address, self.account, self.device)

    async def succeeded(self) -> None:
        if self.brake:
            await self.brake.succeeded(self._charged, self.device)


@dataclass(frozen=True)
class Arrival:
    """Somebody who is back from a provider: who it is, in which browser it began, and where it goes on."""

    proof: Proof
    browser: str
    page: str


@dataclass
class SignIn:
    """Local accounts, and the providers of the settings."""

    settings: Auth
    brake: Brake | None = None
    passwords: Passwords = field(init=False)
    providers: dict[str, Provider] = field(init=False)

    def __post_init__(self) -> None:
        self.passwords = Passwords(self.settings)
        # imported only when asked for: what they bring is a tenth of a small server's memory, and one is an extra
        self.providers = {}
        for kind, name in _KINDS.items():
            if configured := getattr(self.settings, kind):
                make = getattr(importlib.import_module(f"terrapod_server.identity.signin.{kind}"), name)
                self.providers |= {each.name: make(each) for each in configured}

    def known(self, name: str) -> Provider:
        """Raises NotFound."""
        if name not in self.providers:
            message = f"there is no sign-in provider {name[:60]!r}"
            raise NotFound(message)
        return self.providers[name]

    async def close(self) -> None:
        self.passwords.close()
        for provider in self.providers.values():
            await provider.close()

    async def by_password(self, email: str, password: str, attempt: Attempt) -> User | None:
        """The user, or None: whoever asks does not learn whether address, password or account is the reason."""
        await attempt.begin()
        address = rules.address_of(email)
        user = await User.get_or_none(email=address) if address and self.settings.local else None
        kept = user.password_hash if user else ""
        if not await self.passwords.verify(kept, password) or user is None or not user.is_active:
            return None
        await attempt.succeeded()
        if self.passwords.is_outdated(kept):
            await User.filter(id=user.id, password_hash=kept).update(password_hash=await self.passwords.hash(password))
        return user

    async def replace_password(self, user: User, current: str, new: str, attempt: Attempt, *, but: str) -> None:
        """Raises Invalid for a wrong current password or a weak new one; ends all other sessions `but` one."""
        if await self.by_password(user.email, current, attempt) is None:
            raise Invalid("the current password is wrong", pointer="/data/attributes/current-password")
        await passwords.check_quality(new, user.email)
        await actions.set_password(user, await self.passwords.hash(new), but=but)

    async def depart(self, name: str, page: str, browser: str, base: str) -> str:
        """The URL at the provider; `page` is where the person goes on, `browser` what its answer must come from."""
        provider = self.known(name)
        trip = Trip(
            state=secrets.token_urlsafe(32),
            nonce=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(48),
            request=f"_{secrets.token_hex(20)}",
            base=base,
        )
        url = await provider.start(trip)
        data = {"provider": name, "page": page, "browser": browser, **asdict(trip)}
        del data["state"]  # is the key by which the rest is found
        await onetime.put(_STATE, trip.state, _AWAY_S, data)
        return url

    async def arrive(self, answer: Mapping[str, str], browser: str) -> Arrival:
        """By the redirect of an OIDC provider, or by the handle that `deliver` gave. Raises Forbidden, BadRequest."""
        if "proof" in answer:
            kept = await onetime.take(_PROOF, answer["proof"])
            self._check_browser(kept, browser)
            return msgspec.convert(kept, Arrival)
        kept = await onetime.take(_STATE, answer.get("state", ""))
        data = self._check_browser(kept, browser)
        proof = await self.known(data["provider"]).finish(answer, _trip(answer["state"], data))
        return Arrival(proof, data["browser"], data["page"])

    async def deliver(self, form: Mapping[str, str]) -> str:
        """A SAML provider's answer, which comes from its site and so without our cookies.

        Gives the handle by which the person's browser, sent on by a redirect, shows that it is theirs.
        """
        state = form.get("RelayState", "")
        data = await onetime.look(_STATE, state) or _gone()
        found = await self.known(data["provider"]).finish_posted(form, _trip(state, data))
        if await onetime.take(_STATE, state) is None:
            _gone()
        left_s = (found.good_until - clock.now()).total_seconds()
        await onetime.put(_ASSERTION, f"{data['provider']}\0{found.id}", max(left_s, 0) + _AWAY_S, {})
        handle = secrets.token_urlsafe(32)
        arrival = Arrival(found.proof, data["browser"], data["page"])
        await onetime.put(_PROOF, handle, _HANDLE_S, msgspec.to_builtins(arrival))
        return handle

    @staticmethod
    def _check_browser(data: dict[str, Any] | None, browser: str) -> dict[str, Any]:
        found = data or _gone()
        if not secrets.compare_digest(str(found["browser"]), browser):
            message = "this sign-in was begun in another browser"
            raise Forbidden(message)
        return found

    async def by_proof(self, proof: Proof) -> User:
        """The user of an identity, which is linked or made at its first sign-in. Raises Forbidden."""
        settings: SignInProvider = self.known(proof.provider).settings
        domain = proof.email.rpartition("@")[2]
        if settings.email_domains and (not proof.is_vouched or domain not in settings.email_domains):
            raise Forbidden(f"{settings.shown} may not sign {proof.email or 'somebody without an address'} in here")
        user = await self._of_identity(proof) or await self._linked(proof, settings)
        if not user.is_active:
            message = "this account is deactivated"
            raise Forbidden(message)
        now = clock.now()
        await UserIdentity.filter(id=_identity(proof)).update(roles=list(proof.roles), last_login_at=now)
        return user

    @staticmethod
    async def _of_identity(proof: Proof) -> User | None:
        row = await UserIdentity.get_or_none(id=_identity(proof))
        return await User.get_or_none(id=row.user_id) if row else None

    @staticmethod
    async def _linked(proof: Proof, settings: SignInProvider) -> User:
        if not proof.email:
            raise Forbidden(f"{settings.shown} gave no e-mail address of yours")
        if not proof.is_vouched:
            message = f"{settings.shown} does not say that {proof.email} is verified (see trust_email in its settings)"
            raise Forbidden(message)
        user = await User.get_or_none(email=proof.email)
        if user is None:
            if not settings.create_users:
                raise Forbidden(f"there is no account for {proof.email}")
            try:
                user = await actions.create_user(proof.email, display_name=proof.name)
            except Conflict:  # by another sign-in, just now
                user = await actions.user(proof.email)
        values: dict[str, Any] = {
            "user_id": user.id,
            "provider": proof.provider,
            "subject": proof.subject,
            "last_login_at": clock.now(),
        }
        try:
            await UserIdentity.create(id=_identity(proof), **values)
        except IntegrityError:  # of a user who is gone, or made by another sign-in just now
            await UserIdentity.filter(id=_identity(proof)).update(**values)
        return user


#: Of a server; `app` provides it, since it is made of the settings.
SIGN_IN = Port[SignIn]("identity.signin.providers.SIGN_IN")


def _trip(state: str, data: Mapping[str, Any]) -> Trip:
    return Trip(state, data["nonce"], data["verifier"], data["request"], data["base"])


def _identity(proof: Proof) -> str:
    return hashlib.sha256(f"{proof.provider}\0{proof.subject}".encode()).hexdigest()


def _gone() -> dict[str, Any]:
    message = "this sign-in is over, or took longer than five minutes: begin again"
    raise BadRequest(message)
