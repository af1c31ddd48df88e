"""Pages besides those of signing in: where `/` leads, the account, a run at the address that terraform prints, and errors."""

import asyncio
import gc
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from kit.browser import Browser
from kit.phases import plan_it, take
from kit.serving import Running
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.commands import accounts
from terrapod_server.identity import actions as identity
from terrapod_server.identity import sessions
from terrapod_server.identity.model import ApiToken, Session
from terrapod_shared import clock

pytestmark = pytest.mark.sqlite_alone(reason="pages show what the API reads, and tests/http ask the API on both")

PASSWORD = "a heron stands in shallow water"
ANN, BEA, CEM = "ann@example.org", "bea@example.org", "cem@example.org"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
_LINES = 120_000
LOG = (
    b"Listener one\n\x1b[1m\x1b[31mred\x1b[0m <script>alert(1)</script>\x1b]0;title\x07\r\n"
    b'{"@level":"info","@message":"a.b: \\u001b[2JRefreshing <b>state</b>...","type":"refresh_start"}\n'
    b'{"@message":"half \\ud800 a letter","type":[]}\n'
    b"Plan: 1 to add\n"
)


@pytest.fixture
async def browser(server: Running) -> AsyncIterator[Browser]:
    async with Browser(server.url) as opened:
        yield opened


async def account(server: Running, email: str = ANN, *, admin: bool = False) -> None:
    await accounts.make_user(server.services, email, PASSWORD, is_admin=admin)


async def reader(server: Running, email: str) -> None:
    """Somebody who may read all workspaces with the label `seen`, and nothing else."""
    await account(server, email)
    await server.post("/roles", {"name": "seers", "workspace-permission": "read", "allow-labels": {"seen": "yes"}})
    body = {"data": {"attributes": {"email": email, "roles": ["seers"]}}}
    assert (await server.api.put("/role-assignments", json=body)).status_code == 200


async def planned(server: Running, listener: ListenerClient, folder: Path, log: bytes = LOG, **more: Any) -> str:
    """A run that waits for a person; its path as terraform prints it."""
    workspace = await server.workspace("net", labels={"seen": "yes"})
    configuration = await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"], configuration["id"], **more)).json()["data"]["id"]
    await plan_it(listener, await take(listener), folder, log=log)
    return f"/app/default/net/runs/{run}"


async def test_the_first_address_leads_on(server: Running, browser: Browser) -> None:
    await account(server)
    assert (await browser.open("/")).url.path == "/sign-in"
    assert (await browser.submit(email=ANN, password=PASSWORD)).url.path == "/account"
    assert (await browser.open("/")).url.path == "/account"


