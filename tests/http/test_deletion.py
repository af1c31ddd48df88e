"""Deleting workspaces: runs end, listeners are told, names are free, and the last state is kept out of reach."""

import asyncio
import base64
import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.phases import apply_it, plan_it, take
from kit.serving import Running, state_bytes, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.agents.model import LateState
from terrapod_server.agents.protocol import claiming
from terrapod_server.configs.model import ConfigurationVersion
from terrapod_server.runs import deleted, leases
from terrapod_server.runs.model import Phase, Run, RunEvent
from terrapod_server.states.model import KeptState, StateOutput, StateVersion
from terrapod_server.variables.model import Variable
from terrapod_server.workspaces.model import DeletedWorkspace, Workspace, WorkspaceLabel
from terrapod_shared import clock, errors, wire

_ROWS: tuple[Any, ...] = (ConfigurationVersion, RunEvent, Run, StateOutput, StateVersion, Variable, WorkspaceLabel)


async def rows(workspace: str) -> dict[str, int]:
    """How many rows of each table are still about the workspace."""
    found = {model.__name__: await model.filter(workspace_id=workspace).count() for model in (*_ROWS, Phase)}
    return {name: count for name, count in found.items() if count}


def files(server: Running, workspace: str) -> list[str]:
    return sorted(path.name for path in server.folder.rglob(f"workspaces/{workspace}/**/*") if path.is_file())


async def delete(server: Running, workspace: str) -> httpx.Response:
    return await server.api.delete(f"/workspaces/{workspace}")


async def started(server: Running, listener: ListenerClient, **attributes: Any) -> tuple[str, wire.Work]:
    """A workspace with a run whose plan the listener works on."""
    workspace = (await server.workspace(**attributes))["id"]
    await server.configuration(workspace)
    await server.run(workspace)
    work = await take(listener)
    await listener.report(work.run_id, wire.Report(phase="plan", status="planning"), work.lease.number)
    return workspace, work


