"""An apply that nobody confirms waits for who reads the plan's log, as the terraform CLI does; and never for long."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from kit.phases import plan_it, take
from kit.process import Process
from kit.serving import Running, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_listener.link.identity import Identity
from terrapod_server.runs import leases, readers
from terrapod_server.runs.model import Phase, Run
from terrapod_shared import wire

#: What the terraform CLI says of itself with `cloud` and with `backend "remote"`.
CLI = ({"Terraform-Version": "1.11.4", "X-Terraform-Integration": "cloud"}, {"Terraform-Version": "1.11.4"})
ETX = b"\x03"


async def begin(server: Running, **headers: str) -> str:
    workspace = (await server.workspace(**{"auto-apply": True}))["id"]
    await server.configuration(workspace)
    server.api.headers.update(headers)
    answer = await server.run(workspace)
    for name in headers:
        del server.api.headers[name]
    assert answer.status_code == 201, answer.text
    run: str = answer.json()["data"]["id"]
    return run


async def read_log(server: Running, run: str, phase: str = "plan") -> bytes:
    """All that is there, by a client of its own: the URL is the right to read it."""
    url = (await server.api.get(f"/runs/{run}/{phase}")).json()["data"]["attributes"]["log-read-url"]
    return (await server.api.get(url, headers={"Authorization": ""})).content


async def offered(listener: ListenerClient) -> wire.Work | None:
    """What is offered now."""
    return await listener.next_work(0)


async def test_an_apply_nobody_reads_is_offered_at_once(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    run = await begin(server)
    await plan_it(listener, await take(listener), tmp_path)
    work = await offered(listener)
    assert work
    assert (work.run_id, work.phase) == (run, "apply")
    assert (await Run.get(id=run)).awaited_read == ""


async def test_an_apply_waits_until_its_reader_has_read_the_end_and_the_run(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    run = await begin(server)
    work = await take(listener)
    for _ in range(3):
        assert not (await read_log(server, run)).endswith(ETX)
    revision = (await Run.get(id=run)).revision
    for _ in range(10):
        await read_log(server, run)
    assert (await Run.get(id=run)).revision == revision, "one write, however often the log is read"
    await plan_it(listener, work, tmp_path)
    assert await server.status(run) == "apply_queued"
    assert await offered(listener) is None, "the run was read, but not after the log's end"
    assert (await read_log(server, run)).endswith(ETX)
    assert await offered(listener) is None
    shown = await server.api.get(f"/runs/{run}", params={"include": "workspace,plan"})
    assert shown.json()["data"]["attributes"]["status"] == "apply_queued"
    assert await offered(listener) is None, "the CLI reads it once more"
    assert await server.status(run) == "apply_queued"
    released = await offered(listener)
    assert released
    assert (released.run_id, released.phase) == (run, "apply")


async def test_a_listener_that_polls_is_called_when_the_reader_is_done(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    run = await begin(server)
    await read_log(server, run)
    await plan_it(listener, await take(listener), tmp_path)
    async with polling(listener) as polled:
        await until(lambda: is_idle(server, listener))
        await read_log(server, run)
        begun = time.monotonic()
        await server.status(run)
        work = await polled
    assert work
    assert work.phase == "apply"
    assert time.monotonic() - begun < readers.PATIENCE_S


async def test_a_reader_that_goes_away_costs_five_seconds(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    run = await begin(server)
    await read_log(server, run)
    await plan_it(listener, await take(listener), tmp_path)
    begun = time.monotonic()
    work = await listener.next_work(25)
    assert work
    assert (work.run_id, work.phase) == (run, "apply")
    assert time.monotonic() - begun < 15


@pytest.mark.parametrize("headers", CLI, ids=["cloud", "remote"])
async def test_the_terraform_cli_is_awaited_from_the_beginning(
    server: Running, tmp_path: Path, headers: dict[str, str]
) -> None:
    """A plan that takes no time is over before the CLI has read the first byte of its log."""
    listener = await server.listener(tmp_path / "home")
    run = await begin(server, **headers)
    await plan_it(listener, await take(listener), tmp_path)
    assert await offered(listener) is None
    assert (await read_log(server, run)).endswith(ETX)
    async with server.as_(await server.person("other@example.org", "admin")) as person:
        assert (await person.get(f"/runs/{run}")).status_code == 200
    assert await offered(listener) is None, "it was somebody else who looked at the run"
    await server.status(run)
    work = await offered(listener)
    assert work
    assert work.phase == "apply"


async def test_a_run_that_a_person_confirms_waits_for_nobody(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    run = (await server.run(workspace)).json()["data"]["id"]
    await read_log(server, run)
    await plan_it(listener, await take(listener), tmp_path)
    assert (await server.api.post(f"/runs/{run}/actions/apply")).status_code == 202
    work = await offered(listener)
    assert work
    assert work.phase == "apply"


async def test_an_unlock_lets_it_go_when_the_reader_is_done(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    run = await begin(server)
    await read_log(server, run)
    work = await take(listener)
    workspace = work.workspace_id
    assert (await server.api.post(f"/workspaces/{workspace}/actions/lock")).status_code == 200
    await plan_it(listener, work, tmp_path)
    assert await server.status(run) == "planned"
    assert (await read_log(server, run)).endswith(ETX)
    await server.status(run)
    assert (await server.api.post(f"/workspaces/{workspace}/actions/unlock")).status_code == 200
    released = await offered(listener)
    assert released
    assert (released.run_id, released.phase) == (run, "apply")


async def test_a_plan_that_is_refused_or_lost_is_not_held(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    run = await begin(server)
    await read_log(server, run)
    for _ in range(2):
        work = await take(listener)
        refused = wire.Report(phase="plan", status="refused", reason="no room", is_unwilling=True)
        await listener.report(run, refused, work.lease.number)
    work = await take(listener)
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    await Phase.filter(id=leases.phase_id_of(run, "plan")).update(lease_until=-1.0)
    await leases.sweep(server.services)
    again = await offered(listener)
    assert again
    assert again.phase == "plan"


async def test_a_clock_that_was_set_back_holds_nothing(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    run = await begin(server)
    await plan_it(listener, await take(listener), tmp_path)
    await Phase.filter(id=leases.phase_id_of(run, "apply")).update(lease_until=1e12)
    work = await offered(listener)
    assert work
    assert work.phase == "apply"


async def test_another_process_knows_who_reads(postgres_url: str, tmp_path: Path) -> None:
    """The log is read at another process than the one that the listener speaks to; which is then lost."""
    for name in ("data", "other"):
        (tmp_path / name).mkdir()
    first = Process(tmp_path / "data", postgres_url)
    async with first.prepared() as server:
        await first.start()
        second = first.beside(tmp_path / "other")
        await second.start()
        try:
            listener = await server.listener(tmp_path / "home")
            headers = {"Authorization": f"Bearer {server.token}"}
            async with httpx.AsyncClient(base_url=f"{second.url}/api/v2/", headers=headers, timeout=30) as api:
                other = dataclasses.replace(server, api=api)
                run = await begin(server)
                await read_log(other, run)
                await plan_it(listener, await take(listener), tmp_path)
                assert await offered(listener) is None
                async with polling(listener) as polled:
                    assert (await read_log(other, run)).endswith(ETX)
                    await other.status(run)
                    work = await polled
                assert work
                assert (work.run_id, work.phase) == (run, "apply")

                lost = await begin(server)
                await read_log(other, lost)
                await plan_it(listener, await take(listener), tmp_path)
                await first.kill()
                kept = msgspec.structs.replace(listener.identity.kept, server=second.url)
                moved = ListenerClient(Identity(kept, listener.identity.home))
                begun = time.monotonic()
                work = await moved.next_work(25)
                assert work
                assert (work.run_id, work.phase) == (lost, "apply")
                assert time.monotonic() - begun < 20, "no process was there to wake it when its time was over"
        finally:
            await second.kill()


@contextlib.asynccontextmanager
async def polling(listener: ListenerClient) -> AsyncIterator[asyncio.Task[wire.Work | None]]:
    """A poll that is under way."""
    task = asyncio.create_task(listener.next_work(25))
    try:
        yield task
    finally:
        task.cancel()


async def is_idle(server: Running, listener: ListenerClient) -> bool:
    return bool(server.services.bus._waiting.get(f"listener:{listener.identity.kept.listener_id}"))
