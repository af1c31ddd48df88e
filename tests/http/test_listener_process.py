"""A listener's process against a server in the test's own loop: what it does when its identity changes under it."""

import asyncio
import contextlib
import os
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from kit import scripted
from kit.daemon import is_alive, joined, listener, online, running_listener
from kit.serving import Running, tar, until
from kit.site import BIN
from terrapod_server.agents.model import Listener
from terrapod_server.runs.model import Phase, Run
from terrapod_shared import clock


@pytest.mark.sqlite_alone(reason="the listener's end; what it calls is in test_listeners and test_protocol, on both")
async def test_an_idle_listener_that_the_server_drains_leaves(server: Running, tmp_path: Path) -> None:
    me = await joined(server, tmp_path / "home")
    process = await listener("run", "--home", str(tmp_path / "home"))
    try:
        await until(online(me))
        assert (await server.api.post(f"/listeners/{me}/actions/drain")).status_code == 200
        assert await asyncio.wait_for(process.wait(), 15) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


@pytest.mark.sqlite_alone(reason="the listener's end; what it calls is in test_listeners and test_protocol, on both")
async def test_a_certificate_is_renewed_when_the_server_says_so(server: Running, tmp_path: Path) -> None:
    """The host's own clock may be wrong by days."""
    me = await joined(server, tmp_path / "home")
    before = await Listener.get(id=me)
    await Listener.filter(id=me).update(certificate_until=clock.now() + timedelta(hours=1))
    async with running_listener(tmp_path / "home"):
        await until(lambda: Listener.filter(id=me).exclude(certificate_serial=before.certificate_serial).exists())
        now = await Listener.get(id=me)
        assert now.public_key != before.public_key
        assert now.certificate_until > clock.now() + timedelta(hours=20)
        await until(online(me))


@pytest.mark.slow
@pytest.mark.sqlite_alone(reason="the listener's end; what it calls is in test_listeners and test_protocol, on both")
async def test_who_was_removed_and_joined_again_goes_on_without_a_restart(server: Running, tmp_path: Path) -> None:
    first = await joined(server, tmp_path / "home")
    async with running_listener(tmp_path / "home"):
        await until(online(first))
        assert (await server.api.delete(f"/listeners/{first}")).status_code == 204
        second = await joined(server, tmp_path / "home")
        assert second != first
        await until(online(second))
        workspace = (await server.workspace(**{"terraform-version": scripted.VERSION}))["id"]
        await server.configuration(workspace)
        run = (await server.run(workspace)).json()["data"]["id"]
        await until(lambda: Run.exists(id=run, status="planned"))


@pytest.mark.sqlite_alone(reason="the listener's end; what it calls is in test_listeners and test_protocol, on both")
async def test_the_log_says_how_long_the_run_waited(server: Running, tmp_path: Path) -> None:
    """Behind the three header lines, which the CLI drops of an apply's log."""
    await joined(server, tmp_path / "home")
    await Listener.filter(name="one").update(  # it announced the engine, and is gone
        local_engines=[{"tool": "terraform", "version": scripted.VERSION, "sha256": "0" * 64}]
    )
    workspace = (await server.workspace(**{"terraform-version": scripted.VERSION}))["id"]
    await server.configuration(workspace)
    run = (await server.run(workspace)).json()["data"]["id"]
    before = clock.stamp(clock.now() - timedelta(seconds=200))
    await Phase.filter(run_id=run, kind="plan").update(status_timestamps={"queued-at": before})
    async with running_listener(tmp_path / "home"):
        await until(lambda: Run.exists(id=run, status="planned"))
    plan = (await server.api.get(f"/runs/{run}/plan")).json()["data"]["attributes"]
    lines = (await server.api.get(plan["log-read-url"])).text.splitlines()
    assert lines[0].startswith("\x02Terrapod listener one")
    assert lines[3].startswith("Waited 3 min 2"), lines[:5]
    assert lines[3].endswith(" for a listener.")


