"""What a page may do that no page of today does: take files, give fragments, and fail, all as a room would declare it."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import HTMLResponse, Response

from kit.browser import Browser
from kit.serving import Running
from terrapod_server import app
from terrapod_server.identity import actions as identity
from terrapod_server.identity import sessions
from terrapod_server.kit import html
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Limit, Page
from terrapod_server.kit.asgi.routes import Routes
from terrapod_server.kit.caller import Access
from terrapod_server.kit.http.multipart import MULTIPART, PARTS_MOST

MIB = 1 << 20
_HOSTILE = "<b>\x1b[31m\u202edone</b>"


async def values(_call: Call) -> dict[str, Any]:
    """A page by its template."""
    return {"title": "A <title>", "text": _HOSTILE, "link": ("/account", "on")}


async def fragment(call: Call) -> Response:
    """A part of a page."""
    return HTMLResponse(f"<li>{call.principal.name}</li>")


async def upload(call: Call) -> Response:
    """Takes files, and says what came."""
    assert call.files is not None
    found = []
    async for file in call.files:
        seen, size = hashlib.sha256(), 0
        async for chunk in file:
            seen.update(chunk)
            size += len(chunk)
        found.append(f"{file.filename} {size} {seen.hexdigest()[:8]}")
    call.browser.say(f"{_HOSTILE} {call.form.get('note')}: {', '.join(found)}")
    return html.redirect("/test")


async def fail(_call: Call) -> Response:
    """A page with a mistake."""
    raise ZeroDivisionError


PAGES = (
    Page("GET", "/test", values, Access.SELF, template="message.html"),
    Page("GET", "/test/fragment", fragment, Access.USER),
    Page("POST", "/test/files", upload, Access.SELF, form=("note",), has_files=True, limit=Limit.MODULE),
    Page("GET", "/test/failure", fail, Access.PUBLIC),
)


@pytest.fixture
async def ann(server: Running) -> AsyncIterator[Browser]:
    server.asgi.routes = Routes((*app.ENDPOINTS, *PAGES))
    await server.person("ann@example.org")
    _, token = await sessions.begin(await identity.user("ann@example.org"), "local", (), "", "")
    async with Browser(server.url, cookies={"terrapod": token}) as browser:
        await browser.open("/account")
        yield browser


def csrf_of(browser: Browser) -> str:
    return browser.read.forms[0].fields["csrf"]


async def test_a_page_gives_values_or_an_answer(ann: Browser) -> None:
    page = await ann.open("/test")
    assert (page.status_code, "<b>" in page.text, "\x1b" in page.text, "\u202e" in page.text) == (
        200,
        False,
        False,
        False,
    )
    assert "&lt;b&gt;done&lt;/b&gt;" in page.text
    assert "<h1>A &lt;title&gt;</h1>" in page.text
    assert page.headers["x-frame-options"] == "DENY"
    head = await ann.client.head(f"{ann.origin}/test")
    assert (head.status_code, head.content) == (200, b"")
    part = await ann.open("/test/fragment")
    assert part.text == "<li>ann@example.org</li>"
    assert part.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in part.headers["content-security-policy"]
    page = await ann.open("/test/failure")
    assert (page.status_code, page.headers["x-request-id"] in page.text, "Zero" in page.text) == (500, True, False)


async def test_files_are_read_as_they_come(ann: Browser) -> None:
    content = [bytes([n]) * (3 * MIB + n) for n in range(2)]
    files = [("file", (f'{n}" <b>.tar', each, "application/x-tar")) for n, each in enumerate(content)]
    fields = {"csrf": csrf_of(ann), "note": "ä"}
    answer = await ann.client.post(f"{ann.origin}/test/files", data=fields, files=files)
    assert (answer.status_code, answer.headers["location"]) == (303, "/test")
    said = [
        f"{n}&#34; &lt;b&gt;.tar {len(each)} {hashlib.sha256(each).hexdigest()[:8]}" for n, each in enumerate(content)
    ]
    page = await ann.open("/test")
    assert f"&lt;b&gt;done&lt;/b&gt; ä: {', '.join(said)}" in page.text
    assert not any(mark in page.text for mark in ("\x1b", "\u202e", "<b>"))
    # without files, and by the header
    assert (await ann.client.post(f"{ann.origin}/test/files", data=fields)).status_code == 303
    answer = await ann.client.post(f"{ann.origin}/test/files", files=files, headers={"X-CSRF-Token": fields["csrf"]})
    assert answer.status_code == 303


async def test_a_file_that_may_not_come_is_not_looked_at(ann: Browser) -> None:
    async def chunks(csrf: str, mib: int) -> AsyncIterator[bytes]:
        head = 'Content-Disposition: form-data; name="csrf"'
        yield f'--x\r\n{head}\r\n\r\n{csrf}\r\n--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'.encode()
        for _ in range(mib):
            yield b"x" * MIB

    good, headers = csrf_of(ann), {"Content-Type": f"{MULTIPART}; boundary=x"}
    cross_site = headers | {"Sec-Fetch-Site": "cross-site"}
    for csrf, sent, mib, status in (("", headers, 9, 403), (good, cross_site, 9, 403), (good, headers, 66, 413)):
        answer = await ann.client.post(f"{ann.origin}/test/files", content=chunks(csrf, mib), headers=sent)
        assert (answer.status_code, "<h1>" in answer.text) == (status, True)
        assert "done" not in (await ann.open("/account")).text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n\r\n' * (PARTS_MOST + 1), 413),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n" + b"y" * MIB, 413),
        (b"--x\r\nX: " + b"y" * MIB, 400),
        (b"--x", 400),
        (b"y" * MIB, 400),
        (b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\nc\r\n--x\r\nContent-Disposition: form-data; name=d\r\n\r\n\r\n--x--", 400),
    ],
)  # fmt: skip
async def test_what_is_no_form_with_files_is_refused(ann: Browser, body: bytes, status: int) -> None:
    headers = {"Content-Type": f"{MULTIPART}; boundary=x", "X-CSRF-Token": csrf_of(ann)}
    answer = await ann.client.post(f"{ann.origin}/test/files", content=body, headers=headers)
    assert (answer.status_code, "<h1>" in answer.text) == (status, True), answer.text
