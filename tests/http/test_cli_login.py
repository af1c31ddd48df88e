"""`terrapod login` with a browser: a process, a real loopback port, and an authorization server over HTTP."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from kit.answering import Scripted, scripted
from kit.authorization import Authorization
from kit.cli import Cli
from kit.site import BIN


@asynccontextmanager
async def authorization(how: Authorization | None = None) -> AsyncIterator[tuple[Scripted, Authorization]]:
    made = how or Authorization()
    async with scripted() as server:
        server.otherwise = made.met
        yield server, made


@asynccontextmanager
async def waiting(home: Path, *argv: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """`terrapod login` that waits for somebody to open the address."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "terrapod"), "login", *argv, "--no-browser", env={"PATH": os.environ["PATH"], "HOME": str(home)},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr
    try:
        async with asyncio.timeout(30):
            while not (found := re.search(rb"http://\S+/oauth/authorize\?\S+", await process.stderr.readline())):
                assert not process.stderr.at_eof()
            yield found.group().decode(), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


#: Opens the address, and follows where it leads.
BROWSER = "#!{python}\nimport sys, urllib.request\nurllib.request.urlopen(sys.argv[1]).read()\n"


async def test_the_browser_signs_in(tmp_path: Path) -> None:
    async with authorization() as (server, made):
        browser = tmp_path / "browser"
        browser.write_text(BROWSER.format(python=sys.executable))
        browser.chmod(0o755)
        cli = Cli(tmp_path, BROWSER=f"{browser} %s")
        said = await cli("login", server.url, cwd=tmp_path)
        assert said.code == 0, said
        assert made.token not in said.out + said.err
        assert "alice@example.com" in said.out
        file = tmp_path / ".terraform.d" / "credentials.tfrc.json"
        name = server.url.removeprefix("http://")
        assert json.loads(file.read_text()) == {"credentials": {name: {"token": made.token}}}
        assert file.stat().st_mode & 0o777 == 0o600
        assert (await cli.ok("whoami", "--host", server.url))["email"] == "alice@example.com"


async def test_who_comes_without_the_state_is_not_listened_to(tmp_path: Path) -> None:
    async with authorization() as (server, made), waiting(tmp_path, server.url, "--json") as (url, process):
        query = parse_qs(urlsplit(url).query)
        back = query["redirect_uri"][0].replace("localhost", "127.0.0.1")
        async with httpx.AsyncClient(timeout=10) as browser:
            for path in (
                "",
                "?code=x",
                "?code=x&state=guess",
                f"?state={query['state'][0]}",
                "?error=access_denied&state=no",
            ):
                assert (await browser.get(f"{back}{path}")).status_code == 400, path
            assert (await browser.post(f"{back}?code=x&state={query['state'][0]}")).status_code == 404
            assert (await browser.get(back.replace("/login", "/other"))).status_code == 404
            page = await browser.get(url, follow_redirects=True)
            assert page.status_code == 200
            assert "default-src 'none'" in page.headers["content-security-policy"]
        out, _ = await process.communicate()
        assert process.returncode == 0
        assert json.loads(out)["email"] == "alice@example.com"
        assert made.token.encode() not in out


@pytest.mark.parametrize(
    ("how", "words"),
    [(Authorization(deny=True), b"the user said no"), (Authorization(broken=True), b"this code is no good")],
)
async def test_a_refusal_ends_it(tmp_path: Path, how: Authorization, words: bytes) -> None:
    async with authorization(how) as (server, _), waiting(tmp_path, server.url) as (url, process):
        async with httpx.AsyncClient(timeout=10, follow_redirects=True) as browser:
            assert (await browser.get(url)).status_code == 200
        _, err = await process.communicate()
        assert process.returncode == 4
        assert words in err
        assert not (tmp_path / ".terraform.d").exists()


async def test_nobody_comes(tmp_path: Path) -> None:
    async with authorization() as (server, _), waiting(tmp_path, server.url, "--timeout", "1") as (_, process):
        assert await process.wait() == 3


async def test_a_second_sign_in_takes_another_port(tmp_path: Path) -> None:
    async with (
        authorization() as (server, _),
        waiting(tmp_path, server.url) as (one, _),
        waiting(tmp_path, server.url) as (two, _),
    ):
        ports = {urlsplit(parse_qs(urlsplit(url).query)["redirect_uri"][0]).port for url in (one, two)}
        assert len(ports) == 2


async def test_a_server_without_sign_in(tmp_path: Path) -> None:
    async with authorization(Authorization(offered=False)) as (server, _):
        said = await Cli(tmp_path)("login", server.url)
        assert (said.code, "--token-stdin" in said.err) == (5, True)
