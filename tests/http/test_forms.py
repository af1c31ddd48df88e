"""What pages take and give: forms of ours alone, once-said messages, files that browsers keep, streams that end with
the session, and cookies that nothing but a page looks at."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from kit.browser import Browser
from kit.phases import plan_it, take
from kit.serving import PLAIN, Running, running
from terrapod_server import app
from terrapod_server.identity import actions as identity
from terrapod_server.identity import sessions
from terrapod_server.identity.model import ApiToken, Session
from terrapod_server.kit.api.declare import Page
from terrapod_server.kit.http.multipart import MULTIPART

ANN, BEA = "ann@example.org", "bea@example.org"
_LOG_LINES = 400_000


async def signed_in(server: Running, email: str, *roles: str) -> str:
    """A new user's session, as its cookie."""
    await server.person(email, *roles)
    _, token = await sessions.begin(await identity.user(email), "local", (), "", "")
    return token


@pytest.fixture
async def ann(server: Running) -> AsyncIterator[Browser]:
    """Somebody's browser, signed in and on the account's page."""
    async with Browser(server.url, cookies={"terrapod": await signed_in(server, ANN)}) as browser:
        await browser.open("/account")
        yield browser


def form_of(browser: Browser, action: str) -> dict[str, str]:
    return next(form for form in browser.read.forms if form.action == action).fields


async def token_of(email: str, name: str = "laptop") -> ApiToken:
    return await identity.create_token((await identity.user(email)).id, name)


async def test_nothing_but_a_page_looks_at_a_cookie(server: Running) -> None:
    admin = await signed_in(server, ANN, "admin")
    workspace = (await server.workspace("net"))["id"]
    nobody = await server.person(BEA)
    cookie = {"Cookie": f"terrapod={admin}; __Host-terrapod={admin}"}
    async with httpx.AsyncClient(base_url=server.url, verify=PLAIN) as client:
        for path in (
            f"/api/v2/workspaces/{workspace}",
            f"/api/v2/workspaces/{workspace}/runs/events",
            "/metrics",
            "/api/v2/account/details",
        ):
            alone = await client.get(path, headers=cookie)
            assert alone.status_code == 401, (path, alone.text)
            beside = await client.get(path, headers={**cookie, "Authorization": f"Bearer {nobody}"})
            assert beside.status_code == (200 if path.endswith("details") else 404 if workspace in path else 403), path
            if path.endswith("details"):
                assert beside.json()["data"]["attributes"]["email"] == BEA
        form = {"name": "x", "csrf": "x"}
        assert (
            await client.post(f"/api/v2/workspaces/{workspace}/actions/lock", data=form, headers=cookie)
        ).status_code == 401
        # and a page looks at nothing else
        for headers in ({"Authorization": f"Bearer {server.token}"}, {"Authorization": f"Bearer {admin}"}):
            assert (await client.get("/account", headers=headers)).status_code == 303
        page = await client.get("/account", headers={**cookie, "Authorization": f"Bearer {nobody}"})
        assert (page.status_code, ANN in page.text) == (200, True)


