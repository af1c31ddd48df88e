"""The example of a proxy that ends TLS, in a real nginx: a signed long poll, a large upload, addresses behind it, and
two servers that are restarted in turn while runs go on."""

import asyncio
import contextlib
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from functools import partial
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import trustme

from kit import daemon, scripted
from kit.cli import Said
from kit.postgres import free_port
from kit.process import Process
from kit.serving import Running, running, tar, until
from kit.site import BIN, CLOUD
from terrapod_cli.following import FINAL
from terrapod_cli.logs import pieces
from terrapod_server.agents.model import Listener
from terrapod_server.kit.db.database import postgres_dsn
from terrapod_shared.client import Client

EXAMPLE = Path(__file__).parents[2] / "packaging" / "nginx" / "terrapod.conf"
MIB = 1 << 20
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is not there")


def configuration(folder: Path, port: int, *servers: int) -> Path:
    """The example with ports of the test and a certificate of its authority; one server or two."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
    text = EXAMPLE.read_text()
    for shown, own in zip_longest((8443, 8444), servers):
        line = f"    server 127.0.0.1:{shown} max_fails=0;\n"
        assert text.count(line) == 1
        text = text.replace(line, line.replace(str(shown), str(own)) if own else "")
    text = re.sub(r"/etc/terrapod/tls\.(pem|key)", str(folder / "tls.pem"), text)
    text = text.replace("terrapod.example.com", "localhost").replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{free_port()};")
    text = "".join(line for line in text.splitlines(keepends=True) if "listen [::]" not in line)
    (folder / "terrapod.conf").write_text(text)
    own = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{own}include {folder}/terrapod.conf;\n}}\n"
    )
    return main


@contextlib.asynccontextmanager
async def nginx(folder: Path, *servers: int) -> AsyncIterator[str]:
    """The example in front of these ports; its URL."""
    port = free_port()
    main = configuration(folder, port, *servers)
    assert NGINX
    tested = await asyncio.create_subprocess_exec(NGINX, "-t", "-q", "-c", str(main))
    assert await tested.wait() == 0
    process = await asyncio.create_subprocess_exec(NGINX, "-c", str(main), stderr=asyncio.subprocess.DEVNULL)
    try:
        yield f"https://localhost:{port}"
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


@contextlib.asynccontextmanager
async def proxied(folder: Path) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A server behind nginx, and an administrator's client in front of it."""
    server_port = free_port()
    async with nginx(folder, server_port) as url:
        settings = {"port": server_port, "public_url": url, "trusted_proxies": ("127.0.0.1",)}
        async with (
            running(folder / "data", f"sqlite://{folder / 'terrapod.sqlite3'}", **settings) as server,
            client_of(url, folder, server.token) as client,
        ):
            await until(lambda: is_there(client))
            yield server, client


def client_of(url: str, folder: Path, token: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url, verify=ssl.create_default_context(cafile=folder / "ca.pem"), timeout=60,
        headers={"Authorization": f"Bearer {token}"},
    )  # fmt: skip


async def is_there(client: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await client.get("/ready")).status_code == 200
    return False