async def test_what_waits_ends_and_the_name_is_free(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    made = await server.workspace(labels={"a": "b"})
    workspace = made["id"]
    await server.post(f"/workspaces/{workspace}/vars", {"key": "k", "value": "v", "category": "env"}, "vars")
    await server.configuration(workspace)
    planned, pending = [(await server.run(workspace)).json()["data"]["id"] for _ in range(2)]
    await plan_it(listener, await take(listener), tmp_path)
    plan = (await server.api.get(f"/runs/{planned}/plan")).json()["data"]
    answer = await delete(server, workspace)
    assert (answer.status_code, answer.content) == (204, b"")
    for path in (
        f"/workspaces/{workspace}", f"/organizations/default/workspaces/{made['attributes']['name']}",
        f"/runs/{planned}", f"/runs/{pending}", f"/plans/{plan['id']}", plan["attributes"]["log-read-url"],
        f"/workspaces/{workspace}/vars", f"/workspaces/{workspace}/state-versions",
    ):  # fmt: skip
        assert (await server.api.get(path)).status_code == 404, path
    assert (await delete(server, workspace)).status_code == 404
    assert (await rows(workspace), files(server, workspace)) == ({}, [])
    again = await server.workspace(made["attributes"]["name"])
    assert again["id"] != workspace
    assert (await server.api.get(f"/workspaces/{again['id']}/runs")).json()["data"] == []


async def test_a_listener_that_plans_is_told_and_its_leftovers_go(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace, work = await started(server, listener)
    run, lease = work.run_id, work.lease.number
    await listener.call("PUT", f"{listener.base}/runs/{run}/plan/log?offset=0", body=b"one\n", lease=lease)
    held = [wire.HeldLease(run_id=run, phase="plan", number=lease)]
    beating = asyncio.create_task(listener.beat(wire.Beat(leases=held), wait_s=20))
    await asyncio.sleep(0)
    assert (await delete(server, workspace)).status_code == 204
    pulse = await asyncio.wait_for(beating, 10)
    assert [verdict.verdict for verdict in pulse.leases] == ["lost"]
    path = tmp_path / "plan-file"
    path.write_bytes(b"plan")
    for call in (
        listener.call("PUT", f"{listener.base}/runs/{run}/plan/log?offset=4", body=b"two\n", lease=lease),
        listener.call("PUT", f"{listener.base}/runs/{run}/plan-file", file=path, lease=lease),
        listener.call("GET", f"{listener.base}/runs/{run}/configuration", lease=lease),
        listener.report(run, wire.Report(phase="plan", status="planned", has_changes=True), lease),
        listener.report(run, wire.Report(phase="plan", status="canceled"), lease),
    ):
        with pytest.raises(errors.LeaseEnded):
            await call
    assert await rows(workspace) == {"Phase": 1}
    await deleted.sweep(server.services)
    assert await rows(workspace) == {"Phase": 1}, "its listener may still name it"
    await Phase.filter(workspace_id=workspace).update(lease_until=-1.0)
    await listener.beat(wire.Beat(leases=held))
    await deleted.sweep(server.services)
    assert await rows(workspace) == {"Phase": 1}, "it has named it"
    await Phase.filter(workspace_id=workspace).update(lease_until=-1.0)
    await deleted.sweep(server.services)
    assert await rows(workspace) == {}
    await DeletedWorkspace.filter(id=workspace).update(
        sweep_at=clock.now(), deleted_at=clock.now() - timedelta(hours=1)
    )
    await deleted.sweep(server.services)
    assert not await DeletedWorkspace.exists(id=workspace)
    assert files(server, workspace) == []
    pulse = await listener.beat(wire.Beat(leases=held))
    assert [verdict.verdict for verdict in pulse.leases] == ["lost"], "for as long as it asks"


async def test_an_offer_that_nobody_took_is_lost(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    await server.run(workspace)
    work = await take(listener)
    assert (await delete(server, workspace)).status_code == 204
    for status in ("planning", "refused"):
        with pytest.raises(errors.LeaseEnded):
            await listener.report(work.run_id, wire.Report(phase="plan", status=status), work.lease.number)


async def test_what_applies_is_not_deleted(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace, work = await started(server, listener, **{"auto-apply": True})
    await plan_it(listener, work, tmp_path)

    async def refused() -> None:
        for answer in (
            await delete(server, workspace),
            await server.api.delete(f"/workspaces/{workspace}?force=true"),
            await server.api.post(f"/workspaces/{workspace}/actions/safe-delete"),
        ):
            assert answer.status_code == 409, answer.text
        answer = await delete(server, workspace)
        assert f"being processed by run {work.run_id}" in answer.text

    await refused()  # the apply is queued
    work = await take(listener)
    await listener.report(work.run_id, wire.Report(phase="apply", status="applying"), work.lease.number)
    await refused()
    await Phase.filter(run_id=work.run_id, kind="apply").update(lease_until=-1.0)
    await leases.sweep(server.services)
    await refused()  # held
    await apply_it(listener, work, tmp_path)
    assert await server.status(work.run_id) == "applied"
    await Workspace.filter(id=workspace).update(run_lock_id=work.run_id)
    await refused()  # nobody knows how the apply ended
    await Workspace.filter(id=workspace).update(run_lock_id=None)
    answer = await server.api.post(f"/workspaces/{workspace}/actions/safe-delete")
    assert (answer.status_code, "still manages 1 resources" in answer.text) == (409, True)
    assert (await delete(server, workspace)).status_code == 204


async def test_a_saved_plan_that_was_confirmed_is_not_deleted(server: Running, tmp_path: Path) -> None:
    """It waits behind another run, and holds no queue yet."""
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    saved = (await server.run(workspace, **{"save-plan": True})).json()["data"]["id"]
    await plan_it(listener, await take(listener), tmp_path)
    other = (await server.run(workspace)).json()["data"]["id"]
    assert (await server.api.post(f"/runs/{saved}/actions/confirm")).status_code == 202
    assert [await server.status(run) for run in (saved, other)] == ["confirmed", "plan_queued"]
    assert (await delete(server, workspace)).status_code == 409
    assert [await server.status(run) for run in (saved, other)] == ["confirmed", "plan_queued"], "nothing was ended"


async def push(server: Running, workspace: str, raw: bytes) -> Any:
    version = (await server.state(workspace, raw)).json()["data"]
    assert (await server.api.put(version["attributes"]["hosted-state-upload-url"], content=raw)).status_code == 200
    return version


async def test_the_last_state_is_kept_for_its_days(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    await push(server, workspace, state_bytes(1, outputs={"a": {"value": 1, "type": "number"}}))
    version = await push(server, workspace, raw := state_bytes(2, resources=3))
    await LateState.create(
        id="late-a", workspace_id=workspace, run_id="run-a", lease_number=1, listener_id="l", serial=9, lineage="aaaa",
        md5="0" * 32, key=f"workspaces/{workspace}/late/a", sha256="0" * 64, size=4,
    )  # fmt: skip
    await server.services.store.put(f"workspaces/{workspace}/late/a", _once(b"late"))
    await server.services.store.put(f"workspaces/{workspace}/runs/run-a/plan.log", _once(b"log"))
    download = await server.api.get(f"/state-versions/{version['id']}/download")
    assert (await server.api.post(f"/workspaces/{workspace}/actions/safe-delete")).status_code == 409
    assert (await delete(server, workspace)).status_code == 204
    assert (await rows(workspace), await LateState.filter(workspace_id=workspace).count()) == ({}, 0)
    kept = await KeptState.get(workspace_id=workspace, is_late=False)
    assert (kept.id, kept.serial, kept.md5) == (version["id"], 2, hashlib.md5(raw).hexdigest())
    assert await server.services.store.whole(kept.key, 1 << 20) == raw
    assert (await KeptState.get(workspace_id=workspace, is_late=True)).serial == 9
    assert files(server, workspace) == sorted([kept.key.rpartition("/")[2], "a"]), "and nothing else"
    gone = await DeletedWorkspace.get(id=workspace)
    assert gone.deleted_by_name.endswith("localhost")
    for path in (
        download.headers["location"], f"/state-versions/{version['id']}", f"/state-versions/{version['id']}/download",
        f"/state-versions/{version['id']}/outputs", f"/workspaces/{workspace}/current-state-version",
        "/late-states/late-a", "/late-states/late-a/download",
    ):  # fmt: skip
        assert (await server.api.get(path)).status_code == 404, path
    again = await server.api.put(version["attributes"]["hosted-state-upload-url"], content=raw)
    assert again.status_code == 404

    just_before = clock.now() - timedelta(days=29, hours=23)
    await KeptState.filter(workspace_id=workspace).update(kept_at=just_before)
    await DeletedWorkspace.filter(id=workspace).update(deleted_at=just_before, sweep_at=clock.now())
    await deleted.sweep(server.services)
    assert len(files(server, workspace)) == 2
    await KeptState.filter(workspace_id=workspace).update(kept_at=just_before - timedelta(hours=2))
    await deleted.sweep(server.services)
    assert files(server, workspace) == []
    assert not await KeptState.filter(workspace_id=workspace).exists()
    assert not await DeletedWorkspace.filter(id=workspace).exists()


@pytest.mark.parametrize("member", [b'"x": ' + b"1" * 5_000, b'"encrypted_data": "e"'], ids=["digits", "encrypted"])
async def test_a_state_whose_resources_nobody_can_read_is_not_empty(server: Running, member: bytes) -> None:
    """It is kept whatever it contains; that its list of resources is empty says nothing."""
    workspace = (await server.workspace())["id"]
    raw = b'{"version": 4, "serial": 1, "lineage": "aaaa", %s}' % member
    sent = {
        "serial": 1,
        "lineage": "aaaa",
        "md5": hashlib.md5(raw).hexdigest(),
        "state": base64.b64encode(raw).decode(),
    }
    made = await server.post(f"/workspaces/{workspace}/state-versions", sent, "state-versions")
    assert made.status_code == 201, made.text
    safe = await server.api.post(f"/workspaces/{workspace}/actions/safe-delete")
    assert (safe.status_code, "may manage resources" in safe.text) == (409, True)
    assert (await delete(server, workspace)).status_code == 204


async def _once(raw: bytes) -> Any:
    yield raw


async def test_what_is_written_while_it_goes_is_removed_later(server: Running) -> None:
    """An upload that was under way comes behind the first look for files."""
    workspace = (await server.workspace())["id"]
    await push(server, workspace, state_bytes(1))
    assert (await delete(server, workspace)).status_code == 204
    await server.services.store.put(f"workspaces/{workspace}/runs/run-a/plan-file-1", _once(b"late"))
    await server.services.store.put(f"workspaces/{workspace}/states/sv-late.x", _once(b"late"))
    assert len(files(server, workspace)) == 3
    await DeletedWorkspace.filter(id=workspace).update(sweep_at=clock.now())
    await deleted.sweep(server.services)
    assert len(files(server, workspace)) == 1


async def test_a_deletion_races_with_a_claim(pg_server: Running, tmp_path: Path) -> None:
    server = pg_server
    listener = await server.listener(tmp_path / "home")
    for _ in range(6):
        workspace = (await server.workspace())["id"]
        await server.configuration(workspace)
        run = (await server.run(workspace)).json()["data"]["id"]
        answer, phase = await asyncio.gather(
            delete(server, workspace),
            claiming.claim(listener.identity.kept.listener_id, await server.pool_id(), ENGINES),
        )
        assert answer.status_code == 204, answer.text
        if phase is not None:
            assert phase.run_id == run
            with pytest.raises(errors.LeaseEnded):
                await listener.report(run, wire.Report(phase="plan", status="planning"), phase.lease_number)
        assert await rows(workspace) in ({}, {"Phase": 1})
        await Phase.filter(workspace_id=workspace).delete()


ENGINES = ("terraform 1.11.4", "terraform 1.15.5", "tofu 1.9.0")


async def test_a_deletion_races_with_the_end_of_a_plan(pg_server: Running, tmp_path: Path) -> None:
    """With auto-apply one of them wins: the workspace is gone and the plan lost, or an apply is queued and it stays."""
    server = pg_server
    listener = await server.listener(tmp_path / "home")
    for _ in range(6):
        workspace, work = await started(server, listener, **{"auto-apply": True})

        async def end(work: wire.Work) -> bool:
            try:
                await plan_it(listener, work, tmp_path)
            except errors.LeaseEnded:
                return False
            return True

        answer, has_ended = await asyncio.gather(delete(server, workspace), end(work))
        assert (answer.status_code, has_ended) in ((204, False), (409, True)), answer.text
        if has_ended:
            await apply_it(listener, await take(listener), tmp_path)
            assert (await delete(server, workspace)).status_code == 204
        assert not await Run.filter(workspace_id=workspace).exists()


async def test_a_deletion_races_with_an_upload_of_state(pg_server: Running) -> None:
    """What the upload said that it took is what is kept."""
    server = pg_server
    for _ in range(6):
        workspace = (await server.workspace())["id"]
        await push(server, workspace, state_bytes(1))
        raw = state_bytes(2)
        version = (await server.state(workspace, raw)).json()["data"]
        answer, put = await asyncio.gather(
            delete(server, workspace),
            server.api.put(version["attributes"]["hosted-state-upload-url"], content=raw),
        )
        assert (answer.status_code, put.status_code in (200, 404)) == (204, True), put.text
        kept = await KeptState.get(workspace_id=workspace)
        assert kept.serial == (2 if put.status_code == 200 else 1)

        async def alone(workspace: str = workspace) -> bool:
            return len(files(server, workspace)) == 1

        await until(alone)
        assert await rows(workspace) == {}


async def test_a_deletion_races_with_whatever_makes_rows(pg_server: Running) -> None:
    server = pg_server
    for number in range(4):
        workspace = (await server.workspace())["id"]
        await server.configuration(workspace)
        answers = await asyncio.gather(
            delete(server, workspace),
            server.post(f"/workspaces/{workspace}/vars", {"key": f"k{number}", "category": "env"}, "vars"),
            server.post(f"/workspaces/{workspace}/configuration-versions", {}, "configuration-versions"),
            server.state(workspace, state_bytes(1)),
            server.run(workspace),
        )
        assert answers[0].status_code == 204
        assert {answer.status_code for answer in answers[1:]} <= {201, 404, 422}, [a.text for a in answers]
        assert await rows(workspace) == {}


async def test_two_creations_of_the_freed_name_race(pg_server: Running) -> None:
    server = pg_server
    for _ in range(4):
        made = await server.workspace()
        name = made["attributes"]["name"]
        assert (await delete(server, made["id"])).status_code == 204
        make = [server.post("/organizations/default/workspaces", {"name": name}, "workspaces") for _ in range(2)]
        answers = await asyncio.gather(*make)
        assert sorted(answer.status_code for answer in answers) == [201, 422]
        assert await Workspace.filter(name=name).count() == 1


async def test_two_deletions_race(pg_server: Running) -> None:
    workspace = (await pg_server.workspace())["id"]
    await push(pg_server, workspace, state_bytes(1))
    answers = await asyncio.gather(*(delete(pg_server, workspace) for _ in range(3)))
    assert sorted(answer.status_code for answer in answers) == [204, 404, 404]