async def test_a_form_is_taken_from_its_browser_session_and_site_alone(server: Running, ann: Browser) -> None:
    token = await token_of(ANN)
    csrf = form_of(ann, "/sign-out")["csrf"]
    bea = await signed_in(server, BEA)
    theirs = await token_of(BEA)

    async def post(fields: dict[str, str], **headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await ann.client.post(f"{server.url}/account/tokens", data=fields, headers=sent)
        assert answer.headers["content-type"].startswith("text/html") or answer.status_code == 303
        return answer.status_code

    good = {"token": token.id, "csrf": csrf}
    host = httpx.URL(server.url).netloc.decode()
    for refused in (
        {"token": token.id},
        {**good, "csrf": ""},
        {**good, "csrf": csrf[:-2]},
        {**good, "csrf": csrf + "x"},
    ):
        assert await post(refused) == 403
    for site in ("cross-site", "same-site", "", "CROSS"):
        assert await post(good, Sec_Fetch_Site=site) == 403
    for origin in (
        "https://evil.example",
        "null",
        "",
        f"ftp://{host}",
        f"http://{host}.evil.example",
        "http://[",
        f"http://{host}@evil.example",
    ):
        assert await post(good, Origin=origin) == 403, origin
    assert await ApiToken.filter(id=token.id).exists()
    # of another session in the same browser, and of another browser
    ann.client.cookies.set("terrapod", bea, domain="127.0.0.1")
    assert await post({**good, "token": theirs.id}) == 403
    async with Browser(server.url, cookies={"terrapod": bea}) as other:
        await other.open("/account")
        answer = await other.client.post(f"{server.url}/account/tokens", data={**good, "token": theirs.id})
        assert answer.status_code == 403
    assert await ApiToken.filter(id=theirs.id).exists()


@pytest.mark.parametrize(
    "headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "here"}, {"X-CSRF-Token": "here"}]
)
async def test_a_form_of_ours_is_taken(server: Running, ann: Browser, headers: dict[str, str]) -> None:
    token, csrf = await token_of(ANN), form_of(ann, "/sign-out")["csrf"]
    given = {"Origin": server.url, "X-CSRF-Token": csrf}
    fields = {"token": token.id} | ({} if "X-CSRF-Token" in headers else {"csrf": csrf})
    sent = {name: given.get(name, value) for name, value in headers.items()}
    answer = await ann.client.post(f"{server.url}/account/tokens", data=fields, headers=sent)
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    assert not await ApiToken.filter(id=token.id).exists()


async def test_behind_a_proxy_the_public_url_is_the_site(database_url: str, tmp_path: Path) -> None:
    async with running(tmp_path / "data", database_url, public_url="https://terrapod.example") as server:
        session = await signed_in(server, ANN)
        async with httpx.AsyncClient(base_url=server.url, verify=PLAIN) as client:
            cookies = {"__Host-terrapod": session}
            page = await client.get("/account", headers={"Cookie": f"__Host-terrapod={session}"})
            cookies["__Host-terrapod-browser"] = re.findall(
                "__Host-terrapod-browser=([^;]+)", page.headers["set-cookie"]
            )[0]
            csrf = re.findall('name="csrf" value="([^"]+)"', page.text)[0]
            head = "; ".join(f"{name}={value}" for name, value in cookies.items())

            async def post(origin: str) -> int:
                headers = {"Origin": origin, "Cookie": head}
                return (
                    await client.post("/account/sessions", data={"csrf": csrf, "session": "x"}, headers=headers)
                ).status_code

            assert await post("https://terrapod.example") == 303
            for other in (server.url, "http://terrapod.example", "https://terrapod.example:444", "https://example"):
                assert await post(other) == 403, other
            # cookies that any other program of the host could have set are none over https
            assert (await client.get("/account", headers={"Cookie": f"terrapod={session}"})).status_code == 303


async def test_who_posts_without_a_session_is_led_back_to_the_page(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url, verify=PLAIN) as client:
        for referer, back in (
            (
                f"{server.url}/app/default/net/runs/run-1?x=1",
                f"/sign-in?next={quote('/app/default/net/runs/run-1?x=1', safe='')}",
            ),
            ("https://evil.example/account", "/sign-in"),
            ("http://[", "/sign-in"),
            ("", "/sign-in"),
        ):
            answer = await client.post(
                "/account/tokens", data={"token": "x"}, headers={"Referer": referer} if referer else {}
            )
            assert (answer.status_code, answer.headers["location"]) == (303, back)


async def test_what_is_no_form_or_too_large_is_refused_on_a_page(server: Running, ann: Browser) -> None:
    csrf = form_of(ann, "/sign-out")["csrf"]
    bomb = (
        b"".join(b'--x\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n\r\n' % n for n in range(10_000)) + b"--x--"
    )
    for content, media, status in (
        (f"csrf={csrf}&token=".encode() + b"x" * (1 << 20), "application/x-www-form-urlencoded", 413),
        (b"&".join(b"a%d=" % n for n in range(3000)), "application/x-www-form-urlencoded", 413),
        (b"a=1&a=2", "application/x-www-form-urlencoded", 400),
        (b"a=%00", "application/x-www-form-urlencoded", 400),
        (b"\xff\xfe", "application/x-www-form-urlencoded", 400),
        (b"{}", "application/json", 415),
        (bomb, f"{MULTIPART}; boundary=x", 413),
        (b'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n\r\n--x--', f"{MULTIPART}; boundary=x", 415),
    ):
        answer = await ann.client.post(f"{server.url}/account/tokens", content=content, headers={"Content-Type": media})
        assert (answer.status_code, "<h1>" in answer.text) == (status, True), (content[:40], answer.text)

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * 1024

    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await ann.client.post(f"{server.url}/account/tokens", content=slowly(), headers=headers)
    assert answer.status_code == 413


async def test_what_a_form_has_done_is_said_once_in_its_browser(server: Running, ann: Browser) -> None:
    said = "The token was ended."
    first, second = await token_of(ANN), await token_of(ANN)
    await ann.open("/account")
    assert said in (await ann.submit(action="/account/tokens", token=first.id)).text
    assert said not in (await ann.open("/account")).text
    csrf = form_of(ann, "/sign-out")["csrf"]
    answer = await ann.client.post(f"{server.url}/account/tokens", data={"csrf": csrf, "token": second.id})
    flash = answer.cookies["terrapod-flash"]
    async with httpx.AsyncClient(base_url=server.url, verify=PLAIN) as other:
        session = ann.client.cookies["terrapod"]
        for shown in (flash, flash[:-2], "x", "\xff".encode().decode("latin-1")):
            page = await other.get(
                "/account", headers=[(b"Cookie", f"terrapod={session}; terrapod-flash={shown}".encode("latin-1"))]
            )
            assert (page.status_code, said in page.text) == (200, False), "another browser's"
    assert said in (await ann.open("/account")).text


async def test_a_form_that_is_sent_twice_does_no_more_than_once(server: Running, ann: Browser) -> None:
    token = await token_of(ANN)
    csrf = form_of(ann, "/sign-out")["csrf"]

    async def twice(path: str, **fields: str) -> list[int]:
        post = [ann.client.post(f"{server.url}{path}", data={"csrf": csrf, **fields}) for _ in range(2)]
        return sorted(answer.status_code for answer in await asyncio.gather(*post))

    assert await twice("/account/tokens", token=token.id) == [303, 404]
    assert await twice("/account/sessions", session="others") == [303, 303]
    assert "All other sessions were ended." in (await ann.open("/account")).text
    assert await twice("/account/sessions", session="none") == [303, 303]
    assert "There is no such session" in (await ann.open("/account")).text
    assert (await twice("/sign-out"))[0] == 200
    assert await Session.all().count() == 0
    assert (await ann.open("/account")).url.path == "/sign-in"


async def test_the_style_is_a_file_that_browsers_keep(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url, verify=PLAIN) as client:
        page = await client.get("/sign-in")
        assert "<style" not in page.text
        assert " style=" not in page.text
        path = re.findall('<link rel="stylesheet" href="([^"]+)">', page.text)[0]
        assert re.fullmatch(r"/static/[0-9a-f]{12}/style.css", path)
        packed = await client.get(path)
        assert packed.headers["content-type"] == "text/css; charset=utf-8"
        assert packed.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert packed.headers["content-encoding"] == "gzip"
        plain = await client.get(path, headers={"Accept-Encoding": "identity"})
        assert plain.text == packed.text
        assert "content-encoding" not in plain.headers
        assert plain.headers["etag"] != packed.headers["etag"]
        assert "set-cookie" not in plain.headers
        for answer in (plain, packed):
            encoding = answer.headers.get("content-encoding", "identity")
            again = await client.get(
                path, headers={"If-None-Match": answer.headers["etag"], "Accept-Encoding": encoding}
            )
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
        unpacked = await client.get(path, headers={"Accept-Encoding": "br, gzip; q=0"})
        assert ("content-encoding" in unpacked.headers, unpacked.text) == (False, plain.text)
        other = await client.get("/static/000000000000/style.css")  # of a server of another version
        assert (other.status_code, other.headers["cache-control"], other.text) == (200, "no-cache", plain.text)
        for wrong in (
            "base.html",
            "..%2Ftemplates%2Fbase.html",
            "..%2f..%2f__main__.py",
            "",
            "style.css%00",
            "STYLE.CSS",
        ):
            assert (await client.get(f"{path.rpartition('/')[0]}/{wrong}")).status_code == 404, wrong


async def test_a_stream_ends_with_the_session(
    server: Running, ann: Browser, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await server.post("/roles", {"name": "seers", "workspace-permission": "read", "allow-labels": {"seen": "yes"}})
    body = {"data": {"attributes": {"email": ANN, "roles": ["seers"]}}}
    assert (await server.api.put("/role-assignments", json=body)).status_code == 200
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace("net", labels={"seen": "yes"})
    run = (await server.run(workspace["id"], (await server.configuration(workspace["id"]))["id"])).json()["data"]["id"]
    log = b"".join(b"line %040d\n" % number for number in range(_LOG_LINES))
    await plan_it(listener, await take(listener), tmp_path, log=log)
    url = f"{server.url}/app/default/net/runs/{run}/logs/plan"
    assert (await ann.client.get(url)).content == log

    async def read(end: Any, seen: list[bytes]) -> None:
        async with ann.client.stream("GET", url) as answer:
            async for piece in answer.aiter_raw():
                if not seen:
                    await end()
                seen.append(piece)

    async def broken_off(end: Any) -> int:
        seen: list[bytes] = []
        with pytest.raises(httpx.RemoteProtocolError):
            await read(end, seen)
        return sum(map(len, seen))

    async def lose_the_right() -> None:
        gone = {"data": {"attributes": {"email": ANN, "roles": []}}}
        assert (await server.api.put("/role-assignments", json=gone)).status_code == 200

    async def end_the_session() -> None:
        assert (await server.api.delete(f"/auth/sessions/user/{ANN}")).status_code == 204

    assert 0 < await broken_off(lose_the_right) < len(log)
    assert (await server.api.put("/role-assignments", json=body)).status_code == 200
    assert 0 < await broken_off(end_the_session) < len(log)
    assert [record.name for record in caplog.records if record.exc_info] == [], "no fault of the server"
    assert (await ann.client.get(url)).status_code == 303


async def test_hostile_names_stay_text(ann: Browser) -> None:
    names = (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 7*7 }}{% raw %}",
        "\x1b[31mred\x07",
        "a\u202eb\u2066c",
        "javascript:alert(1)",
    )
    for name in names:
        await token_of(ANN, name)
        await sessions.begin(await identity.user(ANN), "local", (), name, name)
    page = await ann.open("/account")
    assert page.status_code == 200
    assert not {"script", "img"} & set(ann.read.tags)
    assert not any(mark in page.text for mark in ("\x1b", "\x07", "\u202e", "\u2066", "49{"))
    assert "{{ 7*7 }}{% raw %}" in page.text
    assert not [link for link in ann.read.links if link.startswith("javascript")]
    for path in (
        "/nowhere/<script>",
        "/app/default/<script>/runs/x",
        "/sign-in?next=<script>",
        "/account?page=<script>",
    ):
        page = await ann.open(quote(path, safe="/?="))
        assert "<script" not in page.text, path


async def test_a_list_of_a_page_is_paged(ann: Browser) -> None:
    for number in range(205):
        await token_of(ANN, f"number {number}.")
    page = await ann.open("/account?other=1%262")
    assert "number 204." in page.text
    assert "number 104." not in page.text
    assert ann.read.links[-1] == "/account?other=1%262&page=2"
    page = await ann.open(ann.read.links[-1])
    assert all(f"number {number}." in page.text for number in (5, 104))
    assert "Page 2 of 3" in page.text
    for last in ("3", "4", "9" * 30):
        page = await ann.open(f"/account?page={last}")
        assert "Page 3 of 3" in page.text
        assert "number 4." in page.text
    for wrong in ("0", "-1", "x", "1e3", "%D9%A1"):
        page = await ann.open(f"/account?page={wrong}")
        assert (page.status_code, "a whole number" in page.text) == (422, True)


def test_every_page_says_what_it_gives() -> None:
    pages = [endpoint for endpoint in app.ENDPOINTS if isinstance(endpoint, Page)]
    assert len(pages) > 10
    assert [page.path for page in pages if page.is_cross_site] == ["/api/v2/auth/callback"]
    assert [page.path for page in pages if page.form and page.method == "GET"] == []
