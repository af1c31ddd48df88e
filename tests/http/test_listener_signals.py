"""SIGTERM to a real listener at the moments when it hurts: nothing is lost, nothing hangs, nothing is done twice."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kit import scripted
from kit.daemon import is_alive, joined, listener, online, running_listener
from kit.serving import Running, state_bytes, tar, until
from terrapod_listener.link import identity
from terrapod_server.agents import listeners
from terrapod_server.agents.model import Listener
from terrapod_server.agents.protocol import work
from terrapod_server.runs.model import Phase, Run
from terrapod_shared import clock

WAITS = "echo $$ > {pid}; until [ -e {go} ]; do sleep 0.02; done"


class Gate:
    """A function of the server that waits, once it was called, until the gate is opened."""

    def __init__(self, do: Callable[..., Awaitable[Any]], *, is_after: bool = False) -> None:
        self._do, self._is_after = do, is_after
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self, *args: Any, **more: Any) -> Any:
        found = await self._do(*args, **more) if self._is_after else None
        self.reached.set()
        await self.opened.wait()
        return found if self._is_after else await self._do(*args, **more)


async def begun(server: Running, **scripts: str) -> str:
    """A run of these scripts."""
    workspace = (await server.workspace(**{"terraform-version": scripted.VERSION, "auto-apply": True}))["id"]
    files = {name.replace("_", "."): text.encode() for name, text in scripts.items()}
    await server.configuration(workspace, tar({"main.tf": b"", **files}))
    made = await server.run(workspace)
    assert made.status_code == 201, made.text
    return str(made.json()["data"]["id"])


async def ended(process: asyncio.subprocess.Process, timeout_s: float = 20) -> None:
    assert await asyncio.wait_for(process.wait(), timeout_s) == 0


def drains(me: str) -> Callable[[], Awaitable[bool]]:
    return lambda: Listener.exists(id=me, draining=True)


@pytest.mark.parametrize("signals", [1, 2])
async def test_during_init(pg_server: Running, tmp_path: Path, signals: int) -> None:
    """Once: the run goes on to the end of its phase, and no other is taken. Twice: it is interrupted."""
    pid, go = tmp_path / "pid", tmp_path / "go"
    me = await joined(pg_server, tmp_path / "home")
    process = await listener("run", "--home", str(tmp_path / "home"))
    await until(online(me))
    run = await begun(pg_server, init_sh=WAITS.format(pid=pid, go=go))
    await until(lambda: asyncio.to_thread(lambda: pid.exists() and pid.read_text().strip()))
    process.send_signal(signal.SIGTERM)
    await until(drains(me))
    other = await begun(pg_server)
    if signals == 2:
        process.send_signal(signal.SIGTERM)
    else:
        go.touch()
    await ended(process)
    status = await pg_server.status(run)
    assert status == ("canceled" if signals == 2 else "apply_queued"), "the apply is other work"
    assert await pg_server.status(other) == "plan_queued"
    assert not is_alive(int(pid.read_text()))
    assert not (tmp_path / "home" / "journal" / run).exists()


async def test_twice_during_the_upload_of_the_state(pg_server: Running, tmp_path: Path) -> None:
    raw = state_bytes(1, "line").decode()
    save = f'mkdir -p "$(dirname "$STATE")"; cat > "$STATE" <<\'END\'\n{raw}\nEND'
    me = await joined(pg_server, tmp_path / "home")
    store = pg_server.services.store
    put, gate = store.put, Gate(store.put)

    async def gated(key: str, *args: Any, **more: Any) -> Any:
        return await (gate if "/states/" in key else put)(key, *args, **more)

    store.put = gated  # type: ignore[method-assign]
    process = await listener("run", "--home", str(tmp_path / "home"))
    await until(online(me))
    run = await begun(pg_server, apply_sh=save)
    await asyncio.wait_for(gate.reached.wait(), 20)
    process.send_signal(signal.SIGTERM)
    await until(drains(me))
    process.send_signal(signal.SIGTERM)
    gate.opened.set()
    await ended(process)
    assert await pg_server.status(run) in ("applied", "canceled")
    workspace = (await Run.get(id=run)).workspace_id
    shown = (await pg_server.api.get(f"/workspaces/{workspace}/current-state-version")).json()["data"]["attributes"]
    assert shown["serial"] == 1
    assert not list((tmp_path / "home" / "spool").glob("*"))


async def test_during_its_own_renewal(pg_server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has the new key, and the answer never came: the next start goes on with the key that it kept."""
    home = tmp_path / "home"
    me = await joined(pg_server, home)
    before = await Listener.get(id=me)
    gate = Gate(listeners.renew, is_after=True)
    monkeypatch.setattr(listeners, "renew", gate)
    await Listener.filter(id=me).update(certificate_until=clock.now() + timedelta(hours=1))
    process = await listener("run", "--home", str(home))
    await asyncio.wait_for(gate.reached.wait(), 20)
    process.send_signal(signal.SIGTERM)
    await ended(process, 5)
    gate.opened.set()
    assert (await Listener.get(id=me)).public_key != before.public_key
    kept = identity.load(home)
    assert kept is not None
    assert kept.kept.next_key, "made and kept before it was asked for"
    async with running_listener(home):
        run = await begun(pg_server)
        await until(lambda: Run.exists(id=run, status="applied"), 40)
    kept = identity.load(home)
    assert kept is not None
    assert not kept.kept.next_key


async def test_during_the_answer_that_carries_work(
    pg_server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves at once; the offer that nobody took lapses, and somebody else has the work."""
    me = await joined(pg_server, tmp_path / "home")
    gate = Gate(work.build)
    monkeypatch.setattr(work, "build", gate)
    process = await listener("run", "--home", str(tmp_path / "home"))
    await until(online(me))
    run = await begun(pg_server)
    await asyncio.wait_for(gate.reached.wait(), 20)
    process.send_signal(signal.SIGTERM)
    await ended(process, 5)
    gate.opened.set()
    assert await pg_server.status(run) == "plan_queued"
    assert not (tmp_path / "home" / "journal" / run).exists()
    await Phase.filter(run_id=run, lease_state="offered").update(lease_until=-1.0)
    async with running_listener(tmp_path / "home"):
        await until(lambda: Run.exists(id=run, status="applied"), 40)
    assert (await Phase.get(run_id=run, kind="plan")).lease_number > 1
