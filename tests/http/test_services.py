"""Server and listener as services: what systemd is told, and what the listener's own port says. Real processes."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit import scripted
from kit.notified import Notified
from kit.postgres import free_port
from kit.serving import Running, running, tar, until
from kit.site import BIN
from terrapod_listener.daemon.status import PORT
from terrapod_listener.supervise import spool
from terrapod_server.runs.model import Run

NOWHERE = "http://127.0.0.1:9/"


@contextlib.asynccontextmanager
async def process(log: Path, *argv: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("ab") as file:
        started = await asyncio.create_subprocess_exec(
            str(BIN / argv[0]), *argv[1:], env={"PATH": os.environ["PATH"], **environment}, stdout=file, stderr=file
        )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def joined(server: Running, home: Path, settings: str = "") -> None:
    home.mkdir(exist_ok=True)
    engine = (
        f'[[engines]]\ntool = "terraform"\nversion = "{scripted.VERSION}"\npath = "{scripted.program(home / "bin")}"\n'
    )
    (home / "listener.toml").write_text(f"poll_s = 2.0\n{settings}{engine}")
    argv = ("join", "--server", server.url, "--token", await server.join_token(), "--name", "one", "--home", str(home))
    async with process(home / "log", "terrapod-listener", *argv) as join:
        assert await join.wait() == 0, (home / "log").read_text()


async def answer(number: int, path: str) -> httpx.Response | None:
    with contextlib.suppress(httpx.TransportError):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{number}") as client:
            return await client.get(path)
    return None


def answers(number: int, path: str, status: int) -> Any:
    async def ask() -> bool:
        found = await answer(number, path)
        return found is not None and found.status_code == status

    return ask


def metrics(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^([^#\s]+) (\S+)$", text, re.MULTILINE)}


async def test_systemd_hears_of_a_server(tmp_path: Path) -> None:
    number = free_port()
    settings = {
        "TERRAPOD_DATA": str(tmp_path),
        "TERRAPOD_PORT": str(number),
        "TERRAPOD_ENGINES__TERRAFORM_URL": NOWHERE,
    }
    with Notified(tmp_path / "notify") as systemd:
        told = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"}
        async with process(tmp_path / "log", "terrapod-server", "serve", **settings, **told) as server:
            await systemd.hears("READY=1")
            assert await answers(number, "/health", 200)()  # at once
            assert f"STATUS=Serves http://127.0.0.1:{number}" in systemd.said
            await systemd.hears("WATCHDOG=1")
            assert "STOPPING=1" not in systemd.said
            server.terminate()
            await systemd.hears("STOPPING=1")
            assert await asyncio.wait_for(server.wait(), 20) == 0


@pytest.mark.parametrize("command", [("serve",), ("up", "--plain-http", "--no-listener")])
async def test_a_port_that_is_taken_ends_the_server_and_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        up = command[0] == "up"
        argv = (*command, "--data", str(tmp_path / "data"), "--port", number) if up else command
        settings = {} if up else {"TERRAPOD_DATA": str(tmp_path / "data"), "TERRAPOD_PORT": number}
        async with process(tmp_path / "log", "terrapod-server", *argv, **settings) as server:
            assert await asyncio.wait_for(server.wait(), 20) == 1
    text = (tmp_path / "log").read_text()
    assert f"Error: 127.0.0.1 port {number} cannot be listened on: Address already in use" in text
    assert "Traceback" not in text


async def test_systemd_and_the_port_tell_of_a_listener(pg_server: Running, tmp_path: Path) -> None:
    home, number = tmp_path / "home", free_port()
    await joined(pg_server, home, f"health_port = {number}\n")
    spooled = spool.place(home, "run-x", 3)
    spooled.parent.mkdir(parents=True)
    spooled.write_bytes(b"no state")
    with Notified(tmp_path / "notify") as systemd:
        told = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"}
        async with process(home / "log", "terrapod-listener", "run", "--home", str(home), **told) as listener:
            await systemd.hears("READY=1")
            await systemd.hears("STATUS=0 of 2 runs")
            await systemd.hears("WATCHDOG=1")
            await until(answers(number, "/ready", 200))
            go = tmp_path / "go"
            workspace = (await pg_server.workspace(**{"terraform-version": scripted.VERSION}))["id"]
            script = f"until [ -e {go} ]; do sleep 0.05; done\n".encode()
            await pg_server.configuration(workspace, tar({"main.tf": b"", "plan.sh": script}))
            run = (await pg_server.run(workspace)).json()["data"]["id"]
            await until(lambda: Run.exists(id=run, status="planning"))
            await systemd.hears("STATUS=1 of 2 runs")
            page = await answer(number, "/metrics")
            assert page is not None
            assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
            seen = metrics(page.text)
            assert seen['terrapod_listener_runs{phase="plan"}'] == 1
            assert seen["terrapod_listener_capacity"] == 2
            assert seen["terrapod_listener_spooled_states"] == 1
            assert seen["terrapod_listener_draining"] == 0
            assert 0 <= seen["terrapod_listener_heartbeat_age_seconds"] < 40
            assert seen["terrapod_listener_certificate_expiry_timestamp_seconds"] > seen["process_start_time_seconds"]
            assert "run-" not in page.text
            listener.send_signal(signal.SIGUSR1)
            await systemd.hears("STATUS=Drains, 1 runs go on")
            assert "STOPPING=1" in systemd.said
            refused = await answer(number, "/ready")
            assert refused is not None
            assert refused.status_code == 503
            assert refused.json() == {"status": "not ready", "checks": {"server": "ok", "work": "draining"}}
            assert await answers(number, "/health", 200)()  # it is alive
            go.touch()
            assert await asyncio.wait_for(listener.wait(), 20) == 0


async def test_ended_phases_are_counted(pg_server: Running, tmp_path: Path) -> None:
    home, number = tmp_path / "home", free_port()
    await joined(pg_server, home, f"health_port = {number}\n")
    async with process(home / "log", "terrapod-listener", "run", "--home", str(home)):
        await until(answers(number, "/ready", 200))
        workspace = (await pg_server.workspace(**{"terraform-version": scripted.VERSION}))["id"]
        await pg_server.configuration(workspace, tar({"main.tf": b"", "plan.sh": b"exit 1\n"}))
        run = (await pg_server.run(workspace)).json()["data"]["id"]
        await until(lambda: Run.exists(id=run, status="errored"))

        async def is_counted() -> bool:
            page = await answer(number, "/metrics")
            name = 'terrapod_listener_phases_ended_total{phase="plan",outcome="errored"}'
            return page is not None and metrics(page.text).get(name) == 1

        await until(is_counted)


async def test_a_server_that_is_away_makes_a_listener_not_ready_and_no_failed_start(tmp_path: Path) -> None:
    home, number, port = tmp_path / "home", free_port(), free_port()
    url = f"sqlite://{tmp_path / 'terrapod.sqlite3'}"
    async with running(tmp_path / "data", url, port=port) as server:
        await joined(server, home, f"health_port = {number}\n")
    with Notified(tmp_path / "notify") as systemd:
        told = {"NOTIFY_SOCKET": systemd.address}
        async with process(home / "log", "terrapod-listener", "run", "--home", str(home), **told) as listener:
            await systemd.hears("READY=1")
            await systemd.hears(f"the server does not answer: http://127.0.0.1:{port} cannot be reached")
            found = await answer(number, "/ready")
            assert found is not None
            assert found.status_code == 503
            assert "cannot be reached" in found.json()["checks"]["server"]
            async with running(tmp_path / "data", url, port=port):
                await until(answers(number, "/ready", 200))
                assert systemd.said[-1] == "STATUS=0 of 2 runs"
                listener.terminate()
                assert await asyncio.wait_for(listener.wait(), 20) == 0


async def test_a_port_of_the_settings_that_is_taken_is_an_error(pg_server: Running, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        await joined(pg_server, home, f"health_port = {number}\n")
        async with process(home / "log", "terrapod-listener", "run", "--home", str(home)) as listener:
            assert await asyncio.wait_for(listener.wait(), 20) == 1
        said = (home / "log").read_text()
        assert f"health_port: cannot listen on 127.0.0.1 port {number}: Address already in use; end the program" in said
        assert "Traceback" not in said
        (home / "listener.toml").write_text(
            f'health_port = {number}\nhealth_host = "192.0.2.1"\nhealth_public = true\n'
        )
        async with process(home / "log", "terrapod-listener", "run", "--home", str(home)) as listener:
            assert await asyncio.wait_for(listener.wait(), 20) == 1
        said = (home / "log").read_text()
        assert f"192.0.2.1 port {number}: Cannot assign requested address; set another port, or health_host" in said


async def test_a_taken_default_port_costs_another(pg_server: Running, tmp_path: Path) -> None:
    """Whoever has it: this test, or another listener of the host."""
    home = tmp_path / "home"
    with contextlib.ExitStack() as stack, Notified(tmp_path / "notify") as systemd:
        with contextlib.suppress(OSError):
            stack.enter_context(socket.create_server(("127.0.0.1", PORT)))
        await joined(pg_server, home)
        told = {"NOTIFY_SOCKET": systemd.address}
        async with process(home / "log", "terrapod-listener", "run", "--home", str(home), **told) as listener:
            await systemd.hears("STATUS=0 of 2 runs")
            said = re.search(rf"health and metrics are on 127\.0\.0\.1 port (\d+): port {PORT} is taken", log(home))
            assert said, log(home)
            found = await answer(int(said[1]), "/ready")
            assert found is not None
            assert found.status_code == 200
            status = await asyncio.create_subprocess_exec(
                str(BIN / "terrapod-listener"), "status", "--home", str(home), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await status.communicate()
            assert f"health:      127.0.0.1:{said[1]}\n" in out.decode()
            listener.terminate()
            assert await asyncio.wait_for(listener.wait(), 20) == 0


def log(home: Path) -> str:
    return (home / "log").read_text()
