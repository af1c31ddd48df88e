"""OpenID Connect: signing in at a provider that is found by discovery (OpenID Connect Core 1.0, RFC 7636, RFC 9207).

The issuer is the operator's own setting, so it may be any address. All that
comes from there is judged by `rules`, after its signature was.
"""

import asyncio
import hmac
import time
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec
from joserfc import jwk, jws
from joserfc.errors import JoseError

from terrapod_server.config import settings as config
from terrapod_server.config.hosts import is_safe_url
from terrapod_server.identity import rules
from terrapod_server.identity.rules import Proof
from terrapod_server.identity.signin.provider import Assertion, Trip
from terrapod_shared.errors import BadGateway, BadRequest, Forbidden, NotFound

#: Signatures that only the provider can make; never `none`, never a shared secret. Each with its kind of key.
ALGORITHMS = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "EC", "ES384": "EC", "ES512": "EC", "EdDSA": "OKP", "Ed25519": "OKP",
}  # fmt: skip
JSON = "application/json"
_FRESH_S = 3600.0
_TIMEOUT_S = 10.0
_MOST_BYTES = 1 << 20
#: An unknown key makes us ask again, but a flood of forged tokens must not become a flood upon the provider.
_ASKS, _ASKS_S = 5, 60.0
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")


@dataclass
class Oidc:
    """One provider of the settings."""

    settings: config.Oidc
    _http: httpx.AsyncClient | None = None
    _metadata: dict[str, Any] = field(default_factory=dict)
    _metadata_until: float = 0.0
    _keys: list[jwk.Key] = field(default_factory=list)
    _keys_until: float = 0.0
    _asked: deque[float] = field(default_factory=deque)
    #: How far its clock is ahead of ours, by its last answer; None where that did not say.
    skew_s: float | None = None

    kind = "oidc"

    async def check(self) -> None:
        """Asks for what signing in needs: configuration, keys, our secret. Raises BadGateway, and OSError for the secret's file."""
        await self._fetch_keys()
        if not self._keys:
            raise self._unreachable("it has no key that signatures may be checked by")
        await asyncio.to_thread(self._secret)

    async def start(self, trip: Trip) -> str:
        """The URL at the provider to which the browser goes."""
        asked = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": trip.back,
            "scope": " ".join(self.settings.scopes),
            "state": trip.state,
            "nonce": trip.nonce,
            "code_challenge": rules.challenge_of(trip.verifier),
            "code_challenge_method": "S256",
        }
        url: str = (await self._discovered())["authorization_endpoint"]
        return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(asked)}"

    async def finish(self, answer: Mapping[str, str], trip: Trip) -> Proof:
        """Who came back. Raises Forbidden where the provider, or what it sent, does not let them in."""
        metadata = await self._discovered()
        said = answer.get("iss")
        if said is None and metadata.get("authorization_response_iss_parameter_supported") is True:
            raise self._refusal("its answer does not say who it is from")
        if said is not None and said != self.settings.issuer:
            raise self._refusal("its answer is from another provider")
        if "error" in answer:
            raise self._refusal(f"it answered {answer['error'][:80]!r}")
        tokens = await self._exchange(metadata, answer.get("code", ""), trip.verifier, trip.back)
        claims = await self._verified(str(tokens.get("id_token", "")))
        try:
            rules.check_id_token(
                claims,
                issuer=self.settings.issuer,
                client_id=self.settings.client_id,
                nonce=trip.nonce,
                now=time.time(),
            )
        except ValueError as error:
            raise self._refusal(f"its token cannot be used: {error}") from None
        if self.settings.userinfo:
            claims = {**await self._userinfo(metadata, str(tokens.get("access_token", "")), claims["sub"]), **claims}
        return self._proof(claims)

    async def finish_posted(self, form: Mapping[str, str], trip: Trip) -> Assertion:
        del form, trip
        raise BadRequest(f"{self.settings.shown} answers by a redirect")

    def metadata(self, base: str) -> bytes:
        del base
        raise NotFound

    def _proof(self, claims: Mapping[str, Any]) -> Proof:
        email, verified = rules.address_of(claims.get("email")), claims.get("email_verified")
        if verified is False or verified == "false":
            raise self._refusal("it says that your e-mail address is not verified")
        return Proof(
            provider=self.settings.name,
            subject=claims["sub"],
            email=email,
            is_vouched=bool(email) and (verified in (True, "true") or self.settings.trust_email),
            name=str(claims.get("name") or "")[:254],
            roles=rules.roles_of(claims, self.settings.roles_claim, self.settings.role_prefixes, self.settings.rules),
        )

    def _refusal(self, why: str) -> Forbidden:
        return Forbidden(f"{self.settings.shown} did not let you in: {why}")

    async def _exchange(self, metadata: Mapping[str, Any], code: str, verifier: str, back: str) -> dict[str, Any]:
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": back, "code_verifier": verifier}
        secret = await asyncio.to_thread(self._secret)
        methods = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        auth = None
        if secret and "client_secret_basic" in methods:
            quoted = [urlencode({"": text})[1:] for text in (self.settings.client_id, secret)]  # RFC 6749, 2.3.1
            auth = httpx.BasicAuth(*quoted)
        else:
            form |= {"client_id": self.settings.client_id} | ({"client_secret": secret} if secret else {})
        status, found = await self._ask("POST", metadata["token_endpoint"], data=form, auth=auth)
        if status != httpx.codes.OK:
            raise self._refusal(f"it took the code for {str(found.get('error', status))[:80]!r}")
        return found

    def _secret(self) -> str:
        file = self.settings.client_secret_file
        return Path(file).read_text(encoding="utf-8").strip() if file else self.settings.client_secret

    async def _verified(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature one of the provider's keys made."""
        try:
            header = jws.extract_compact(token.encode()).headers()
        except (JoseError, ValueError):
            raise self._refusal("it gave no ID token") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise self._refusal(f"its token is signed with {str(algorithm)[:20]!r}")
        for key in await self._candidates(ALGORITHMS[algorithm], kid):
            try:
                with warnings.catch_warnings(action="ignore"):  # EdDSA has a new name, and providers keep the old one
                    payload = jws.deserialize_compact(token, key, algorithms=[algorithm]).payload
                claims = msgspec.json.decode(payload)
            except (JoseError, ValueError):
                continue
            if isinstance(claims, dict):
                return claims
        raise self._refusal("its token was not signed by any of its keys")

    async def _candidates(self, kind: str, kid: Any) -> list[jwk.Key]:
        """Keys that may have signed it; the provider is asked again for one that it did not have before."""

        def fitting() -> list[jwk.Key]:
            return [key for key in self._keys if key.key_type == kind and kid in (None, key.kid)]

        if self._keys_until <= time.monotonic():
            await self._fetch_keys()
        if not fitting() and self._may_ask():
            await self._fetch_keys()
        return fitting()

    def _may_ask(self) -> bool:
        now = time.monotonic()
        while self._asked and self._asked[0] < now - _ASKS_S:
            self._asked.popleft()
        return len(self._asked) < _ASKS

    async def _fetch_keys(self) -> None:
        self._asked.append(time.monotonic())
        status, found = await self._ask("GET", (await self._discovered())["jwks_uri"])
        entries = found.get("keys")
        if status != httpx.codes.OK or not isinstance(entries, list):
            raise self._unreachable(f"its keys were answered with {status}")
        self._keys = [key for entry in entries if (key := _public_key(entry)) is not None]
        self._keys_until = time.monotonic() + _FRESH_S

    async def _userinfo(self, metadata: Mapping[str, Any], token: str, subject: str) -> dict[str, Any]:
        url = metadata.get("userinfo_endpoint")
        if not isinstance(url, str) or not self._may_be_asked(url):
            raise self._unreachable("it has no userinfo endpoint")
        status, found = await self._ask("GET", url, headers={"Authorization": f"Bearer {token}"})
        if status != httpx.codes.OK or not hmac.compare_digest(str(found.get("sub")).encode(), subject.encode()):
            raise self._refusal("what it says of you is of somebody else")
        return found

    async def _discovered(self) -> dict[str, Any]:
        if self._metadata_until > time.monotonic():
            return self._metadata
        status, found = await self._ask("GET", f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
        if status != httpx.codes.OK:
            raise self._unreachable(f"its configuration was answered with {status}")
        if found.get("issuer") != self.settings.issuer:
            raise self._unreachable(f"it calls itself {str(found.get('issuer'))[:120]!r}, not {self.settings.issuer!r}")
        for name in _ENDPOINTS:
            if not isinstance(found.get(name), str) or not self._may_be_asked(found[name]):
                raise self._unreachable(f"its {name} is not an https URL")
        self._metadata, self._metadata_until = found, time.monotonic() + _FRESH_S
        return found

    def _may_be_asked(self, url: str) -> bool:
        return is_safe_url(url) and (url.startswith("https://") or self.settings.issuer.startswith("http://"))

    async def _ask(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, **values: Any
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of an answer. Raises BadGateway where there is none."""
        if self._http is None:  # reading the trusted certificates takes tens of milliseconds
            self._http = await asyncio.to_thread(httpx.AsyncClient, timeout=_TIMEOUT_S, follow_redirects=False)
        raw, status = b"", 0
        try:
            async with (
                asyncio.timeout(2 * _TIMEOUT_S),
                self._http.stream(method, url, headers={"Accept": JSON, **(headers or {})}, **values) as answer,
            ):
                status = answer.status_code
                self.skew_s = _skew_s(answer.headers.get("date", ""))
                async for chunk in answer.aiter_bytes():
                    raw += chunk
                    if len(raw) > _MOST_BYTES:
                        raise self._unreachable("its answer is too large")
            found = msgspec.json.decode(raw)
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._unreachable(type(error).__name__) from error  # whose words are the operator's, not the user's
        except ValueError:
            raise self._unreachable(f"its answer ({status}) is not JSON") from None
        if not isinstance(found, dict):
            raise self._unreachable("its answer is not a JSON object")
        return status, found

    def _unreachable(self, why: str) -> BadGateway:
        return BadGateway(f"{self.settings.shown} cannot be used for signing in: {why}")

    async def close(self) -> None:
        if self._http:
            await self._http.aclose()


def _skew_s(date: str) -> float | None:
    """How far a `Date` header is ahead of our clock; it knows whole seconds."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None


def _public_key(entry: Any) -> jwk.Key | None:
    """A key that signatures may be checked by; None for others, and for kinds that are not known here."""
    if not isinstance(entry, dict) or entry.get("kty") not in set(ALGORITHMS.values()) or entry.get("use") == "enc":
        return None
    try:
        return jwk.import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
