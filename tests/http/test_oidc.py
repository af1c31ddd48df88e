"""Signing in at an OpenID Connect provider: a real one, and one that lies."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwk, jws

from kit.browser import Browser
from kit.oidc import CLIENT, Provider, lying_provider, real_provider
from kit.serving import Running, running, until
from terrapod_server.identity.model import ApiToken, OneTime, Session, User, UserIdentity
from terrapod_server.identity.rules import challenge_of
from terrapod_shared import clock

ANN = "ann@example.org"
VERIFIER = "v" * 50
START = "/api/v2/auth/authorize?provider=own"


def settings(issuer: str, **more: Any) -> dict[str, Any]:
    own = {"name": "own", "issuer": issuer, "client_id": CLIENT[0], "client_secret": CLIENT[1], "title": "Our own"}
    return {"oidc": [own | more]}


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with lying_provider() as started:
        yield started


@pytest.fixture
async def site(provider: Provider, database_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", database_url, auth=settings(provider.issuer)) as started:
        yield started


async def arrive(server: Running) -> httpx.Response:
    """Signs in with a browser of its own."""
    async with Browser(server.url) as browser:
        await browser.open(START)
        return await browser.open(browser.left_to)


async def test_a_real_provider_signs_in_and_groups_give_roles_by_prefix_only(database_url: str, tmp_path: Path) -> None:
    rules = [{"claim": "department", "value": "platform", "roles": ["audit"]}]
    async with (
        real_provider(tmp_path) as issuer,
        running(tmp_path / "data", database_url, auth=settings(issuer, rules=rules)) as server,
        Browser(server.url) as browser,
        httpx.AsyncClient(base_url=issuer) as at_provider,
    ):
        claims = {
            "email": "Ann@Example.org",
            "email_verified": True,
            "name": "Ann",
            "groups": ["terrapod:builders", "terrapod-readers", "admin", "Terrapod:admin"],
            "department": ["platform", "other"],
        }
        assert (await at_provider.put("/users/ann", json=claims)).status_code == 204
        page = await browser.open("/sign-in")
        assert "Continue with Our own" in page.text
        await browser.open(next(link for link in browser.read.links if "provider=own" in link))
        await browser.open(browser.left_to)
        page = await browser.submit(sub="ann")
        assert (page.status_code, page.url.path) == (200, "/account"), page.text
        user, session = await User.get(email=ANN), await Session.get()
        assert (user.display_name, session.provider) == ("Ann", "own")
        assert session.roles == ["audit", "builders", "readers"]
        row = await UserIdentity.get()
        assert (row.user_id, row.subject, row.roles) == (user.id, "ann", session.roles)
        async with server.as_(browser.client.cookies["terrapod"]) as ann:
            assert (await ann.get("/role-assignments")).status_code == 200, "the rule made an auditor"
            assert (await ann.post("/roles", json={})).status_code == 403, "a group called admin gives nothing"
        denied = await browser.open(START)
        await browser.open(browser.left_to)
        denied = await browser.submit("deny")
        assert denied.status_code == 400, "this provider's refusal names no state"


async def test_a_second_sign_in_is_the_same_user_whatever_the_address(site: Running, provider: Provider) -> None:
    assert (await arrive(site)).url.path == "/account"
    user = await User.get(email=ANN)
    provider.claims |= {"email": "married@example.org"}
    assert (await arrive(site)).url.path == "/account"
    assert {row.user_id for row in await Session.all()} == {user.id}
    provider.claims |= {"sub": "2", "email": ANN}
    assert (await arrive(site)).url.path == "/account"
    assert await UserIdentity.filter(user_id=user.id).count() == 2, "the provider vouches for the address"


async def test_who_signed_in_is_recorded(site: Running) -> None:
    await arrive(site)

    async def entry() -> Any:
        rows = [row["attributes"] for row in (await site.api.get("/admin/audit-log")).json()["data"]]
        return next((row for row in rows if row["path"] == "/api/v2/auth/callback"), None)

    found = await until(entry)
    user, session = await User.get(email=ANN), await Session.get()
    assert (found["actor-id"], found["token-id"], found["status-code"]) == (user.id, session.id, 303)
    assert (found["resource-type"], found["resource-id"]) == ("sessions", session.id)


async def test_first_sign_ins_at_once_make_one_user(site: Running, provider: Provider) -> None:
    provider.claims |= {"sub": "9", "email": "new@example.org"}
    pages = await asyncio.gather(*(arrive(site) for _ in range(6)))
    assert {page.url.path for page in pages} == {"/account"}
    assert await User.filter(email="new@example.org").count() == 1
    assert await UserIdentity.filter(subject="9").count() == 1


async def test_an_address_that_nobody_vouches_for_lets_nobody_in(
    provider: Provider, database_url: str, tmp_path: Path
) -> None:
    async with running(tmp_path / "data", database_url, auth=settings(provider.issuer)) as server:
        admin = await User.get(email="admin@localhost")
        for claims in (
            {"email": admin.email, "email_verified": None},
            {"email": admin.email, "email_verified": False},
            {"email": admin.email, "email_verified": "maybe"},
            {"email": None},
            {"email": "no address"},
            {"email": ["admin@localhost"]},
        ):
            provider.claims = {"sub": "1", "email_verified": True, **claims}
            assert (await arrive(server)).status_code == 403, claims
        assert await Session.all().count() == await UserIdentity.all().count() == 0
        assert await User.all().count() == 1
    more: dict[str, Any] = {"trust_email": True, "email_domains": ["example.org"], "create_users": False}
    async with running(tmp_path / "data", database_url, auth=settings(provider.issuer, **more)) as server:
        await User.create(id="user-1", email=ANN)
        for email, verified, status in (
            (ANN, None, 200),
            (ANN, False, 403),
            ("bea@example.org", True, 403),
            ("admin@localhost", True, 403),
            ("ann@example.org.evil.example", True, 403),
        ):
            provider.claims = {"sub": email, "email": email, "email_verified": verified}
            assert (await arrive(server)).status_code == status, email
        await User.filter(email=ANN).update(is_active=False)
        provider.claims = {"sub": ANN, "email": ANN, "email_verified": True}
        page = await arrive(server)
        assert (page.status_code, "deactivated" in page.text) == (403, True)


async def test_keys_rotate_and_a_flood_of_unknown_ones_asks_little(site: Running, provider: Provider) -> None:
    assert (await arrive(site)).status_code == 200
    provider.keys = [jwk.RSAKey.generate_key(2048, {"kid": "second"})]
    assert (await arrive(site)).status_code == 200
    assert provider.asked_for_keys == 2
    assert (await arrive(site)).status_code == 200
    assert provider.asked_for_keys == 2
    provider.header = {"kid": "made up"}
    for _ in range(8):
        assert (await arrive(site)).status_code == 403
    assert provider.asked_for_keys <= 5
    provider.header = {}
    assert (await arrive(site)).status_code == 200


async def test_other_kinds_of_keys_are_good_too(site: Running, provider: Provider) -> None:
    provider.keys = [
        jwk.ECKey.generate_key("P-256", {"kid": "ec"}),
        jwk.OKPKey.generate_key("Ed25519", {"kid": "ed"}),
        jwk.RSAKey.generate_key(2048, {"kid": "rsa"}),
    ]
    ec, ed, rsa = provider.keys
    for key, algorithm in ((ec, "ES256"), (ed, "EdDSA"), (rsa, "PS256"), (rsa, "RS512")):
        provider.keys = [*[each for each in (ec, ed, rsa) if each is not key], key]
        provider.algorithm = algorithm
        assert (await arrive(site)).status_code == 200, algorithm
    provider.header = {"kid": None}
    assert (await arrive(site)).status_code == 200, "a token need not name its key"


async def test_a_token_that_is_not_for_this_sign_in_is_refused(site: Running, provider: Provider) -> None:
    now = int(time.time())
    good = dict(provider.claims)
    for name, claims in (
        ("iss", {"iss": "https://evil.example"}),
        ("iss", {"iss": None}),
        ("aud", {"aud": "another"}),
        ("aud", {"aud": ["another", "third"]}),
        ("aud", {"aud": None}),
        ("azp", {"aud": [CLIENT[0], "another"]}),
        ("azp", {"aud": [CLIENT[0], "another"], "azp": "another"}),
        ("azp", {"azp": "another"}),
        ("exp", {"exp": now - 31}),
        ("exp", {"exp": None}),
        ("exp", {"exp": "tomorrow"}),
        ("exp", {"exp": True}),
        ("iat", {"iat": now + 60}),
        ("iat", {"iat": None}),
        ("nbf", {"nbf": now + 60}),
        ("nonce", {"nonce": None}),
        ("nonce", {"nonce": "of another sign-in"}),
        ("sub", {"sub": None}),
        ("sub", {"sub": ""}),
        ("sub", {"sub": "x" * 256}),
        ("sub", {"sub": 1}),
    ):
        provider.claims = good | claims
        page = await arrive(site)
        assert page.status_code == 403, claims
        assert name in page.text, claims
    assert await Session.all().count() == 0
    for claims in (
        {"exp": now - 20},
        {"iat": now + 20},
        {"nbf": now + 20},
        {"aud": [CLIENT[0], "another"], "azp": CLIENT[0]},
        {"aud": [CLIENT[0]]},
    ):
        provider.claims = good | claims
        assert (await arrive(site)).status_code == 200, claims


def _b64(data: Any) -> str:
    return (
        base64.urlsafe_b64encode(data if isinstance(data, bytes) else json.dumps(data).encode()).rstrip(b"=").decode()
    )


async def test_a_token_that_the_provider_did_not_sign_is_refused(site: Running, provider: Provider) -> None:
    assert (await arrive(site)).status_code == 200
    await Session.all().delete()
    key = provider.keys[0]
    assert isinstance(key, jwk.RSAKey)
    public = key.as_pem(private=False)
    stranger = jwk.RSAKey.generate_key(2048)
    true_sign = provider.sign

    def with_secret(header: dict[str, Any], claims: dict[str, Any]) -> str:
        signed = f"{_b64(header | {'alg': 'HS256'})}.{_b64(claims)}"
        return f"{signed}.{_b64(hmac.digest(public, signed.encode(), 'sha256'))}"

    def tampered(header: dict[str, Any], claims: dict[str, Any]) -> str:
        head, _, signature = true_sign(header, claims).split(".")
        return f"{head}.{_b64(claims | {'email': 'admin@localhost'})}.{signature}"

    forgeries = {
        "none": lambda header, claims: f"{_b64(header | {'alg': 'none'})}.{_b64(claims)}.",
        "None": lambda header, claims: f"{_b64(header | {'alg': 'None'})}.{_b64(claims)}.",
        "the public key as a shared secret": with_secret,
        "a stranger's key": lambda header, claims: jws.serialize_compact(
            header, json.dumps(claims), stranger, ["RS256"]
        ),
        "a key in the header": lambda header, claims: jws.serialize_compact(
            header | {"jwk": stranger.as_dict(private=False)}, json.dumps(claims), stranger, ["RS256"]
        ),
        "other claims": tampered,
        "no signature": lambda header, claims: true_sign(header, claims).rpartition(".")[0] + ".",
        "another kind of algorithm": lambda header, claims: ".".join(
            [_b64(header | {"alg": "ES256"}), *true_sign(header, claims).split(".")[1:]]
        ),
        "no token": lambda *_: "",
        "no JWT": lambda *_: "a.b.c",
        "no claims": lambda header, _: jws.serialize_compact(header, b"[]", key, ["RS256"]),
    }
    for name, forge in forgeries.items():
        provider.sign = forge
        page = await arrive(site)
        assert page.status_code == 403, (name, page.text)
    assert await Session.all().count() == 0


async def test_an_answer_is_good_for_its_browser_once_and_soon(site: Running) -> None:
    async with Browser(site.url) as ann, Browser(site.url) as other:
        await ann.open(START)
        async with httpx.AsyncClient() as direct:
            back = (await direct.get(ann.left_to)).headers["location"]
        assert (await other.open(back)).status_code == 403, "it has no cookie at all"
        await ann.open(START)
        async with httpx.AsyncClient() as direct:
            back = (await direct.get(ann.left_to)).headers["location"]
        await other.open("/sign-in")
        assert (await other.open(back)).status_code == 403
        assert await Session.all().count() == 0
        assert (await ann.open(back)).status_code == 400, "spent by the wrong browser"
        await ann.open(START)
        async with httpx.AsyncClient() as direct:
            back = (await direct.get(ann.left_to)).headers["location"]
        assert (await ann.open(back)).url.path == "/account"
        assert (await ann.open(back)).status_code == 400, "good once"
        await ann.open(START)
        await OneTime.all().update(expires_at=clock.now())
        assert (await ann.open(ann.left_to)).status_code == 400
        for query in ("", "?state=x", "?state=x&state=y", "?code=x", "?proof=x"):
            assert (await ann.open(f"/api/v2/auth/callback{query}")).status_code == 400


async def test_the_answer_must_be_of_the_provider_that_was_asked(site: Running, provider: Provider) -> None:
    provider.answer = {"iss": "https://evil.example"}
    assert (await arrive(site)).status_code == 403
    provider.answer = {"iss": provider.issuer}
    assert (await arrive(site)).status_code == 200
    provider.answer = {"error": "access_denied<script>"}
    page = await arrive(site)
    assert (page.status_code, "access_denied&lt;script&gt;" in page.text) == (403, True)


async def test_discovery_is_not_believed_blindly(provider: Provider, database_url: str, tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://evil.example/token"},
        {"jwks_uri": None},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": ["x"]},
    ]
    async with running(tmp_path / "data", database_url, auth=settings(provider.issuer)) as server:
        for metadata in wrong:
            provider.metadata = metadata
            async with Browser(server.url) as browser:
                page = await browser.open(START)
                assert (page.status_code, browser.left_to) == (502, ""), metadata
        provider.metadata = {"authorization_response_iss_parameter_supported": True}
        assert (await arrive(server)).status_code == 403, "it says that it sends iss, and did not"
    async with (
        running(tmp_path / "data", database_url, auth=settings("http://127.0.0.1:9")) as server,
        Browser(server.url) as browser,
    ):
        assert (await browser.open(START)).status_code == 502


async def test_userinfo_fills_in_and_never_replaces(provider: Provider, database_url: str, tmp_path: Path) -> None:
    provider.claims = {"sub": "1", "groups": ["terrapod:signed"]}
    provider.userinfo = {"sub": "1", "email": ANN, "email_verified": True, "groups": ["terrapod:unsigned"]}
    more = {"userinfo": True}
    async with running(tmp_path / "data", database_url, auth=settings(provider.issuer, **more)) as server:
        assert (await arrive(server)).status_code == 200
        assert (await Session.get()).roles == ["signed"]
        provider.userinfo["sub"] = "2"
        assert (await arrive(server)).status_code == 403


async def test_terraform_login_by_way_of_a_provider(site: Running) -> None:
    async with Browser(site.url) as browser:
        query = (
            f"client_id=terraform-cli&code_challenge={challenge_of(VERIFIER)}&code_challenge_method=S256&response_type=code"
            "&redirect_uri=http%3A%2F%2Flocalhost%3A10001%2Flogin&state=s"
        )
        await browser.open(f"/oauth/authorize?{query}")
        await browser.open(next(link for link in browser.read.links if "provider=own" in link))
        page = await browser.open(browser.left_to)
        assert page.url.path == "/oauth/authorize"
        assert "terraform login" in page.text
        await browser.submit("allow")
        back = parse_qs(urlsplit(browser.left_to).query)
        assert back["state"] == ["s"]
        form = {"code": back["code"][0], "code_verifier": VERIFIER, "grant_type": "authorization_code"}
        token = (await browser.client.post(f"{site.url}/oauth/token", data=form)).json()["access_token"]
    user, row = await User.get(email=ANN), await ApiToken.get(description__startswith="terraform login")
    assert (row.user_id, row.provider) == (user.id, "own")
    async with site.as_(token) as ann:
        assert (await ann.get("/account/details")).status_code == 200
        assert (await ann.get("/role-assignments")).status_code == 403
        body = {"data": {"attributes": {"provider-name": "own", "email": ANN, "roles": ["audit"]}}}
        assert (await site.api.put("/role-assignments", json=body)).status_code == 200
        assert (await ann.get("/role-assignments")).status_code == 200, "assigned at the provider, at once"
