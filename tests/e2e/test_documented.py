"""What README.md and docs/install.md tell a reader to type is typed: real server, real listener, real terraform."""

import asyncio
import contextlib
import json
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import readiness
import terraform_shim
import trustme

from kit.browser import Browser
from kit.documented import ROOT, Block, Shell, blocks
from kit.postgres import free_port
from kit.remote import wait_for
from kit.site import BIN
from terrapod_server.config.load import load

PASSWORD = "a heron stands in shallow water"
RESOURCE = 'resource "terraform_data" "a" { input = "one" }\n'
DOCUMENTS = ("README.md", "docs/install.md")


def in_order(document: str) -> Iterator[Block]:
    """The blocks that are run; each test takes them one after the other, to the last."""
    return iter([block for block in blocks(document) if block.is_run])


def environment(home: Path, terraform: Path) -> dict[str, str]:
    """Of a user who has terraform, and no browser that terraform would find."""
    return {
        "PATH": f"{terraform.parent}:{os.environ['PATH']}", "HOME": str(home), "BROWSER": "/bin/true",
        "CHECKPOINT_DISABLE": "1", "LC_ALL": "C.UTF-8",
        # the suite has set up everything: `make setup` only says what it would do
        "MAKEFLAGS": "n",
    }  # fmt: skip


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_says_what_it_is(document: str) -> None:
    found = blocks(document)
    assert any(block.is_run for block in found)
    assert all(block.text.strip() for block in found)


@pytest.mark.parametrize(("document", "number"), [("README.md", 1), ("docs/install.md", 0)])
def test_settings_that_are_shown_are_settings(document: str, number: int, tmp_path: Path) -> None:
    text = [block.text for block in blocks(document) if block.language == "toml"][number]
    issued = trustme.CA().issue_cert("terrapod.example.com")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls.pem")
    file = tmp_path / "server.toml"
    file.write_text(text.replace("/etc/terrapod", str(tmp_path)))
    assert load({}, file).public_url == "https://terrapod.example.com"


@pytest.fixture
def reader(tmp_path: Path, terraform: Path) -> SimpleNamespace:
    """Where a reader of README.md is: a clone in a folder with an odd name, a configuration, and what both are called here."""
    port, data, folder = free_port(), tmp_path / "you & me" / "terrapod-data", tmp_path / "config"
    other = tmp_path / "other"
    for each in (folder / "modules" / "vpc", data / "listener", other / "home", tmp_path / "home"):
        each.mkdir(parents=True, mode=0o700)
    written = {block.language: block.text for block in reversed(blocks("README.md"))}
    host = f"localhost:{port}"
    engines = written["toml"].replace("/usr/local/bin/terraform", str(terraform))
    assert f'version = "{terraform_shim.VERSION}"' in engines
    (data / "listener" / "listener.toml").write_text(
        f'{terraform_shim.settings()}{engines}\nfiles = ["{terraform}", "{terraform_shim.library()}"]\n'
    )
    (other / "home" / "listener.toml").write_text("health_port = 0\n")
    (folder / "main.tf").write_text(f"{written['hcl'].replace('localhost:8443', host)}\n{RESOURCE}")
    (folder / "modules" / "vpc" / "main.tf").write_text('output "a" { value = "a" }\n')
    place = {
        "/home/you/terrapod/terrapod-data": f"'{data}'", "./terrapod-data": f"'{data}'", "localhost:8443": host,
        "terrapod-server up": f"terrapod-server up --port {port}", "/var/lib/terrapod-listener": str(other / "home"),
        "SERVER:8443": f"127.0.0.1:{port}", "FOLDER": str(folder),
    }  # fmt: skip
    return SimpleNamespace(
        data=data, folder=folder, other=other, host=host, place=place,
        environment=environment(tmp_path / "home", terraform), scripts=tmp_path,
    )  # fmt: skip


@pytest.mark.slow
def test_the_readme_is_followed(reader: SimpleNamespace) -> None:
    text = in_order("README.md")
    server, user, other = (Shell(reader.scripts, reader.environment, reader.place) for _ in range(3))
    with server, user, other:
        first_apply(server, user, text, reader)
        second_host(server, user, other, text, reader)
        private_module(user, text, reader)
        signing_in(user, text, reader)
        stop(server)
    assert next(text, None) is None, "a block that is not run"


def stop(shell: Shell) -> str:
    """By Ctrl-C, as a person stops what runs in the foreground."""
    shell.terminal.sendintr()
    return shell.ended()


def first_apply(server: Shell, user: Shell, text: Iterator[Block], reader: SimpleNamespace) -> None:
    server.run(f"cd {ROOT}")
    server.begin(next(text).text)
    server.terminal.expect("In your shell:")
    server.terminal.expect("To sign in")
    exports = re.findall(r"^  (export (\w+)=.*?)\r?$", server.terminal.before, re.MULTILINE)
    server.terminal.expect(r"  (\S[^\r\n]*) users create [^\r\n]* --data ([^\r\n]*)")
    program, data = (server.terminal.match[number] for number in (1, 2))
    wait_for(lambda: readiness.has_engine(reader.data, reader.host))
    user.run(f"cd {reader.folder}; {program} check --help; ls {data}")  # as printed, from any folder
    typed = next(text).text
    assert [name for _, name in exports] == re.findall(r"^export (\w+)=", typed, re.MULTILINE)
    user.run("\n".join(line for line, _ in exports))
    printed = user.run("env | grep -E '^(SSL_CERT|TF_CLI|TERRAPOD_)'")
    user.begin(typed)
    user.terminal.expect("Enter a value:")
    user.terminal.sendline("yes")
    assert "Apply complete! Resources: 1 added" in user.ended()
    assert user.run("env | grep -E '^(SSL_CERT|TF_CLI|TERRAPOD_)'") == printed, "they are the lines that `up` printed"
    user.run(f"cd {ROOT}")
    user.begin(next(text).text)
    user.terminal.expect("Apply this plan")
    user.terminal.sendline("yes")
    user.ended()
    listed = user.run(".venv/bin/terrapod workspaces list")
    assert "another-workspace" in listed, listed


