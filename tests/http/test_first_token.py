"""`terrapod-server tokens create --admin`, beside a server that runs on the same database."""

import asyncio
import os
import re
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from kit.cli import Said
from kit.serving import Running, until
from kit.site import BIN
from terrapod_server.__main__ import main
from terrapod_server.identity.model import ApiToken, User


async def create(server: Running, database_url: str, *argv: str) -> Said:
    process = await asyncio.create_subprocess_exec(
        str(BIN / "terrapod-server"), "tokens", "create", "--data", str(server.folder), *argv,
        env={"PATH": os.environ["PATH"], "TERRAPOD_DATABASE_URL": database_url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    return Said(process.returncode, out.decode(), err.decode())


async def who(server: Running, token: str) -> httpx.Response:
    async with server.as_(token) as api:
        return await api.get("/account/details")


@pytest.mark.slow
async def test_a_first_token_without_a_browser(server: Running, database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    printed, written = await asyncio.gather(
        create(server, database_url, "--admin"), create(server, database_url, "--admin", "--output", str(file))
    )
    assert (printed.code, written.code) == (0, 0), (printed, written)
    token = printed.out.removesuffix("\n")
    assert re.fullmatch(r"tpod_\S+", token), "nothing but the token is on stdout"
    assert (written.out, file.stat().st_mode & 0o777) == ("", 0o600)
    for text in (token, file.read_text().strip()):
        details = (await who(server, text)).json()["data"]["attributes"]
        assert (details["email"], details["is-admin"]) == ("admin@localhost", True)
        assert text not in printed.err + written.err
    row = await ApiToken.get(description="terrapod-server tokens create", id=printed.err.split()[1])
    assert row.expired_at is not None, "it is good for 30 days"

    async def recorded() -> bool:
        answer = await server.api.get("/admin/audit-log?filter[resource-type]=authentication-tokens")
        entries = [each["attributes"] for each in answer.json()["data"]]
        assert {each["actor-type"] for each in entries} <= {"operator"}
        assert token not in answer.text
        return {each["resource-id"] for each in entries} == {row.id, written.err.split()[1]}

    await until(recorded)
    there = CliRunner().invoke(main, ["tokens", "create", "--admin", "--data", str(tmp_path), "--output", str(file)])
    assert (there.exit_code, f"cannot make {file}: File exists" in there.output) == (1, True)
    unsaid = CliRunner().invoke(main, ["tokens", "create", "--data", str(tmp_path)])
    assert (unsaid.exit_code, "--admin is needed" in unsaid.output) == (2, True)
    long = CliRunner().invoke(
        main, ["tokens", "create", "--admin", "--data", str(tmp_path), "--description", "x" * 255]
    )
    assert (long.exit_code, "at most 254 letters" in long.output) == (2, True), long


async def test_a_token_that_would_not_work_is_not_made(server: Running, database_url: str, tmp_path: Path) -> None:
    await User.filter(email="admin@localhost").update(is_active=False)
    refused = await create(server, database_url, "--admin", "--output", str(tmp_path / "token"))
    assert (refused.code, "admin@localhost was deactivated" in refused.err) == (1, True), refused
    assert list(tmp_path.glob("token")) == []
    assert await ApiToken.filter(description="terrapod-server tokens create").count() == 0