async def test_a_listener_and_a_large_upload_go_through(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (server, client):
        home, log = tmp_path / "home", tmp_path / "log"
        home.mkdir()
        (home / "listener.toml").write_text("health_port = 0\npoll_s = 2.0\n")
        environment = {"PATH": os.environ["PATH"], "TERRAPOD_LISTENER_TOKEN": await server.join_token()}
        program, ca = str(BIN / "terrapod-listener"), str(tmp_path / "ca.pem")
        with log.open("wb") as file:
            argv = ("join", "--server", str(client.base_url), "--ca", ca, "--name", "one", "--home", str(home))
            join = await asyncio.create_subprocess_exec(program, *argv, env=environment, stdout=file, stderr=file)
            assert await join.wait() == 0, log.read_text()
            listener = await asyncio.create_subprocess_exec(
                program, "run", "--home", str(home), env={"PATH": os.environ["PATH"]}, stdout=file, stderr=file
            )
        await until(lambda: Listener.exists(name="one", free_slots__gt=0))

        workspace = (await server.workspace())["id"]
        made = await client.post(
            f"/api/v2/workspaces/{workspace}/configuration-versions",
            json={"data": {"attributes": {"auto-queue-runs": False}}},
        )
        upload = made.json()["data"]["attributes"]["upload-url"]
        assert upload.startswith(str(client.base_url))
        archive = tar({"main.tf": b"", "large": os.urandom(20 * MIB)})
        assert len(archive) > 20 * MIB
        assert (await client.put(upload, content=archive)).status_code == 200
        listener.terminate()
        assert await asyncio.wait_for(listener.wait(), 20) == 0, log.read_text()
        assert "no work" not in log.read_text()


async def test_the_client_is_who_nginx_saw_and_not_who_it_says_it_is(tmp_path: Path) -> None:
    async with proxied(tmp_path) as (_, client):
        forged = {"X-Forwarded-For": "203.0.113.9", "Authorization": "Bearer wrong"}
        assert (await client.get("/api/v2/account/details", headers=forged)).status_code == 401
        body = {"data": {"attributes": {"name": "w"}}}
        headers = {"X-Forwarded-For": "203.0.113.9"}
        made = await client.post("/api/v2/organizations/default/workspaces", json=body, headers=headers)
        assert made.status_code == 201

        async def is_recorded() -> bool:
            entries = await client.get("/api/v2/admin/audit-log")
            return "workspaces" in entries.text and "127.0.0.1" in entries.text

        await until(is_recorded)
        assert "203.0.113.9" not in (await client.get("/api/v2/admin/audit-log")).text


LINES = 40
#: Of the runs that go on meanwhile, so many are begun by the real CLI, and by ours as a program; the others by what is
#: inside of ours, since twenty programs would be a small machine's work alone.
BY_TERRAFORM, BY_PROGRAM, RUNS = 2, 2, 20
_ONLINE = "SELECT count(*) FROM listener WHERE id = $1 AND free_slots > 0"
#: Less is not the test: each server was restarted while all of them ran.
RESTARTS = 4


def counting(phase: str) -> str:
    """A script that takes some seconds, a numbered line after the other."""
    return f"i=0; while [ $i -lt {LINES} ]; do echo {phase} line $i of; i=$((i+1)); sleep 0.4; done\n"


def lines_of(text: str, phase: str) -> list[int]:
    return [int(number) for number in re.findall(rf"{phase} line (\d+) of", text)]


@pytest.mark.long
async def test_two_servers_are_restarted_in_turn_and_no_run_hears_of_it(
    postgres_url: str, terraform: Path, tmp_path: Path
) -> None:
    """Twenty applies through the proxy, by the real CLI and by ours: none fails, and no line of any log is missing."""
    first = Process(tmp_path / "one", postgres_url, TERRAPOD_TRUSTED_PROXIES="127.0.0.1")
    async with nginx(tmp_path, first.port, second_port := free_port()) as url:
        first.settings["TERRAPOD_PUBLIC_URL"] = url
        second = first.beside(tmp_path / "two")
        second.settings |= first.settings | second.settings | {"TERRAPOD_PORT": str(second_port)}
        second.port, second.url = second_port, f"http://127.0.0.1:{second_port}"
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        async with first.prepared() as server, client_of(f"{url}/api/v2/", tmp_path, server.token) as api:
            await first.start()
            await second.start()
            server.api, server.url = api, url
            database = await asyncpg.connect(postgres_dsn(postgres_url))
            try:
                async with contextlib.AsyncExitStack() as stack:
                    for name in ("l1", "l2"):
                        home = tmp_path / name
                        me = await daemon.joined(server, home, name, ca=tmp_path / "ca.pem", capacity=RUNS // 2)
                        await stack.enter_async_context(daemon.running_listener(home))
                        await until(partial(database.fetchval, _ONLINE, me))
                    await _applied_while_restarted(server, tmp_path, terraform, (first, second), database)
            finally:
                await database.close()
                await second.kill()
    for log in (first.log, second.log):
        assert " 500 " not in log


async def _applied_while_restarted(
    server: Running, folder: Path, terraform: Path, servers: tuple[Process, Process], database: Any
) -> None:
    runs = [await _folder(server, folder, terraform, number) for number in range(RUNS)]
    working = [asyncio.create_task(_run(server, folder, terraform, number)) for number in range(RUNS)]
    await until(lambda: database.fetchval("SELECT count(*) FROM run WHERE status = 'planning'"), 60)
    restarts = 0
    for each in cycle(servers):
        if all(task.done() for task in working):
            break
        each.terminate()
        await each.ended(60, is_cut_off=True)  # of a statement, by a database that waits no longer for a slow host
        await each.start()
        restarts += 1
    said = await asyncio.gather(*working)
    failed = [f"{name}: {done}" for name, done in zip(runs, said, strict=True) if done.code]
    assert not failed, f"{len(failed)} of {RUNS}, after {restarts} restarts:\n" + "\n\n".join(failed)
    assert restarts >= RESTARTS
    for name, done in zip(runs, said, strict=True):
        for phase in ("plan", "apply"):
            assert lines_of(done.out, phase) == list(range(LINES)), f"{name}, {phase}:\n{done.out}"
    applied = [row["id"] for row in await database.fetch("SELECT id FROM run WHERE status = 'applied'")]
    assert len(applied) == RUNS
    async with client_of(server.url, folder, server.token) as client:
        for run in applied:
            shown = (await client.get(f"/api/v2/runs/{run}/apply")).json()["data"]["attributes"]
            text = (await client.get(shown["log-read-url"], params={"limit": 1 << 20})).text
            assert lines_of(text, "apply") == list(range(LINES))


def _environment(server: Running, folder: Path) -> dict[str, str]:
    host = server.url.removeprefix("https://")
    credentials = folder / "terraform.rc"
    if not credentials.exists():  # once: a terraform that is starting reads it while the next run is begun
        credentials.write_text(f'credentials "{host}" {{\n  token = "{server.token}"\n}}\n')
    return {
        "TERRAPOD_ADDRESS": host, "TERRAPOD_TOKEN": server.token, "SSL_CERT_FILE": str(folder / "ca.pem"),
        "HOME": str(folder), "CHECKPOINT_DISABLE": "1", "TF_CLI_CONFIG_FILE": str(credentials),
        "TF_IN_AUTOMATION": "1",
    }  # fmt: skip


async def _folder(server: Running, folder: Path, terraform: Path, number: int) -> str:
    """A workspace and a folder whose runs count; its name."""
    name, place = f"w{number}", folder / f"w{number}"
    place.mkdir()
    await server.workspace(name, **{"terraform-version": scripted.VERSION})
    host = server.url.removeprefix("https://")
    (place / "main.tf").write_text(CLOUD.format(host=host, workspaces=f'name = "{name}"'))
    for phase in ("plan", "apply"):
        (place / f"{phase}.sh").write_text(counting(phase))
    if number < BY_TERRAFORM:
        done = await _called(terraform, "init", "-no-color", cwd=place, env=_environment(server, folder))
        assert done.code == 0, done
    return name


async def _run(server: Running, folder: Path, terraform: Path, number: int) -> Said:
    place, environment = folder / f"w{number}", _environment(server, folder)
    if number < BY_TERRAFORM:
        apply = ("apply", "-auto-approve", "-no-color", "-input=false")
        return await _called(terraform, *apply, cwd=place, env=environment)
    if number < BY_TERRAFORM + BY_PROGRAM:
        start = ("runs", "start", "-w", f"w{number}", "--auto-approve")
        return await _called(BIN / "terrapod", *start, cwd=place, env=environment)
    client = Client(server.url, server.token, ca=folder / "ca.pem", patience_s=120)
    try:
        return await _followed(client, place)
    finally:
        await client.close()


async def _followed(client: Client, place: Path) -> Said:
    """As `terrapod runs start` does it."""
    workspace = (await client.get(f"organizations/default/workspaces/{place.name}"))["id"]
    made = await client.send(
        "POST", f"workspaces/{workspace}/configuration-versions", "configuration-versions", {"auto-queue-runs": False}
    )
    archive = place / "archive"
    archive.write_bytes(tar({path.name: path.read_bytes() for path in sorted(place.glob("*.*"))}))
    await client.upload(made["attributes"]["upload-url"], archive)
    related = {"workspace": ("workspaces", workspace), "configuration-version": ("configuration-versions", made["id"])}
    run = (await client.send("POST", "runs", "runs", {"auto-apply": True}, related))["id"]
    text = b""
    for phase in ("plan", "apply"):
        text += b"".join(
            [piece async for piece in pieces(client, partial(client.get, f"runs/{run}/{phase}"), follow=True)]
        )

    async def final() -> str:
        status: str = (await client.get(f"runs/{run}"))["attributes"]["status"]
        return status if status in FINAL else ""

    status = await until(final, 60)
    return Said(int(status != "applied"), text.decode(), status)


async def _called(program: Path, *argv: str, cwd: Path, env: dict[str, str]) -> Said:
    process = await asyncio.create_subprocess_exec(
        str(program), *argv, cwd=cwd, env={"PATH": os.environ["PATH"], **env},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 300)
    return Said(process.returncode or 0, out.decode(), err.decode())
