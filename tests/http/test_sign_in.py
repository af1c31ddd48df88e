"""Signing in with a password of this server, and what `terraform login` makes of it."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest

from kit.browser import Browser
from kit.serving import Running, running, until
from terrapod_server.commands import accounts
from terrapod_server.identity import onetime, sessions
from terrapod_server.identity.model import OneTime, Session, User
from terrapod_server.identity.rules import challenge_of
from terrapod_server.identity.signin.providers import SIGN_IN, Attempt
from terrapod_shared import clock

PASSWORD = "a heron stands in shallow water"
VERIFIER = "9d1f6ef2-6a0b-4bd5-9d2f-0f8f5f2f7a11.123456789"
ANN = "ann@example.org"


async def account(server: Running, email: str = ANN, *, admin: bool = False) -> None:
    await accounts.make_user(server.services, email, PASSWORD, is_admin=admin)


@pytest.fixture
async def browser(server: Running) -> AsyncIterator[Browser]:
    async with Browser(server.url) as opened:
        yield opened


def ask(**changed: str | None) -> str:
    """The address that terraform opens."""
    asked: dict[str, str | None] = {
        "client_id": "terraform-cli",
        "code_challenge": challenge_of(VERIFIER),
        "code_challenge_method": "S256",
        "redirect_uri": "http://localhost:10005/login",
        "response_type": "code",
        "state": "some-state",
        **changed,
    }
    return f"/oauth/authorize?{urlencode({name: value for name, value in asked.items() if value is not None})}"


async def code(browser: Browser, **changed: str) -> str:
    """Signs in where needed, and allows it."""
    await browser.open(ask(**changed))
    if "email" in browser.read.forms[0].fields:
        await browser.submit(email=ANN, password=PASSWORD)
    await browser.submit("allow")
    assert browser.left_to.startswith("http://localhost:10005/login?"), browser.page.text
    query = parse_qs(urlsplit(browser.left_to).query)
    assert query["state"] == ["some-state"]
    return query["code"][0]


async def exchange(server: Running, code: str, path: str = "/oauth/token", **changed: str) -> httpx.Response:
    form = {
        "client_id": "terraform-cli",
        "code": code,
        "code_verifier": VERIFIER,
        "grant_type": "authorization_code",
        "redirect_uri": "http://localhost:10005/login",
        **changed,
    }
    async with httpx.AsyncClient(base_url=server.url, headers={"User-Agent": "Terraform/1.15.5"}) as client:
        return await client.post(path, data=form)


async def test_terraform_login_gives_a_token_of_the_person(server: Running, browser: Browser) -> None:
    await account(server)
    page = await browser.open(ask())
    assert page.url.path == "/sign-in"
    page = await browser.submit(email=ANN, password=PASSWORD)
    assert "terraform login" in page.text
    assert ANN in page.text
    answer = await exchange(server, await code(browser))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    token = answer.json()["access_token"]
    assert token.startswith("tpod_")
    async with server.as_(token) as ann:
        assert (await ann.get("/account/details")).json()["data"]["attributes"]["email"] == ANN
        tokens = (await ann.get(f"/users/{ANN}/authentication-tokens")).json()["data"]
    assert [each["attributes"]["description"] for each in tokens] == ["terraform login (Terraform/1.15.5)"]


async def test_a_code_is_good_once_however_many_show_it(server: Running, browser: Browser) -> None:
    await account(server)
    shown = await code(browser)
    answers = await asyncio.gather(*(exchange(server, shown) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200, *[400] * 7]
    refused = next(answer for answer in answers if answer.status_code == 400)
    assert refused.json()["error"] == "invalid_grant"


async def test_a_code_needs_all_that_it_was_asked_with(server: Running, browser: Browser) -> None:
    await account(server)
    server.services.ask(SIGN_IN).brake = None  # it would end so many tries
    for error, changed in (
        ("invalid_grant", {"code_verifier": "x" * 43}),
        ("invalid_grant", {"redirect_uri": "http://localhost:10006/login"}),
        ("invalid_grant", {"client_id": "terrapod-cli"}),
        ("invalid_grant", {"client_id": "another"}),
        ("invalid_request", {"code_verifier": ""}),
        ("unsupported_grant_type", {"grant_type": "password"}),
        ("unsupported_grant_type", {"grant_type": "client_credentials"}),
    ):
        shown = await code(browser)
        answer = await exchange(server, shown, **changed)
        assert (answer.status_code, answer.json()["error"]) == (400, error)
        assert answer.json()["error_description"]
        if error == "invalid_grant":
            assert (await exchange(server, shown)).status_code == 400, "a wrong guess spends the code"
    assert (await exchange(server, await code(browser), "/api/v2/auth/token")).status_code == 400, "it gives sessions"


async def test_a_code_ends_after_a_minute_and_with_its_session(server: Running, browser: Browser) -> None:
    await account(server)
    shown = await code(browser)
    row = await OneTime.get()
    assert 50 < (row.expires_at - clock.now()).total_seconds() <= 60
    await OneTime.all().update(expires_at=clock.now())
    assert (await exchange(server, shown)).json()["error"] == "invalid_grant"
    shown = await code(browser)
    await sessions.end_all((await User.get(email=ANN)).id)
    assert (await exchange(server, shown)).json()["error"] == "invalid_grant"


async def test_what_is_not_asked_as_terraform_asks_is_refused_on_a_page(server: Running, browser: Browser) -> None:
    wrong: list[dict[str, str | None]] = [
        {"redirect_uri": "https://evil.example/login"},
        {"redirect_uri": "http://localhost:10005.evil.example/login"},
        {"redirect_uri": "http://localhost:10005@evil.example/login"},
        {"redirect_uri": "http://localhost:9999/login"},
        {"redirect_uri": "http://localhost:10011/login"},
        {"redirect_uri": "http://localhost:10005/other"},
        {"redirect_uri": "http://localhost:10005/login?x=1"},
        {"redirect_uri": "http://localhost:10005/login#x"},
        {"redirect_uri": "http://user@localhost:10005/login"},
        {"redirect_uri": "https://localhost:10005/login"},
        {"redirect_uri": "http://[::1]:10005/login"},
        {"redirect_uri": "http://localhost:010005/login"},
        {"redirect_uri": "javascript:alert(1)"},
        {"redirect_uri": None},
        {"code_challenge": None},
        {"code_challenge": "short"},
        {"code_challenge_method": "plain"},
        {"code_challenge_method": None},
        {"response_type": "token"},
        {"client_id": "another"},
        {"state": None},
    ]
    await account(server)
    assert (await browser.open(ask(**wrong[0]))).url.path == "/sign-in"
    assert (await browser.submit(email=ANN, password=PASSWORD)).status_code == 400
    for changed in wrong:
        page = await browser.open(ask(**changed))
        assert page.status_code == 400, changed
        assert not browser.left_to
        assert page.headers["content-type"].startswith("text/html")
    await browser.open(ask())
    for changed in wrong:
        form = browser.read.forms[0].fields
        answer = await browser.client.post(server.url + ask(**changed), data={**form, "answer": "allow"})
        assert answer.status_code == 400, changed


async def test_both_spellings_of_loopback_and_no_parameter_twice(server: Running, browser: Browser) -> None:
    await account(server)
    page = await browser.sign_in(ANN, PASSWORD, ask(redirect_uri="http://127.0.0.1:10000/login"))
    assert (page.status_code, page.url.path) == (200, "/oauth/authorize")
    assert (await browser.open(ask() + "&redirect_uri=http://localhost:10001/login")).status_code == 400


async def test_nothing_is_made_without_consent(server: Running, browser: Browser) -> None:
    await account(server)
    await browser.sign_in(ANN, PASSWORD, ask())
    action = browser.read.forms[0].action
    fields = browser.read.forms[0].fields
    for csrf in ("", "x", fields["csrf"][:-2]):
        answer = await browser.client.post(server.url + action, data={"csrf": csrf, "answer": "allow"})
        assert answer.status_code == 403, "a form of another site has not the browser's proof"
    async with Browser(server.url) as other:
        await other.open("/sign-in")
        theirs = other.read.forms[0].fields["csrf"]
    answer = await browser.client.post(server.url + action, data={"csrf": theirs, "answer": "allow"})
    assert answer.status_code == 403, "the proof of another browser is none"
    answer = await browser.client.post(
        server.url + action, data={**fields, "answer": "allow"}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status_code == 403
    page = await browser.submit("deny")
    assert page.status_code == 200
    assert "Ctrl-C" in page.text
    assert not browser.left_to
    assert await OneTime.all().count() == 0


async def test_another_account_can_be_chosen(server: Running, browser: Browser) -> None:
    await account(server)
    await account(server, "bea@example.org")
    await browser.sign_in("bea@example.org", PASSWORD, ask())
    page = await browser.submit("other")
    assert page.url.path == "/sign-in"
    assert await Session.all().count() == 0
    await browser.submit(email=ANN, password=PASSWORD)
    assert ANN in browser.page.text


async def test_a_wrong_address_and_a_wrong_password_look_the_same(server: Running, browser: Browser) -> None:
    await account(server)
    await account(server, "off@example.org")
    await User.filter(email="off@example.org").update(is_active=False)
    seen = []
    for email, password in (
        (ANN, "wrong and long enough"),
        ("nobody@example.org", PASSWORD),
        ("off@example.org", PASSWORD),
        ("admin@localhost", "no password is set there"),
        ("no address", PASSWORD),
        ("", ""),
        (ANN, "x" * 5000),
    ):
        page = await browser.sign_in(email, password)
        assert page.status_code == 401
        assert "terrapod" not in browser.client.cookies
        seen.append(re.sub(r' value="[^"]*"', "", page.text).replace(" autofocus", ""))
    assert len(set(seen)) == 1


async def test_an_unknown_address_takes_as_long_as_a_wrong_password(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path / "data", database_url, auth={"argon2_kib": 32768, "argon2_passes": 3}) as server:
        await account(server)
        service = server.services.ask(SIGN_IN)
        kept = (await User.get(email=ANN)).password_hash
        taken: dict[str, list[float]] = {"": [], kept: []}
        for _ in range(5):
            for each, times in taken.items():
                begun = time.process_time()
                assert not await service.passwords.verify(each, "a wrong guess")
                times.append(time.process_time() - begun)
    nobody, somebody = (sorted(times)[2] for times in taken.values())
    assert 0.5 < nobody / somebody < 2


async def test_a_session_slides_and_ends(server: Running, browser: Browser) -> None:
    await account(server)
    await browser.sign_in(ANN, PASSWORD)
    row = await Session.get()
    assert row.expires_at - row.created_at == timedelta(hours=12)
    token = browser.client.cookies["terrapod"]
    await sessions.find(token)
    assert (await Session.get()).last_used_at == row.last_used_at, "use is noted every five minutes only"
    now = clock.now()
    await Session.all().update(last_used_at=now - timedelta(minutes=6), expires_at=now + timedelta(minutes=1))
    await sessions.find(token)
    assert (await Session.get()).expires_at > now + timedelta(hours=11)
    await Session.all().update(created_at=now - timedelta(days=6, hours=23), last_used_at=now - timedelta(minutes=6))
    await sessions.find(token)
    assert (await Session.get()).expires_at < now + timedelta(hours=1, minutes=1), "seven days are the end"
    await Session.all().update(expires_at=now)
    page = await browser.open("/account")
    assert page.url.path == "/sign-in"


async def session_of(server: Running, browser: Browser) -> str:
    """A session for a script, by the code of auth/authorize."""
    query = {
        "redirect_uri": "http://localhost:10005/login",
        "code_challenge": challenge_of(VERIFIER),
        "state": "some-state",
    }
    await browser.open(f"/api/v2/auth/authorize?{urlencode(query)}")
    if "email" in browser.read.forms[0].fields:
        await browser.submit(email=ANN, password=PASSWORD)
    assert "terrapod login" in browser.page.text
    await browser.submit("allow")
    shown = parse_qs(urlsplit(browser.left_to).query)["code"][0]
    async with httpx.AsyncClient(base_url=server.url, headers={"User-Agent": "script/1"}) as client:
        answer = await client.post("/api/v2/auth/token", data={"code": shown, "code_verifier": VERIFIER})
    assert answer.status_code == 200, answer.text
    assert answer.json()["email"] == ANN
    text: str = answer.json()["session_token"]
    assert text.startswith("tpodses_")
    return text


async def test_a_session_of_a_session_ends_with_the_seven_days_of_the_first(server: Running, browser: Browser) -> None:
    await account(server)
    await browser.sign_in(ANN, PASSWORD)
    signed_in = clock.now() - timedelta(days=6, hours=23)
    await Session.all().update(created_at=signed_in)
    text = await session_of(server, browser)
    end = signed_in + sessions.LONGEST
    made = await Session.get(hash=sessions.fingerprint(text))
    assert made.expires_at == end
    await Session.filter(id=made.id).update(last_used_at=clock.now() - timedelta(minutes=6))
    await sessions.find(text)
    assert (await Session.get(id=made.id)).expires_at == end, "and use does not prolong it"


async def test_sessions_are_listed_and_ended(server: Running, browser: Browser) -> None:
    await account(server)
    text = await session_of(server, browser)
    async with server.as_(text) as ann:
        listed = (await ann.get("/auth/sessions")).json()
        assert [(each["user_agent"], each["is_current"], each["address"]) for each in listed] == [
            ("script/1", True, "127.0.0.1"),
            ("Test browser", False, "127.0.0.1"),
        ]
        assert listed[0]["token_hint"] == text[-8:]
        assert text not in (await ann.get("/auth/sessions")).text
        other = listed[1]["id"]
        assert (await server.api.delete(f"/auth/sessions/{other}")).status_code == 404, "not one's own"
        assert (await ann.delete(f"/auth/sessions/{other}")).status_code == 204
        assert (await browser.open("/account")).url.path == "/sign-in"
        assert (await ann.get("/auth/sessions/user/admin@localhost")).status_code == 403
        assert (await ann.post("/auth/logout")).status_code == 204
        assert (await ann.get("/account/details")).status_code == 401, "at once"
    assert (await server.api.post("/auth/logout")).status_code == 409, "an API token is no session"


async def test_an_admin_ends_a_users_sessions(server: Running, browser: Browser) -> None:
    await account(server)
    text = await session_of(server, browser)
    listed = (await server.api.get(f"/auth/sessions/user/{ANN}")).json()
    assert len(listed) == 2
    async with server.as_(text) as ann:
        assert (await ann.get("/account/details")).status_code == 200
        assert (await ann.delete(f"/auth/sessions/user/{ANN}")).status_code == 403
        assert (await server.api.delete(f"/auth/sessions/user/{ANN}")).status_code == 204
        assert (await ann.get("/account/details")).status_code == 401
    assert (await browser.open("/account")).url.path == "/sign-in"


def active(is_active: bool) -> dict[str, Any]:
    return {"data": {"type": "users", "attributes": {"is-active": is_active}}}


@pytest.mark.parametrize("how", ["deactivated", "deleted"])
async def test_who_is_out_is_out_at_once_with_everything(server: Running, browser: Browser, how: str) -> None:
    await account(server)
    text = await session_of(server, browser)
    token = (await exchange(server, await code(browser))).json()["access_token"]
    pending = await code(browser)
    async with server.as_(text) as session, server.as_(token) as script:
        assert {(await each.get("/account/details")).status_code for each in (session, script)} == {200}
        if how == "deleted":
            assert (await server.api.delete(f"/users/{ANN}")).status_code == 204
        else:
            assert (await server.api.patch(f"/users/{ANN}", json=active(False))).status_code == 200
        assert {(await each.get("/account/details")).status_code for each in (session, script)} == {401}
        assert (await browser.open("/account")).url.path == "/sign-in"
        assert (await exchange(server, pending)).status_code == 400
        assert (await browser.sign_in(ANN, PASSWORD)).status_code == 401
        if how == "deactivated":
            assert (await server.api.patch(f"/users/{ANN}", json=active(True))).status_code == 200
            assert {(await each.get("/account/details")).status_code for each in (session, script)} == {401}


async def test_the_password_is_changed_on_the_page(server: Running, browser: Browser) -> None:
    await account(server)
    text = await session_of(server, browser)
    await browser.open("/account")
    new = "seven brass kettles on a ledge"
    for current, first, again, said in (
        ("wrong", new, new, "current password is wrong"),
        (PASSWORD, new, new + "x", "not typed the same twice"),
        (PASSWORD, "short", "short", "12 to 256"),
        (PASSWORD, "password1234", "password1234", "easy to guess"),
        (PASSWORD, "ann@example.org", "ann@example.org", "easy to guess"),
    ):
        page = await browser.submit(current=current, password=first, again=again)
        assert page.status_code == 422
        assert said in page.text
        assert 'role="alert"' in page.text
    page = await browser.submit(current=PASSWORD, password=new, again=new)
    assert page.status_code == 200
    assert "was changed" in page.text
    async with server.as_(text) as ann:
        assert (await ann.get("/account/details")).status_code == 401, "other sessions are over"
    async with Browser(server.url) as another:
        assert (await another.sign_in(ANN, PASSWORD)).status_code == 401
        assert (await another.sign_in(ANN, new)).url.path == "/account"


async def test_the_password_is_changed_by_the_api(server: Running, browser: Browser) -> None:
    await account(server)
    text = await session_of(server, browser)
    new = "seven brass kettles on a ledge"

    async def change(**attributes: str) -> httpx.Response:
        body = {"data": {"type": "users", "attributes": attributes}}
        async with server.as_(text) as ann:
            return await ann.patch("/account/password", json=body)

    assert (await change(current_password="wrong", password=new)).status_code == 422
    weak = await change(current_password=PASSWORD, password="terraform-terraform")
    assert (weak.status_code, weak.json()["errors"][0]["source"]["pointer"]) == (422, "/data/attributes/password")
    assert (await change(password=new)).status_code == 422
    assert (await change(current_password=PASSWORD, password=new)).status_code == 204
    async with server.as_(text) as ann:
        assert (await ann.get("/account/details")).status_code == 200, "this session stays"
    assert (await browser.open("/account")).url.path == "/sign-in"
    user = (await server.api.get(f"/users/{ANN}")).json()["data"]["attributes"]
    assert user["has-password"] is True
    assert user["last-login-at"]
    assert "password" not in user


async def test_an_admin_gives_a_password(server: Running, browser: Browser) -> None:
    weak = await server.post("/organizations/default/users", {"email": ANN, "password": "123456789012"}, "users")
    assert weak.status_code == 422
    assert not await User.exists(email=ANN)
    made = await server.post("/organizations/default/users", {"email": ANN, "password": PASSWORD}, "users")
    assert made.status_code == 201, made.text
    assert PASSWORD not in made.text
    assert "argon2" not in made.text
    assert (await browser.sign_in(ANN, PASSWORD)).url.path == "/account"
    body = {"data": {"attributes": {"password": "seven brass kettles on a ledge"}}}
    assert (await server.api.patch(f"/users/{ANN}", json=body)).status_code == 200
    assert (await browser.open("/account")).url.path == "/sign-in"
    assert (await browser.sign_in(ANN, "seven brass kettles on a ledge")).url.path == "/account"


async def test_a_hash_follows_the_settings(database_url: str, tmp_path: Any) -> None:
    cost = {"argon2_kib": 32768, "argon2_passes": 3}
    async with running(tmp_path / "data", database_url, auth=cost) as server:
        await account(server)
        before = (await User.get(email=ANN)).password_hash
        assert before.startswith("$argon2id$v=19$m=32768,t=3,p=1$")
    async with (
        running(tmp_path / "data", database_url, auth={**cost, "argon2_passes": 2}) as server,
        Browser(server.url) as browser,
        Browser(server.url) as again,
    ):
        assert (await browser.sign_in(ANN, PASSWORD)).url.path == "/account"
        assert (await User.get(email=ANN)).password_hash.startswith("$argon2id$v=19$m=32768,t=2,p=1$")
        assert (await again.sign_in(ANN, PASSWORD)).url.path == "/account"


async def test_the_pages_are_for_everybody_and_for_nobody_elses_frame(server: Running, browser: Browser) -> None:
    await account(server)
    for path in ("/sign-in", ask(), "/account"):
        page = await browser.open(path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
        read = browser.read
        assert {"main", "h1", "header", "title"} <= set(read.tags)
        assert "script" not in read.tags
        assert not any(text in page.text for text in ('src="', "@import", "url("))
        shown = {name for form in read.forms for name, kind in form.types.items() if kind != "hidden"}
        assert shown <= read.labels, "each field has its label"
        assert read.described <= read.ids
        if path == "/sign-in":
            await browser.submit(email=ANN, password="wrong password")
            assert browser.page.text.count('aria-invalid="true"') == 2
            assert "problem" in browser.read.described & browser.read.ids
            await browser.submit(email=ANN, password=PASSWORD)
        if "oauth" in path:
            assert "form-action 'self' http://localhost:10005;" in policy


async def test_nothing_of_a_request_gets_into_a_page_as_html(browser: Browser) -> None:
    evil = '"><script>alert(1)</script>'
    await browser.open(f"/sign-in?{urlencode({'next': '/oauth/authorize?' + evil})}")
    assert "<script" not in browser.page.text
    page = await browser.submit(email=evil, password="x")
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    page = await browser.open(f"/api/v2/auth/authorize?{urlencode({'provider': evil})}")
    assert (page.status_code, "<script" in page.text) == (404, False)


async def test_a_sign_in_never_leads_elsewhere(server: Running, browser: Browser) -> None:
    await account(server)
    for target in (
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "/account/../..//evil.example",
        "/sign-out",
        "/%0d%0aX:y",
        "/oauth/authorize@evil.example",
    ):
        for _ in ("by its form", "by being signed in already"):
            page = await browser.open(f"/sign-in?{urlencode({'next': target})}")
            if page.url.path == "/sign-in":
                page = await browser.submit(email=ANN, password=PASSWORD)
            assert (page.url.path, browser.left_to) == ("/account", ""), target
        await browser.submit(action="/sign-out")


async def test_login_csrf_and_sign_out_csrf_are_refused(server: Running, browser: Browser) -> None:
    await account(server)
    async with httpx.AsyncClient(base_url=server.url) as attacker:
        answer = await attacker.post("/sign-in", data={"email": ANN, "password": PASSWORD, "csrf": "x"})
        assert answer.status_code == 403
        assert "terrapod" not in answer.cookies
    await browser.sign_in(ANN, PASSWORD)
    answer = await browser.client.post(server.url + "/sign-out", data={"csrf": ""})
    assert answer.status_code == 403
    page = await browser.submit(action="/sign-out")
    assert "Signed out" in page.text
    assert (await browser.open("/account")).url.path == "/sign-in"
    assert await Session.all().count() == 0


async def test_a_sign_in_is_a_new_session(server: Running, browser: Browser) -> None:
    await account(server)
    browser.client.cookies.set("terrapod", "tpodses_" + "x" * 43, domain="127.0.0.1")
    await browser.sign_in(ANN, PASSWORD)
    assert "x" * 43 not in str(browser.client.cookies)
    cookies = [
        header
        for response in [*browser.page.history, browser.page]
        for header in response.headers.get_list("set-cookie")
    ]
    assert all("HttpOnly" in each and "SameSite=lax" in each for each in cookies)
    row = await Session.get()
    kept = {cookie.value for cookie in browser.client.cookies.jar}
    assert row.hash not in kept
    assert any(value and sessions.fingerprint(value) == row.hash for value in kept)


async def test_behind_https_cookies_are_locked_to_the_host(database_url: str, tmp_path: Any) -> None:
    settings = {"public_url": "https://terrapod.example"}
    async with (
        running(tmp_path / "data", database_url, **settings) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        header = (await client.get("/sign-in")).headers["set-cookie"]
    assert header.startswith("__Host-terrapod-browser=")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax"} <= {part.strip() for part in header.split(";")}
    assert "Domain" not in header


async def test_a_device_is_known_to_its_owner_only(server: Running, browser: Browser) -> None:
    await account(server)
    await account(server, "bea@example.org")
    await browser.sign_in(ANN, PASSWORD)
    device = browser.client.cookies["terrapod-device"]
    signer = server.services.signer
    user_id, _, name = signer.check("device", device).split(".")
    assert user_id == (await User.get(email=ANN)).id
    assert name
    tried: list[tuple[str, ...]] = []
    right: list[str] = []

    class Counting:
        async def check(self, *told: str) -> tuple[str, ...]:
            tried.append(told)
            return told

        async def succeeded(self, attempt: tuple[str, ...], device: str) -> None:
            assert attempt[3] == device
            right.append(device)

    server.services.ask(SIGN_IN).brake = Counting()  # type: ignore[assignment]
    await browser.open("/account")
    await browser.submit(action="/sign-out")
    await browser.sign_in(ANN, "wrong")
    await browser.sign_in("bea@example.org", "wrong")
    browser.client.cookies.delete("terrapod-device")
    await browser.sign_in(ANN, "wrong")
    assert [each[:3] for each in tried] == [
        ("sign-in", "127.0.0.1", ANN),
        ("sign-in", "127.0.0.1", "bea@example.org"),
        ("sign-in", "127.0.0.1", ANN),
    ]
    assert [each[3] == name for each in tried] == [True, False, False]
    assert right == []
    await browser.submit(email=ANN, password=PASSWORD)
    new = signer.check("device", browser.client.cookies["terrapod-device"]).split(".")[2]
    assert right == [new] != [name]
    await exchange(server, "no code")
    assert tried[-1][:2] == ("code", "127.0.0.1")


async def test_guessing_is_slowed_down_and_the_owner_still_gets_in(server: Running, browser: Browser) -> None:
    await account(server)
    await browser.sign_in(ANN, PASSWORD)
    await browser.submit(action="/sign-out")
    async with Browser(server.url) as guesser:
        await guesser.open("/sign-in")
        statuses = [(await guesser.submit(email=ANN, password=f"guess {number}")).status_code for number in range(30)]
        assert statuses[0] == 401
        assert set(statuses[-10:]) == {429}
        assert statuses.count(401) < 20
        assert int(guesser.page.headers["retry-after"]) > 0
        assert "too many tries" in guesser.page.text
        assert (await guesser.submit(email=ANN, password=PASSWORD)).status_code == 429, "the right one is not looked at"
    assert (await browser.sign_in(ANN, PASSWORD)).url.path == "/account", "the owner, in a browser that is known"


@pytest.mark.long
async def test_a_thousand_addresses_on_one_account_and_the_owner_still_gets_in(
    database_url: str, tmp_path: Any
) -> None:
    async with running(tmp_path / "data", database_url, trusted_proxies=["127.0.0.1"]) as server:
        await account(server)
        async with Browser(server.url) as owner, Browser(server.url) as guesser:
            await owner.sign_in(ANN, PASSWORD)
            await owner.submit(action="/sign-out")
            await guesser.open("/sign-in")
            tried = 0
            for number in range(1000):
                guesser.client.headers["X-Forwarded-For"] = f"10.{number >> 8}.{number & 255}.1"
                answer = await guesser.submit(email=ANN, password=f"guess {number}")
                assert answer.status_code in (401, 429)
                tried += answer.status_code == 401
            assert 0 < tried < 20
            assert (await owner.sign_in(ANN, PASSWORD)).url.path == "/account"


async def test_who_signs_in_and_whose_password_is_guessed_is_recorded(server: Running, browser: Browser) -> None:
    await account(server)
    user = await User.get(email=ANN)
    await browser.open("/sign-in")
    await browser.submit(email=ANN, password="not that one at all")
    await browser.submit(email="my password in the wrong field", password="x")
    await browser.sign_in(ANN, PASSWORD)
    shown = await code(browser)
    assert (await exchange(server, shown)).status_code == 200

    async def entries() -> list[dict[str, Any]]:
        answer = await server.api.get("/admin/audit-log?page[size]=100")
        found = [row["attributes"] for row in answer.json()["data"]]
        return found if any(row["path"] == "/oauth/token" for row in found) else []

    found = await until(entries)
    refused = [row for row in found if (row["path"], row["status-code"]) == ("/sign-in", 401)]
    assert [row["resource-id"] for row in refused] == [None, user.id], "newest first; of a name that is nobody's none"
    for path, status in (("/sign-in", 303), ("/oauth/token", 200)):
        row = next(row for row in found if (row["path"], row["status-code"]) == (path, status))
        assert (row["actor-email"], row["actor-id"]) == (ANN, user.id)
    assert "wrong field" not in str(found)


async def test_the_token_endpoint_speaks_oauth_whatever_is_sent(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        for content, media, status in (
            (b"{}", "application/json", 415),
            (b"code=a&code=b", "application/x-www-form-urlencoded", 400),
            (b"\xff\xfe", "application/x-www-form-urlencoded", 400),
            (b"code=%ff", "application/x-www-form-urlencoded", 400),
            (b"code=%00&code_verifier=x", "application/x-www-form-urlencoded", 400),
            (b"", "application/x-www-form-urlencoded", 400),
            (b"code=" + b"x" * 40000, "application/x-www-form-urlencoded", 413),
        ):
            answer = await client.post("/oauth/token", content=content, headers={"Content-Type": media})
            assert answer.status_code == status, content[:20]
            assert answer.json()["error"]
            assert answer.headers["cache-control"] == "no-store"


async def test_what_is_over_is_removed(server: Running, browser: Browser) -> None:
    await account(server)
    await code(browser)
    await Session.all().update(expires_at=clock.now())
    await OneTime.all().update(expires_at=clock.now())
    await sessions.purge()
    await onetime.purge()
    assert (await Session.all().count(), await OneTime.all().count()) == (0, 0)


async def test_discovery_and_providers_name_what_is_there(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        login = (await client.get("/.well-known/terraform.json")).json()["login.v1"]
        assert login == {
            "client": "terraform-cli",
            "grant_types": ["authz_code"],
            "authz": "/oauth/authorize",
            "token": "/oauth/token",
            "ports": [10000, 10010],
        }
        found = (await client.get("/api/v2/auth/providers")).json()
    assert found == {
        "providers": [{"name": "local", "type": "local", "display_name": "Password"}],
        "default_provider": "local",
    }


async def test_settings_end_tokens_and_take_passwords_away(database_url: str, tmp_path: Any) -> None:
    async with (
        running(tmp_path / "data", database_url, auth={"login_token_days": 30}) as server,
        Browser(server.url) as browser,
    ):
        await account(server)
        answer = (await exchange(server, await code(browser))).json()
        assert answer["expires_in"] == 30 * 86400
        async with server.as_(answer["access_token"]) as ann:
            tokens = (await ann.get(f"/users/{ANN}/authentication-tokens")).json()["data"]
        until = datetime.fromisoformat(tokens[0]["attributes"]["expired-at"])
        assert timedelta(days=29) < until - clock.now() <= timedelta(days=30)
    async with (
        running(tmp_path / "data", database_url, auth={"local": False}) as server,
        Browser(server.url) as browser,
    ):
        page = await browser.open("/sign-in")
        assert browser.read.forms == []
        assert "No way of signing in" in page.text
        assert (await browser.client.get(f"{server.url}/api/v2/auth/providers")).json()["providers"] == []
        assert await server.services.ask(SIGN_IN).by_password(ANN, PASSWORD, Attempt(None, "sign-in", "")) is None
