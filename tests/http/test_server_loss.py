"""The server is killed around the commit of a state, or comes back from an older backup: no state is lost or doubled."""

import asyncio
import contextlib
import hashlib
import json
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from kit import scripted
from kit.daemon import joined, listener, running_listener
from kit.phases import plan_it, take
from kit.process import Process
from kit.serving import Running, state_bytes, tar, until
from terrapod_shared import errors, wire

#: The server, which is gone as soon as the bytes of a state are stored: `before` its row says so, or `after`.
KILLED = """
import os, signal, sys

from terrapod_server import __main__ as server
from terrapod_server.states import actions

when, real = sys.argv.pop(1), actions._finalize


async def finalize(*args):
    if when == "after":
        await real(*args)
    os.kill(os.getpid(), signal.SIGKILL)


actions._finalize = finalize
server.main()
"""


def killed(when: str) -> list[str]:
    return [sys.executable, "-c", KILLED, when]


async def serial(server: Running, workspace: str) -> int:
    """Of the current state; 0 where there is none."""
    with contextlib.suppress(httpx.TransportError):
        answer = await server.api.get(f"/workspaces/{workspace}/current-state-version")
        if answer.status_code == 200:
            return int(answer.json()["data"]["attributes"]["serial"])
    return 0


async def versions(server: Running, workspace: str) -> list[str]:
    answer = await server.api.get(f"/workspaces/{workspace}")
    name = answer.json()["data"]["attributes"]["name"]
    query = f"filter[workspace][name]={name}&filter[organization][name]=default"
    found = (await server.api.get(f"/state-versions?{query}")).json()["data"]
    return [each["attributes"]["status"] for each in found]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.slow
async def test_a_person_sends_a_state_again(database_url: str, tmp_path: Path, when: str) -> None:
    (tmp_path / "data").mkdir()
    process = Process(tmp_path / "data", database_url)
    async with process.prepared() as server:
        await process.start(program=killed(when))
        workspace = (await server.workspace())["id"]
        assert (await server.api.post(f"/workspaces/{workspace}/actions/lock", json={})).status_code == 200
        raw = state_bytes(1)
        url = (await server.state(workspace, raw)).json()["data"]["attributes"]["hosted-state-upload-url"]
        with pytest.raises(httpx.TransportError):
            await server.api.put(url, content=raw)
        assert process.process is not None
        await asyncio.wait_for(process.process.wait(), 10)
        await process.start()
        assert await serial(server, workspace) == (1 if when == "after" else 0), "all of it or nothing"
        for _ in range(2):
            assert (await server.api.put(url, content=raw)).status_code == 200
        assert await serial(server, workspace) == 1
        assert await versions(server, workspace) == ["finalized"]
        shown = (await server.api.get(f"/workspaces/{workspace}/current-state-version")).json()["data"]["attributes"]
        assert (await server.api.get(shown["hosted-state-download-url"], follow_redirects=True)).content == raw


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.slow
async def test_a_listener_sends_a_state_again(database_url: str, tmp_path: Path, when: str) -> None:
    (tmp_path / "data").mkdir()
    process = Process(tmp_path / "data", database_url)
    async with process.prepared() as server:
        await process.start(program=killed(when))
        one = await server.listener(tmp_path / "home")
        workspace = (await server.workspace(**{"auto-apply": True}))["id"]
        await server.configuration(workspace)
        run = (await server.run(workspace)).json()["data"]["id"]
        await plan_it(one, await take(one), tmp_path)
        work = await take(one)
        lease = work.lease.number
        await one.report(run, wire.Report(phase="apply", status="applying"), lease)
        raw, path = state_bytes(1, resources=1), tmp_path / "state"
        path.write_bytes(raw)
        target = f"{one.base}/runs/{run}/state?serial=1&lineage=aaaa&md5={hashlib.md5(raw).hexdigest()}"
        with pytest.raises(errors.Unavailable):
            await one.call("PUT", target, file=path, lease=lease)
        await process.start()
        for _ in range(2):
            assert (await one.call("PUT", target, file=path, lease=lease)).status_code == 200
        report = wire.Report(phase="apply", status="applied", state="uploaded")
        assert (await one.report(run, report, lease)).status == "applied"
        found = await versions(server, workspace)
        assert sorted({*found}) == (["discarded", "finalized"] if when == "before" else ["finalized"])
        assert found.count("finalized") == 1
        assert await serial(server, workspace) == 1


