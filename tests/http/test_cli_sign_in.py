"""`terrapod login` against this server's own pages, with a browser that reads them."""

import asyncio
import json
import os
import re
from pathlib import Path

import pytest

from kit.browser import Browser
from kit.cli import Here
from kit.serving import Running
from kit.site import BIN
from terrapod_server.commands import accounts

pytestmark = pytest.mark.sqlite_alone(reason="the command line's end of signing in; test_sign_in is on both")

ANN, PASSWORD = "ann@example.org", "a heron stands in shallow water"


async def test_signing_in_on_the_real_page(server: Running, tmp_path: Path) -> None:
    await accounts.make_user(server.services, ANN, PASSWORD, is_admin=True)
    process = await asyncio.create_subprocess_exec(
        str(BIN / "terrapod"), "login", server.url, "--no-browser", "--json",
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr
    async with asyncio.timeout(30):
        while not (found := re.search(rb"http://\S+/oauth/authorize\?\S+", await process.stderr.readline())):
            assert not process.stderr.at_eof()
    async with Browser(server.url) as browser:
        await browser.open(found.group().decode())
        await browser.submit(email=ANN, password=PASSWORD)
        await browser.submit("allow")
        assert browser.left_to.startswith("http://localhost:100")
        back = await browser.client.get(browser.left_to.replace("localhost", "127.0.0.1"))
        assert back.status_code == 200
    out, err = await process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out)["email"] == ANN
    cli = Here(tmp_path, TERRAPOD_ADDRESS=server.url)
    assert (await cli.ok("whoami"))["email"] == ANN
    tokens = await cli.ok("tokens", "list")
    assert len(tokens) == 1
    await cli.ok("users", "create", "bob@example.org", "--password-stdin", stdin="the owl sleeps in the ash tree\n")
    assert (await cli("users", "create", "eve@example.org", "--password-stdin", stdin="password\n")).code == 2
    assert (await cli.ok("users", "show", "bob@example.org"))["has-password"] is True
    await cli.ok("tokens", "delete", tokens[0]["id"])
    assert (await cli("whoami")).code == 3