@pytest.mark.parametrize("is_ended", [False, True])
@pytest.mark.slow
async def test_a_listener_that_was_paused_in_a_plan_changes_nothing(
    server: Running, tmp_path: Path, *, is_ended: bool
) -> None:
    """Its plan is another listener's when it wakes up. `is_ended`: its terraform was ready by then."""
    pids, go = tmp_path / "pids", tmp_path / "go"
    script = f"echo $$ >> {pids}; n=$(wc -l < {pids}); echo number $n; until [ -e {go}.$n ]; do sleep 0.02; done; echo end $n"
    first, second = await joined(server, tmp_path / "1", "one"), await joined(server, tmp_path / "2", "two")
    workspace = (await server.workspace(**{"terraform-version": scripted.VERSION, "auto-apply": True}))["id"]

    async def text() -> str:
        url = (await server.api.get(f"/runs/{run}/plan")).json()["data"]["attributes"]["log-read-url"]
        return (await server.api.get(url, params={"limit": 4_000_000})).text

    async def says(what: str) -> bool:
        return what in await text()

    async with running_listener(tmp_path / "1") as one:
        await until(online(first))
        await server.configuration(workspace, tar({"main.tf": b"", "plan.sh": script.encode()}))
        run = (await server.run(workspace)).json()["data"]["id"]
        await until(lambda: says("number 1"))
        one.send_signal(signal.SIGSTOP)
        try:
            await Phase.filter(run_id=run, kind="plan").update(lease_until=-1.0)
            async with running_listener(tmp_path / "2"):
                await until(lambda: says("number 2"))
                Path(f"{go}.1").touch() if is_ended else None
                engine = int(pids.read_text().split()[0])
                await until(lambda: _answer(is_alive(engine) is not is_ended))
                before = await Phase.get(run_id=run, kind="plan")
                one.send_signal(signal.SIGCONT)
                await until(lambda: _answer(not (tmp_path / "1" / "journal" / run).exists()))
                assert not is_alive(engine)
                assert "end 1" not in await text()
                now = await Phase.get(run_id=run, kind="plan")
                assert (now.lease_number, now.lease_listener_id, now.lease_state, now.digests) == (
                    before.lease_number, second, "leased", {},
                )  # fmt: skip
                Path(f"{go}.2").touch()
                await until(lambda: Run.exists(id=run, status="applied"))
                assert "end 2" in await text()
        finally:
            one.send_signal(signal.SIGCONT)
        Path(f"{go}.3").touch()
        run = (await server.run(workspace)).json()["data"]["id"]
        await until(lambda: Run.exists(id=run, status="applied"))
        assert (await Phase.get(run_id=run, kind="plan")).lease_listener_id == first, "it goes on with other work"


async def _answer(value: bool) -> bool:
    return value


@pytest.mark.slow
@pytest.mark.sqlite_alone(reason="the listener's end; what it calls is in test_listeners and test_protocol, on both")
async def test_the_join_token_comes_from_a_file_or_a_pipe(server: Running, tmp_path: Path) -> None:
    """Whoever looks at the host's processes sees no token."""
    file = tmp_path / "token"
    file.write_text(f"{await server.join_token()}\n")
    sources: tuple[tuple[list[str], str, dict[str, str]], ...] = (
        (["--token-file", str(file)], "", {}),
        (["--token-stdin"], f"{await server.join_token()}\n", {}),
        ([], "", {"TERRAPOD_LISTENER_TOKEN": await server.join_token()}),
    )
    for number, (argv, typed, environment) in enumerate(sources):
        process = await asyncio.create_subprocess_exec(
            str(BIN / "terrapod-listener"), "join", "--server", server.url, "--name", f"n{number}", "--home",
            str(tmp_path / f"home{number}"), *argv, env={"PATH": os.environ["PATH"], **environment},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said = (await process.communicate(typed.encode()))[0].decode()
        assert (process.returncode, f"as n{number}" in said, "tpodjoin" in said) == (0, True, False), said
    assert await Listener.filter(name__in=["n0", "n1", "n2"]).count() == 3