#: Saves two states, each when the test lets it.
APPLY = """mkdir -p "$(dirname "$STATE")"
save() {{ cat > "$STATE.new"; mv "$STATE.new" "$STATE"; }}
until [ -e {folder}/go-1 ]; do sleep 0.02; done
save <<'END'
{one}
END
until [ -e {folder}/go-2 ]; do sleep 0.02; done
save <<'END'
{two}
END
"""


@pytest.mark.parametrize("when", ["before the run", "while it applied"])
@pytest.mark.slow
async def test_a_server_from_an_older_backup_costs_no_state_that_a_listener_holds(tmp_path: Path, when: str) -> None:
    data, backup, home = tmp_path / "data", tmp_path / "backup", tmp_path / "home"
    data.mkdir()
    process = Process(data, f"sqlite://{data / 'terrapod.sqlite3'}")

    async def saved() -> None:
        await process.kill()
        shutil.copytree(data, backup)
        await process.start()

    async def restored() -> None:
        await process.kill()
        shutil.rmtree(data)
        shutil.copytree(backup, data)
        await process.start()

    states = {word: state_bytes(n, "line", resources=n).decode() for n, word in enumerate(("one", "two"), 1)}
    async with process.prepared() as server:
        await process.start()
        await joined(server, home)
        async with running_listener(home):
            workspace = (await server.workspace(**{"terraform-version": scripted.VERSION, "auto-apply": True}))["id"]
            script = APPLY.format(folder=tmp_path, **states).encode()
            await server.configuration(workspace, tar({"main.tf": b"", "apply.sh": script}))
            await until(knows_engine(server))
            if when == "before the run":
                await saved()
            run = (await server.run(workspace)).json()["data"]["id"]
            await until(lambda: has(server, run, "applying"), 40)
            if when == "while it applied":
                await saved()
            (tmp_path / "go-1").touch()
            await until(is_(server, workspace, 1), 60)
            await restored()
            assert await serial(server, workspace) == 0, "what the listener sent is forgotten"
            (tmp_path / "go-2").touch()
            await until(lambda: asyncio.to_thread(lambda: not (home / "journal" / run).exists()), 60)
            if when == "while it applied":
                assert await server.status(run) == "applied"
                assert await serial(server, workspace) == 2
                assert not list((home / "spool").glob("*"))
            else:  # nobody there knows of the run, and a state is nobody's who is not asked for it
                assert (await server.api.get(f"/runs/{run}")).status_code == 404
                target = tmp_path / "rescued"
                rescue = await listener("rescue", run, "--home", str(home), "--output", str(target))
                assert await rescue.wait() == 0
                assert json.loads(target.read_text())["serial"] == 2
            other = (await server.workspace(**{"terraform-version": scripted.VERSION, "auto-apply": True}))["id"]
            await server.configuration(other)
            later = (await server.run(other)).json()["data"]["id"]
            await until(lambda: has(server, later, "applied"), 60)


def is_(server: Running, workspace: str, number: int) -> Callable[[], Awaitable[bool]]:
    async def has() -> bool:
        return await serial(server, workspace) == number

    return has


def knows_engine(server: Running) -> Callable[[], Awaitable[bool]]:
    async def knows() -> bool:
        pool = await server.pool_id()
        return scripted.VERSION in (await server.api.get(f"/agent-pools/{pool}/listeners")).text

    return knows


async def has(server: Running, run: str, status: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return await server.status(run) == status
    return False
