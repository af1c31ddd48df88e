"""Which keys are in use is known to the database: a server without them does not start, and makes no other ones."""

import asyncio
import base64
import contextlib
import os
import shutil
import subprocess
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.postgres import free_port
from kit.serving import Running, running, state_bytes, tar, until
from kit.site import BIN
from terrapod_server import app
from terrapod_server.config.load import load
from terrapod_server.kit.db import database
from terrapod_server.store.cipher import KeyRing


async def filled(server: Running) -> str:
    """A workspace with a variable, a state and a configuration; its id."""
    workspace: str = (await server.workspace("kept"))["id"]
    values = {"key": "secret", "value": "value", "category": "terraform", "sensitive": False}
    assert (await server.post(f"/workspaces/{workspace}/vars", values)).status_code == 201
    raw = state_bytes(outputs={"one": {"value": "1", "type": "string"}})
    assert (await server.state(workspace, raw, state=base64.b64encode(raw).decode())).status_code == 201
    await server.configuration(workspace, tar({"main.tf": b"# a\n"}))
    return workspace


async def reads(server: Running, workspace: str) -> None:
    found = (await server.api.get(f"/workspaces/{workspace}/vars")).json()["data"]
    assert found[0]["attributes"]["value"] == "value"
    answer = await server.api.get(f"/workspaces/{workspace}/current-state-version")
    raw = await server.api.get(answer.json()["data"]["attributes"]["hosted-state-download-url"], follow_redirects=True)
    assert raw.status_code == 200
    assert raw.json()["lineage"] == "aaaa"


async def in_database(url: str, *statements: str) -> None:
    await database.open_(url, app.MODELS)
    try:
        for statement in statements:
            await database.query(statement)
    finally:
        await database.close()


async def as_before(url: str) -> None:
    """The database as a release before the table of keys left it."""
    await in_database(
        url, "DROP TABLE encryption_key", "DELETE FROM tortoise_migrations WHERE name = '0012_encryption_keys'"
    )


async def refused(data: Path, url: str, *said: str) -> None:
    """A start says why, and leaves the key file as it is; so does `check`."""
    keys = data / "keys"
    before = keys.read_bytes() if keys.exists() else None
    with pytest.raises(app.Unusable) as caught:
        async with running(data, url):
            pass
    for text in (str(keys), *said):
        assert text in str(caught.value)
    done = await asyncio.to_thread(command, "check", data, url)
    assert (done.returncode, str(caught.value) in done.stderr) == (1, True), done.stderr
    assert (keys.read_bytes() if keys.exists() else None) == before