def second_host(server: Shell, user: Shell, other: Shell, text: Iterator[Block], reader: SimpleNamespace) -> None:
    stop(server)
    server.begin(next(text).text)
    server.terminal.expect("To sign in")
    wait_for(lambda: readiness.has_engine(reader.data, reader.host))
    assert "tpodjoin" not in user.run(next(text).text)
    other.run(f"cd {reader.other}; cp '{reader.data}/ca.pem' '{reader.data}/join-token' .; PATH={BIN}:$PATH")
    other.begin(next(text).text)
    other.terminal.expect("joined pool")
    other.terminal.expect("runs are")  # its signals are heard from here on
    listed = ".venv/bin/terrapod pools listeners default --json"
    wait_for(lambda: [each["status"] for each in json.loads(user.run(listed))] == ["online", "online"])
    stop(other)


def private_module(user: Shell, text: Iterator[Block], reader: SimpleNamespace) -> None:
    user.run(f"cd {reader.folder}")
    user.run(next(text).text)
    source = f"{reader.place['SERVER:8443']}/default/vpc/aws"
    (reader.folder / "uses").mkdir()
    (reader.folder / "uses" / "main.tf").write_text(f'module "vpc" {{\n  source = "{source}"\n}}\n')
    assert "successfully initialized" in user.run("(cd uses && terraform init -no-color)")
    user.run(f"cd {ROOT}")


def signing_in(user: Shell, text: Iterator[Block], reader: SimpleNamespace) -> None:
    user.begin(next(text).text)
    for question in ("Password: ", "Repeat for confirmation: "):
        user.terminal.expect(question)
        user.terminal.sendline(PASSWORD)
    assert "you@example.org can sign in now" in user.ended()
    user.begin(next(text).text)
    user.terminal.expect("Enter a value:")
    user.terminal.sendline("yes")
    user.terminal.expect(r"(https://[^\s']+/oauth/authorize\?[^\s']+)['\s]")
    asyncio.run(sign_in(reader, re.sub(r"\x1b\[[0-9;]*m", "", user.terminal.match[1])))
    assert "Success!" in user.ended()
    assert (
        f'"{reader.host}"' in (Path(reader.environment["HOME"]) / ".terraform.d" / "credentials.tfrc.json").read_text()
    )


async def sign_in(reader: SimpleNamespace, url: str) -> None:
    """In a browser, up to where it leads back to the terminal."""
    trusted = ssl.create_default_context(cafile=reader.data / "ca.pem")
    async with Browser(f"https://{reader.host}", verify=trusted) as browser:
        await browser.open(url)
        await browser.submit(email="you@example.org", password=PASSWORD)
        await browser.submit("allow")
        with contextlib.suppress(
            httpx.RemoteProtocolError
        ):  # terraform may end its little server before it has answered
            await browser.client.get(browser.left_to)


@pytest.mark.slow
def test_the_installation_is_followed(tmp_path: Path, terraform: Path) -> None:
    """But for what needs a system that may be changed; the services are started as their units do."""
    text = in_order("docs/install.md")
    written = {block.language: block.text for block in reversed(blocks("docs/install.md"))}
    settings, data, home = tmp_path / "server.toml", tmp_path / "data", tmp_path / "home"
    port, health = free_port(), free_port()
    settings.write_text(f"port = {port}\n{written['toml'].replace('/var/lib/terrapod', str(data))}\n")
    home.mkdir(mode=0o700)
    (home / "listener.toml").write_text(f"health_port = {health}\n")
    place = {
        "/etc/terrapod/server.toml": str(settings), "https://terrapod.example.com": f"http://127.0.0.1:{port} --home {home}",
        "runuser -u terrapod -- ": "", "runuser -u terrapod-listener -- ": "", "127.0.0.1:9846": f"127.0.0.1:{health}",
    }  # fmt: skip
    given = environment(tmp_path, terraform) | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    server, admin, listener = (Shell(tmp_path, given, place) for _ in range(3))
    with server, admin, listener:
        assert "the settings are good" in admin.run(next(text).text)
        server.begin("terrapod-server serve --config /etc/terrapod/server.toml")
        wait_for(lambda: is_ready(port))
        admin.begin(next(text).text)
        for question in ("Password: ", "Repeat for confirmation: "):
            admin.terminal.expect(question)
            admin.terminal.sendline(PASSWORD)
        admin.ended()
        admin.run(next(text).text)
        token = admin.run("terrapod-server tokens create --admin --config /etc/terrapod/server.toml").split()[-1]
        admin.run(f"export TERRAPOD_TOKEN={token} TERRAPOD_ADDRESS=http://127.0.0.1:{port}")
        found = re.search(r"shown this once:\s+(\S+)", admin.run("terrapod pools tokens create default"))
        assert found
        listener.begin(next(text).text)
        listener.terminal.sendline(found[1])
        assert "joined pool" in listener.ended()
        listener.begin(f"terrapod-listener run --home {home}")
        wait_for(lambda: is_ready(health))
        admin.run(next(text).text)
        for shell in (listener, server):
            stop(shell)
    assert next(text, None) is None, "a block that is not run"


def is_ready(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
    return False