async def test_a_run_is_shown_after_signing_in(server: Running, browser: Browser, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    path = await planned(server, listener, tmp_path, message='<i>why</i> \u202e\x1b[2J"now"')
    run = path.rpartition("/")[2]
    await account(server, admin=True)
    assert (await browser.open(path)).url.path == "/sign-in"
    page = await browser.submit(email=ANN, password=PASSWORD)
    assert page.url.path == path
    for text in (
        "Planned", "Waits for somebody to approve or discard it.", "&lt;i&gt;why&lt;/i&gt; &#34;now&#34;", "terraform 1.15.5",
        f"terrapod runs approve {run}", f"terrapod runs discard {run}", "by admin@localhost",
        "red &lt;script&gt;alert(1)&lt;/script&gt;\na.b: Refreshing &lt;b&gt;state&lt;/b&gt;...\nhalf \ufffd a letter\nPlan: 1 to add",
    ):  # fmt: skip
        assert text in page.text, text
    assert not any(text in page.text for text in ("\x1b", "\x07", "\u202e", "<i>", "<b>", "title\n", "@message"))
    assert "script" not in browser.read.tags
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert page.headers["cache-control"] == "no-store"
    whole = await browser.open(f"{path}/logs/plan")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert (
        whole.text == "Listener one\nred <script>alert(1)</script>\na.b: Refreshing <b>state</b>...\n"
        "half \ufffd a letter\nPlan: 1 to add\n"
    )
    assert (await browser.open(f"{path}/logs/apply")).text == ""
    assert (await browser.open(f"{path}/logs/other")).status_code == 404
    assert (await server.api.post(f"/runs/{run}/actions/discard")).status_code == 202
    page = await browser.open(path)
    assert "Discarded" in page.text
    assert "terrapod runs approve" not in page.text


async def test_a_page_changes_nothing_that_terraform_waits_for(
    server: Running, browser: Browser, tmp_path: Path
) -> None:
    """Reading a log by the API tells the server that the CLI has seen it."""
    listener = await server.listener(tmp_path / "home")
    path = await planned(server, listener, tmp_path)
    run = path.rpartition("/")[2]
    before = (await server.api.get(f"/runs/{run}/run-events")).json()["data"]
    await account(server, admin=True)
    await browser.sign_in(ANN, PASSWORD)
    await browser.open(path)
    await browser.open(f"{path}/logs/plan")
    assert (await server.api.get(f"/runs/{run}/run-events")).json()["data"] == before


async def test_a_run_is_there_for_those_who_may_read_it(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    path = await planned(server, listener, tmp_path)
    await reader(server, BEA)
    await account(server, CEM)
    async with Browser(server.url) as bea, Browser(server.url) as cem:
        page = await bea.sign_in(BEA, PASSWORD, path)
        assert page.status_code == 200
        assert "terrapod runs approve" not in page.text
        assert "You have read on the workspace: to approve or discard the run, write is needed." in page.text
        missing = [
            await cem.sign_in(CEM, PASSWORD, path),
            await cem.open(path + "0"),
            await cem.open(path + "/logs/plan"),
        ]
        missing.append(await cem.open("/app/other/net/runs/" + path.rpartition("/")[2]))
        for page in missing:
            assert (page.status_code, "net" in page.text.replace("/app/default/net", "")) == (404, False)
            assert "Not found" in page.text
            assert "/" in cem.read.links
    async with httpx.AsyncClient(base_url=server.url) as program:
        for headers in (
            {"Authorization": f"Bearer {server.token}"}, {"Cookie": f"terrapod={server.token}"}, {"Cookie": "terrapod=x"},
        ):  # fmt: skip
            answer = await program.get(path, headers=headers)
            assert (answer.status_code, answer.headers["location"][:9]) == (303, "/sign-in?"), (
                "only a session is let in"
            )


async def test_a_run_is_found_by_other_addresses_of_it(server: Running, browser: Browser, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    path = await planned(server, listener, tmp_path)
    await account(server, admin=True)
    await browser.sign_in(ANN, PASSWORD)
    run = path.rpartition("/")[2]
    for other in (f"/app/default/workspaces/net/runs/{run}", f"/app/default/older-name/runs/{run}", path + "/"):
        assert (await browser.open(other)).url.path.rstrip("/") == path


async def test_a_run_says_why_it_waits(server: Running, browser: Browser) -> None:
    workspace = await server.workspace("net")
    configuration = await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"], configuration["id"])).json()["data"]["id"]
    await account(server, admin=True)
    await browser.sign_in(ANN, PASSWORD)
    waits = (await server.api.get(f"/runs/{run}")).json()["data"]["attributes"]["waits-for"]["text"]
    page = await browser.open(f"/app/default/net/runs/{run}")
    assert "Plan queued" in page.text
    assert waits[1:] in page.text
    assert waits.startswith("waits for a listener: ")
    assert "Nothing yet." in page.text
    assert f"terrapod runs cancel {run}" in page.text
    assert (await server.api.post(f"/runs/{run}/actions/cancel")).status_code == 202
    assert "This phase was never started." in (await browser.open(f"/app/default/net/runs/{run}")).text


async def test_of_a_long_log_the_page_has_the_end(server: Running, browser: Browser, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    log = b"".join(b"\x1b[32mline %07d\x1b[0m\n" % number for number in range(_LINES))
    path = await planned(server, listener, tmp_path, log=log)
    await account(server, admin=True)
    await browser.sign_in(ANN, PASSWORD)
    page = await browser.open(path)
    assert len(page.content) < 300_000
    assert f"line {_LINES - 1:07}\n" in page.text
    assert re.search(r">line \d{7}\n", page.text), "it begins with a whole line"
    assert f"of {len(log) / (1 << 20):.1f} MiB in all" in page.text
    async with browser.client.stream("GET", f"{server.url}{path}/logs/plan") as answer:
        assert "content-length" not in answer.headers
        pieces = [piece async for piece in answer.aiter_raw()]
    assert len(pieces) > 3
    assert b"".join(pieces) == b"".join(b"line %07d\n" % number for number in range(_LINES))


async def test_api_tokens_are_listed_and_ended(server: Running, browser: Browser) -> None:
    await account(server)
    await account(server, BEA)
    ann, bea = await identity.user(ANN), await identity.user(BEA)
    mine = await identity.create_token(ann.id, "<b>laptop</b>", expired_at=clock.now() + timedelta(days=3))
    await identity.create_token(ann.id, "ci", read_only=True)
    hers = await identity.create_token(bea.id, "hers")
    async with server.as_(mine.text or "") as script:
        assert (await script.get("/account/details")).status_code == 200
        page = await browser.sign_in(ANN, PASSWORD)
        assert "&lt;b&gt;laptop&lt;/b&gt;" in page.text
        assert (mine.text or "") not in page.text
        assert "hers" not in page.text
        assert re.search(rf"Expires {(clock.now() + timedelta(days=3)):%Y-%m-%d}", page.text)
        assert "Does not expire." in page.text
        assert "Reads only." in page.text
        fields = {"token": mine.id, "csrf": ""}
        assert (await browser.client.post(f"{server.url}/account/tokens", data=fields)).status_code == 403
        form = next(form for form in browser.read.forms if form.fields.get("token") == mine.id)
        theirs = await browser.client.post(f"{server.url}/account/tokens", data={**form.fields, "token": hers.id})
        assert (theirs.status_code, "no such token of yours" in theirs.text) == (404, True)
        cross = {"Sec-Fetch-Site": "cross-site"}
        refused = await browser.client.post(f"{server.url}/account/tokens", data=form.fields, headers=cross)
        assert refused.status_code == 403
        assert await ApiToken.filter(id__in=[mine.id, hers.id]).count() == 2
        page = await browser.submit(action="/account/tokens", token=mine.id)
        assert "The token was ended." in page.text
        assert mine.id not in page.text
        assert (await script.get("/account/details")).status_code == 401, "at once"
    async with httpx.AsyncClient(base_url=server.url) as stranger:
        answer = await stranger.post("/account/tokens", data=form.fields)
        assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")


async def test_of_many_tokens_the_newest_are_listed(server: Running, browser: Browser) -> None:
    await account(server)
    ann = await identity.user(ANN)
    for number in range(103):
        await identity.create_token(ann.id, f"number {number}.")
    page = await browser.sign_in(ANN, PASSWORD)
    assert "number 102." in page.text
    assert "number 3." in page.text
    assert "number 2." not in page.text
    page = await browser.open(browser.read.links[-1])
    assert "number 2." in page.text
    assert "number 3." not in page.text


async def test_sessions_are_named_by_browser_and_system(server: Running, browser: Browser) -> None:
    await account(server)
    ann = await identity.user(ANN)
    await sessions.begin(ann, "local", (), "10.0.0.1", FIREFOX)
    old, _ = await sessions.begin(ann, "local", (), "10.0.0.2", "terrapod/0.1.0 (linux)")
    await Session.filter(id=old.id).update(created_at=old.expires_at - sessions.LONGEST)
    page = await browser.sign_in(ANN, PASSWORD)
    said = " ".join(page.text.split())
    assert "Firefox on Linux" in said
    assert "Test browser, this browser" in said
    assert "terrapod/0.1.0 <" in said
    assert f"Ends {old.expires_at:%Y-%m-%d %H:%M} UTC. Token" in said, "no use makes it longer"
    assert said.count("UTC unless it is used before.") == 2


async def test_a_session_that_is_over_leads_to_sign_in(server: Running, browser: Browser) -> None:
    await account(server)
    await browser.sign_in(ANN, PASSWORD)
    await Session.all().delete()  # the process may remember for some seconds that there was one
    assert (await browser.submit(action="/account/password", current="x")).url.path == "/sign-in"
    assert (await browser.open("/account")).url.path == "/sign-in"


async def test_errors_of_pages_have_a_way_back(server: Running, browser: Browser) -> None:
    as_browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path in ("/nowhere", "/app/default", "/app/default/x/variables", "/sign-out"):
        page = await browser.client.get(server.url + path, headers=as_browser)
        assert (page.status_code, page.headers["content-type"]) == (
            405 if path == "/sign-out" else 404,
            "text/html; charset=utf-8",
        )
        assert '<a href="/">' in page.text
        assert page.headers["x-request-id"]
    for path, accept in (("/api/v2/nowhere", as_browser), ("/nowhere", {"Accept": "*/*"}), ("/nowhere", {})):
        answer = await browser.client.get(server.url + path, headers=accept)
        assert answer.json()["errors"][0]["status"] == "404"
    page = await browser.client.post(server.url + "/sign-in", data={"csrf": "x"})
    assert (page.status_code, '<a href="/">' in page.text) == (403, True)
    page = await browser.client.post(server.url + "/sign-in", json={})
    assert (page.status_code, '<a href="/">' in page.text) == (415, True)


async def test_pages_have_an_icon(browser: Browser) -> None:
    page = await browser.open("/sign-in")
    assert '<link rel="icon" href="/favicon.svg"' in page.text
    assert "img-src 'self'" in page.headers["content-security-policy"]
    for path in ("/favicon.svg", "/favicon.ico"):
        icon = await browser.open(path)
        assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")
        assert icon.content.startswith(b"<svg")
        assert "script" not in icon.text


async def test_one_log_is_read_by_many_at_once(server: Running, browser: Browser, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    path = await planned(server, listener, tmp_path)
    await account(server, admin=True)
    await browser.sign_in(ANN, PASSWORD)
    pages = await asyncio.gather(*(browser.client.get(server.url + path) for _ in range(20)))
    assert {page.status_code for page in pages} == {200}


@pytest.mark.parametrize("host", ["[", "[::1", "[:::]", "a/b", "a b", '"><b>', "x:99999", "\xff"])
async def test_a_host_that_can_be_none_breaks_no_page(server: Running, host: str) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    answers = {}
    for path in ("/sign-in", "/account", "/oauth/authorize"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answers[path] = (await asyncio.wait_for(reader.read(), 30)).split()[1]
        writer.close()
    assert answers == {"/sign-in": b"200", "/account": b"303", "/oauth/authorize": b"303"}


async def test_a_request_for_a_page_is_gone_with_its_answer(browser: Browser) -> None:
    """And with the connection: what waits for the garbage collector were 100 MiB of 3,000 pages that nobody waited for."""
    await browser.open("/sign-in")
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            await browser.open("/sign-in")
        left = sum(isinstance(each, Request) for each in gc.get_objects())
    finally:
        gc.enable()
    assert left <= 1
