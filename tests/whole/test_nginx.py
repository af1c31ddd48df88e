"""The example of a proxy that ends TLS, in a real nginx: a signed long poll, a large upload, and addresses behind it."""

import asyncio
import contextlib
import os
import re
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trustme

from kit.postgres import free_port
from kit.serving import Running, running, tar, until
from kit.site import BIN
from terrapod_server.agents.model import Listener

EXAMPLE = Path(__file__).parents[2] / "packaging" / "nginx" / "terrapod.conf"
MIB = 1 << 20
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = pytest.mark.skipif(not NGINX, reason="nginx is not there")


def configuration(folder: Path, port: int, server_port: int) -> Path:
    """The example with ports of the test and a certificate of its authority."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
    text = EXAMPLE.read_text().replace("127.0.0.1:8443", f"127.0.0.1:{server_port}")
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
async def proxied(folder: Path) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A server behind nginx, and an administrator's client in front of it."""
    port, server_port = free_port(), free_port()
    main = configuration(folder, port, server_port)
    assert NGINX
    tested = await asyncio.create_subprocess_exec(NGINX, "-t", "-q", "-c", str(main))
    assert await tested.wait() == 0
    url = f"https://localhost:{port}"
    settings = {"port": server_port, "public_url": url, "trusted_proxies": ("127.0.0.1",)}
    nginx = await asyncio.create_subprocess_exec(NGINX, "-c", str(main), stderr=asyncio.subprocess.DEVNULL)
    try:
        async with (
            running(folder / "data", f"sqlite://{folder / 'terrapod.sqlite3'}", **settings) as server,
            httpx.AsyncClient(
                base_url=url, verify=ssl.create_default_context(cafile=folder / "ca.pem"), timeout=60,
                headers={"Authorization": f"Bearer {server.token}"},
            ) as client,
        ):  # fmt: skip

            async def is_there() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await client.get("/ready")).status_code == 200
                return False

            await until(is_there)
            yield server, client
    finally:
        nginx.terminate()
        assert await asyncio.wait_for(nginx.wait(), 20) == 0


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
