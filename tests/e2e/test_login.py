"""`terraform login` with the real CLI, a person's browser in between, and what the CLI then does with its token."""

import json
import re
import ssl
import subprocess
import uuid
from pathlib import Path

import httpx
import pexpect

from kit.browser import Browser
from kit.site import BIN, Site

PASSWORD = "a heron stands in shallow water"


def users(site: Site, *argv: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "terrapod-server", "users", *argv, "--password-stdin", "--data", str(site.data)],
        input=f"{password}\n", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def login(site: Site, home: Path) -> "pexpect.spawn[str]":
    """`terraform login` of somebody who has no credentials yet."""
    (home / ".terraform.d").mkdir(parents=True)
    environment = {**site.environment, "HOME": str(home), "PATH": str(home)}  # where it finds no browser to open
    del environment["TF_CLI_CONFIG_FILE"]
    program = pexpect.spawn(
        str(site.terraform), ["login", site.host], cwd=str(home), env=environment, timeout=60, encoding="utf-8"
    )
    program.expect("Enter a value:")
    program.sendline("yes")
    program.expect(r"(https://[^\s']+/oauth/authorize\?[^\s']+)['\s]")
    return program


async def see_the_run(site: Site, printed: str, email: str) -> None:
    """Opens the address that terraform printed, as somebody who is not signed in."""
    found = re.search(rf"https://{site.host}(/app/default/w-\w+/runs/run-\w+)", printed)
    assert found, printed
    certificates = ssl.create_default_context(cafile=site.data / "ca.pem")
    async with Browser(f"https://{site.host}", verify=certificates) as browser:
        assert (await browser.open(found[0])).url.path == "/sign-in"
        page = await browser.submit(email=email, password=PASSWORD)
        assert page.url.path == found[1]
        for text in ("Planned and finished", "1 to add", "terraform_data.a: Plan to create", "Terrapod"):
            assert text in page.text, page.text
        assert "@message" not in page.text
        whole = await browser.open(f"{found[1]}/logs/plan")
        assert whole.headers["content-type"] == "text/plain; charset=utf-8"
        assert "terraform_data.a: Plan to create" in whole.text


async def test_terraform_login_then_init_and_plan(site: Site, tmp_path: Path) -> None:
    email = f"{uuid.uuid4().hex[:8]}@example.org"
    made = users(site, "create", "--admin", "--email", email.upper())
    assert made.returncode == 0, made.stderr
    assert f"{email} can sign in now" in made.stdout
    program = login(site, tmp_path / "home")
    url = re.sub(r"\x1b\[[0-9;]*m", "", program.match[1])
    async with Browser(
        f"https://{site.host}", verify=ssl.create_default_context(cafile=site.data / "ca.pem")
    ) as browser:
        await browser.open(url)
        await browser.submit(email=email, password=PASSWORD)
        assert "terraform login" in browser.page.text
        assert "__Host-terrapod" in browser.client.cookies
        await browser.submit("allow")
        back = browser.left_to
        assert re.match(r"http://localhost:100\d\d/login\?code=", back)
        try:
            answer = await browser.client.get(back)
        except httpx.RemoteProtocolError:
            pass  # terraform takes the code, and may end its little server before it has answered
        else:
            assert answer.status_code == 200
            assert "close" in answer.text.lower() or "success" in answer.text.lower()
        program.expect("Success!")
        program.expect(pexpect.EOF)
        program.close()
        assert program.exitstatus == 0
        file = tmp_path / "home" / ".terraform.d" / "credentials.tfrc.json"
        token = json.loads(file.read_text())["credentials"][site.host]["token"]
        assert token.startswith("tpod_")
        folder = site.example(f"w-{uuid.uuid4().hex[:8]}", 'resource "terraform_data" "a" { input = "one" }\n')
        environment = {"HOME": str(tmp_path / "home"), "TF_CLI_CONFIG_FILE": ""}
        assert "successfully initialized" in site.ok(folder, "init", **environment)
        planned = site.ok(folder, "plan", "-no-color", **environment)
        assert "1 to add" in planned
        await see_the_run(site, planned, email)
        changed = users(site, "set-password", "--email", email, password="seven brass kettles on a ledge")
        assert changed.returncode == 0, changed.stderr
        assert (await browser.open("/account")).url.path == "/sign-in", "its sessions are over"
        assert (await browser.submit(email=email, password=PASSWORD)).status_code == 401
        page = await browser.submit(email=email, password="seven brass kettles on a ledge")
        assert page.url.path == "/account"


async def test_a_person_who_does_not_allow_it(site: Site, tmp_path: Path) -> None:
    email = f"{uuid.uuid4().hex[:8]}@example.org"
    assert users(site, "create", "--email", email).returncode == 0
    program = login(site, tmp_path / "home")
    url = re.sub(r"\x1b\[[0-9;]*m", "", program.match[1])
    async with Browser(
        f"https://{site.host}", verify=ssl.create_default_context(cafile=site.data / "ca.pem")
    ) as browser:
        await browser.open(url)
        await browser.submit(email=email, password=PASSWORD)
        await browser.submit("deny")
        assert "got nothing" in browser.page.text
        assert not browser.left_to
    program.close(force=True)  # it heeds no interrupt while it waits
    assert not (tmp_path / "home" / ".terraform.d" / "credentials.tfrc.json").exists()


def test_users_commands_refuse_what_is_not_good(site: Site) -> None:
    email = f"{uuid.uuid4().hex[:8]}@example.org"
    for password, said in (("short", "12 to 256"), ("password12345", "easy to guess"), (f"{email}", "easy to guess")):
        refused = users(site, "create", "--email", email, password=password)
        assert refused.returncode == 1
        assert said in refused.stderr
    assert users(site, "set-password", "--email", email).returncode == 1, "there is no such user"
    assert users(site, "create", "--email", "no address").returncode == 1
    assert users(site, "create", "--email", email).returncode == 0
    twice = users(site, "create", "--email", email)
    assert (twice.returncode, "already" in twice.stderr) == (1, True)
    assert "users create --admin" in site.log