def command(name: str, data: Path, url: str, *more: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], "TERRAPOD_DATA": str(data), "TERRAPOD_DATABASE_URL": url}
    return subprocess.run(
        [BIN / "terrapod-server", *name.split(), *more], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("is_upgrade", [False, True], ids=["recorded", "upgraded"])
@pytest.mark.slow
async def test_a_server_without_its_keys_does_not_start(database_url: str, tmp_path: Path, is_upgrade: bool) -> None:
    data, kept = tmp_path / "data", tmp_path / "kept"
    keys = data / "keys"
    async with running(data, database_url) as server:
        workspace = await filled(server)
        (own,) = server.services.cipher.ids
    if is_upgrade:
        await as_before(database_url)
    shutil.copy(keys, kept)
    keys.unlink()
    await refused(data, database_url, "there is no key file", own)
    keys.write_text("")
    await refused(data, database_url, "needs a key")
    keys.unlink()
    KeyRing.create(keys)
    await refused(data, database_url, own, *KeyRing.load(keys).ids)
    keys.write_text(kept.read_text().partition(":")[0] + ":" + keys.read_text().partition(":")[2])
    await refused(data, database_url, own)
    shutil.copy(kept, keys)
    async with running(data, database_url) as server:
        await reads(server, workspace)
        assert (await server.api.get(f"{server.url}/ready")).status_code == 200
    keys.unlink()  # known from now on, whatever was before
    await refused(data, database_url, own)


@pytest.mark.slow
async def test_each_key_that_has_sealed_something_is_needed(database_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    keys, older = data / "keys", tmp_path / "older"
    async with running(data, database_url) as server:
        workspace = await filled(server)
    shutil.copy(keys, older)
    KeyRing.load(keys).rotate(keys)
    async with running(data, database_url) as server:
        await reads(server, workspace)
        new, old = server.services.cipher.ids
    both = keys.read_text()
    for is_upgrade in (False, True):
        if is_upgrade:  # the second key has sealed nothing but the audit log
            await as_before(database_url)
        shutil.copy(older, keys)  # as a backup of the host has it
        await refused(data, database_url, *([] if is_upgrade else [new]))
        keys.write_text(both.splitlines()[0])
        await refused(data, database_url, old)
    keys.write_text(both)
    async with running(data, database_url) as server:
        await reads(server, workspace)


@pytest.mark.slow
async def test_files_alone_tell_their_keys_too(database_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    keys = data / "keys"
    async with running(data, database_url, audit={"enabled": False}) as server:
        workspace = await server.workspace()
        for number in range(70):
            await server.configuration(workspace["id"], tar({"main.tf": b"# %d\n" % number}))
        (own,) = server.services.cipher.ids
    await as_before(database_url)
    keys.unlink()
    await refused(data, database_url, own)


async def test_a_database_without_anything_sealed_gets_its_first_keys(database_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert (await asyncio.to_thread(command, "check", data, database_url)).returncode == 0
    assert not data.exists()
    async with running(data, database_url, audit={"enabled": False}) as server:
        await server.workspace()
    await as_before(database_url)
    (data / "keys").unlink()
    async with running(data, database_url) as server:
        await filled(server)
        assert KeyRing.load(data / "keys").ids == server.services.cipher.ids


async def test_a_log_that_another_key_has_signed_is_enough(database_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(data, database_url) as server:
        await server.workspace()
    await as_before(database_url)
    (data / "keys").unlink()
    await refused(data, database_url, "audit log")


async def test_ready_looks_at_the_keys(database_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    keys = data / "keys"
    async with running(data, database_url) as server:
        kept = keys.read_bytes()

        async def ready() -> Any:
            answer = await server.api.get(f"{server.url}/ready")
            return answer.status_code, answer.json()["checks"].get("keys")

        assert await ready() == (200, None)
        keys.unlink()
        assert await ready() == (503, "unhealthy")
        keys.write_text("")
        assert await ready() == (503, "unhealthy")
        keys.write_bytes(kept)
        assert await ready() == (200, None)
        await database.query("INSERT INTO encryption_key (id, proof, recorded_at) VALUES ('00', '', '2026-01-01')")
        assert await ready() == (503, "unhealthy")


@pytest.mark.slow
async def test_keys_that_are_lost_can_be_given_up(database_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    keys = data / "keys"
    for is_upgrade in (False, True):
        async with running(data, database_url) as server:
            await server.workspace()
            values = {"key": "k", "value": "v", "category": "env"}
            for workspace in (await server.api.get("/organizations/default/workspaces")).json()["data"]:
                assert (await server.post(f"/workspaces/{workspace['id']}/vars", values)).status_code in {201, 422}
            lost = server.services.cipher.current.hex()
        if is_upgrade:
            await as_before(database_url)
        keys.unlink()
        shown = await asyncio.to_thread(command, "keys forget", data, database_url)
        assert (shown.returncode, lost in shown.stdout, "--yes" in shown.stdout) == (0, True, True), shown
        await refused(data, database_url, lost)
        done = await asyncio.to_thread(command, "keys forget", data, database_url, "--yes")
        assert (done.returncode, lost in done.stdout) == (0, True), done
    async with running(data, database_url) as server:
        await server.workspace()
    keys.unlink()
    await refused(data, database_url, *(await _named(database_url)))


async def _named(url: str) -> list[str]:
    await database.open_(url, app.MODELS)
    try:
        rows = await database.query("SELECT id FROM encryption_key WHERE forgotten_at IS NULL")
    finally:
        await database.close()
    return [row["id"] for row in rows]


@pytest.mark.slow
async def test_a_rotation_that_is_killed_leaves_keys_that_work(database_url: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(data, database_url) as server:
        workspace = await filled(server)
    environment = {"PATH": os.environ["PATH"], "TERRAPOD_DATA": str(data), "TERRAPOD_DATABASE_URL": database_url}
    for _ in range(3):
        left = set(data.glob(".keys.*"))
        process = await asyncio.create_subprocess_exec(BIN / "terrapod-server", "keys", "rotate", env=environment)
        ended = asyncio.create_task(process.wait())
        while not ended.done() and set(data.glob(".keys.*")) == left:  # noqa: ASYNC110  it is another process
            await asyncio.sleep(0)
        if not ended.done():  # it is writing
            process.kill()
        await ended
        async with running(data, database_url) as server:
            await reads(server, workspace)


async def test_two_servers_with_keys_of_their_own_do_not_share_a_new_database(
    postgres_url: str, tmp_path: Path
) -> None:
    async def serve(name: str) -> int:
        environment = {
            "PATH": os.environ["PATH"], "TERRAPOD_DATA": str(tmp_path / name), "TERRAPOD_PORT": str(ports[name]),
            "TERRAPOD_DATABASE_URL": postgres_url,
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            BIN / "terrapod-server", "serve", env=environment, stderr=asyncio.subprocess.PIPE
        )
        started[name] = process
        assert process.stderr is not None
        text = (await process.stderr.read()).decode()
        if await process.wait():
            assert "there is no key file" in text, text
            assert not (tmp_path / name / "keys").exists()
        return process.returncode or 0

    ports, started = {"one": free_port(), "two": free_port()}, dict[str, asyncio.subprocess.Process]()
    tasks = [asyncio.create_task(serve(name)) for name in ports]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=30)
    assert [task.result() for task in done] == [1]
    (name,) = [name for name, process in started.items() if process.returncode is None]

    async def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient() as client:
                return (await client.get(f"http://127.0.0.1:{ports[name]}/ready")).status_code == 200
        return False

    await until(is_ready)
    started[name].terminate()
    assert sorted(await asyncio.gather(*tasks)) == [0, 1]


async def test_a_start_beside_a_first_start_is_told_to_try_again(database_url: str, tmp_path: Path) -> None:
    """It had found no key file, and its own new key is not the one that the other has made meanwhile."""
    late = app.build(load({}, None, data=str(tmp_path / "data"), database_url=database_url))
    async with running(tmp_path / "data", database_url):
        pass
    kept = (tmp_path / "data" / "keys").read_bytes()

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: MutableMapping[str, Any]) -> None:
        assert message["type"] == "lifespan.startup.failed"

    await late.asgi({"type": "lifespan"}, receive, send)
    assert str(late.asgi.failure) == f"another process has just made {tmp_path}/data/keys: start again"
    assert (tmp_path / "data" / "keys").read_bytes() == kept


@pytest.mark.slow
async def test_up_says_it_too(tmp_path: Path) -> None:
    data, port = str(tmp_path / "data"), str(free_port())
    argv = [str(BIN / "terrapod-server"), "up", "--data", data, "--port", port, "--no-listener"]
    first = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    assert first.stdout is not None
    assert b"is ready at" in await first.stdout.readline()
    first.terminate()
    assert await first.wait() == 0
    (own,) = KeyRing.load(tmp_path / "data" / "keys").ids
    (tmp_path / "data" / "keys").unlink()
    again = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await again.communicate()
    assert (again.returncode, own in err.decode(), "Traceback" in err.decode(), out) == (1, True, False, b"")
    assert not (tmp_path / "data" / "keys").exists()
