"""States that came after their lease: seen, adopted once, or dropped."""

import asyncio
import hashlib
from pathlib import Path

import httpx
import pytest

from kit.cli import of_server
from kit.phases import apply_it, plan_it, take
from kit.serving import DATA, Running, state_bytes, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.agents.model import LateState
from terrapod_server.runs import leases
from terrapod_server.runs.model import Phase
from terrapod_shared import errors, wire


async def applying(server: Running, listener: ListenerClient, workspace: str, folder: Path) -> wire.Work:
    run = (await server.run(workspace)).json()["data"]["id"]
    await plan_it(listener, await take(listener), folder)
    assert (await server.api.post(f"/runs/{run}/actions/apply")).status_code == 202
    work = await take(listener)
    assert work.run_id == run
    return work


async def held(server: Running, listener: ListenerClient, workspace: str, folder: Path) -> wire.Work:
    """An apply whose listener is lost."""
    work = await applying(server, listener, workspace, folder)
    await listener.report(work.run_id, wire.Report(phase="apply", status="applying"), work.lease.number)
    await Phase.filter(id=leases.phase_id_of(work.run_id, "apply")).update(lease_until=-1.0)
    await leases.sweep(server.services)
    return work


async def lost(
    server: Running, listener: ListenerClient, workspace: str, folder: Path, *, is_freed: bool = False
) -> wire.Work:
    """The same, and somebody has released it; `is_freed`: and the lock that it kept."""
    work = await held(server, listener, workspace, folder)
    assert (await server.api.post(f"/runs/{work.run_id}/actions/release")).status_code == 202
    if is_freed:
        assert (await server.api.post(f"/workspaces/{workspace}/actions/force-unlock")).status_code == 200
    return work


async def deliver(listener: ListenerClient, work: wire.Work, folder: Path, raw: bytes, lineage: str = "aaaa") -> int:
    """The real listener's call; the status."""
    (folder / "late").write_bytes(raw)
    serial = int(raw.split(b'"serial": ')[1].split(b",")[0])
    query = f"serial={serial}&lineage={lineage}&md5={hashlib.md5(raw).hexdigest()}"
    path = f"{listener.base}/runs/{work.run_id}/state?{query}"
    return (await listener.call("PUT", path, file=folder / "late", lease=work.lease.number)).status_code


async def waiting(server: Running, workspace: str) -> list[DATA]:
    found: list[DATA] = (await server.api.get(f"/workspaces/{workspace}/late-states?filter[status]=waiting")).json()[
        "data"
    ]
    return found


async def count(server: Running, workspace: str) -> int:
    shown: int = (await server.api.get(f"/workspaces/{workspace}")).json()["data"]["attributes"]["late-states"]
    return shown


async def adopt(
    server: Running, late: str, client: httpx.AsyncClient | None = None, *, confirmed: bool = False
) -> httpx.Response:
    body = {"data": {"type": "late-states", "attributes": {"confirm-serial": True} if confirmed else {}}}
    return await (client or server.api).post(f"/late-states/{late}/actions/adopt", json=body)


async def actions_of(server: Running, run: str) -> list[str]:
    return [row["attributes"]["action"] for row in (await server.api.get(f"/runs/{run}/run-events")).json()["data"]]


async def test_a_late_state_is_listed_downloaded_and_adopted(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace(labels={"team": "a"}))["id"]
    await server.configuration(workspace)
    work = await lost(server, listener, workspace, tmp_path)
    assert (await waiting(server, workspace), await count(server, workspace)) == ([], 0)
    raw = state_bytes(3, resources=2)
    assert [await deliver(listener, work, tmp_path, raw) for _ in range(2)] == [202, 202], "a repeat is harmless"
    [late] = await waiting(server, workspace)
    assert late["attributes"]["serial"] == 3
    assert late["relationships"]["run"]["data"]["id"] == work.run_id
    assert await count(server, workspace) == 1

    for level, status in (("read", 403), ("plan", 302)):
        role = {"name": level + "s", "workspace-permission": level, "allow-labels": {"team": "a"}}
        assert (await server.post("/roles", role)).status_code == 201
        async with server.as_(await server.person(f"{level}@example.org", level + "s")) as person:
            assert (await person.get(f"/workspaces/{workspace}/late-states")).status_code == 200
            assert (await person.get(late["attributes"]["download-url"])).status_code == status
            assert (await adopt(server, late["id"], person)).status_code == 403
            assert (await person.post(f"/late-states/{late['id']}/actions/drop")).status_code == 403
    got = await server.api.get(late["attributes"]["download-url"], follow_redirects=True)
    assert got.content == raw

    adopted = await adopt(server, late["id"])
    assert adopted.status_code == 200, adopted.text
    version = adopted.json()["data"]["relationships"]["state-version"]["data"]["id"]
    current = (await server.api.get(f"/workspaces/{workspace}/current-state-version")).json()["data"]
    assert (current["id"], current["attributes"]["serial"]) == (version, 3)
    assert current["relationships"]["run"]["data"]["id"] == work.run_id
    bytes_ = await server.api.get(current["attributes"]["hosted-state-download-url"], follow_redirects=True)
    assert bytes_.content == raw
    assert (await waiting(server, workspace), await count(server, workspace)) == ([], 0)
    again = await adopt(server, late["id"])
    assert (again.status_code, "adopted already" in again.text) == (409, True)
    assert (await server.api.get(f"/late-states/{late['id']}/download")).status_code == 409
    assert await deliver(listener, work, tmp_path, raw) == 202
    assert await waiting(server, workspace) == [], "what was adopted is no news"
    events = await actions_of(server, work.run_id)
    assert [each for each in events if "state" in each] == ["state_unknown", "late_state", "state_adopted"]

    async def is_recorded() -> bool:
        answer = await server.api.get("/admin/audit-log")
        rows = [row["attributes"] for row in answer.json()["data"]]
        return any(
            (row["resource-id"], row["workspace-id"], row["status-code"]) == (late["id"], workspace, 200)
            and row["path"].endswith("/actions/adopt")
            for row in rows
        )

    await until(is_recorded)


async def test_the_last_state_of_a_lease_is_the_one_that_waits(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    work = await lost(server, listener, workspace, tmp_path)
    assert await deliver(listener, work, tmp_path, state_bytes(1)) == 202
    assert await deliver(listener, work, tmp_path, state_bytes(2, resources=1)) == 202, "a snapshot came first"
    with pytest.raises(errors.Conflict):
        await deliver(listener, work, tmp_path, state_bytes(1, resources=3))
    [late] = await waiting(server, workspace)
    assert (late["attributes"]["serial"], await count(server, workspace)) == (2, 1)
    stored = [key async for key in _keys(server, workspace)]
    assert len(stored) == 1, "the older one's bytes are gone"
    assert (await server.api.post(f"/late-states/{late['id']}/actions/drop")).status_code == 200
    assert [key async for key in _keys(server, workspace)] == []
    assert await count(server, workspace) == 0
    assert (await server.api.post(f"/late-states/{late['id']}/actions/drop")).status_code == 409
    assert (await server.api.get(f"/workspaces/{workspace}/current-state-version")).status_code == 404
    assert "state_dropped" in await actions_of(server, work.run_id)


async def _keys(server: Running, workspace: str):  # type: ignore[no-untyped-def]
    for key in await server.services.store.keys(f"workspaces/{workspace}/late/"):
        yield key


async def test_what_may_not_be_adopted(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    work = await lost(server, listener, workspace, tmp_path, is_freed=True)
    assert await deliver(listener, work, tmp_path, state_bytes(2)) == 202
    [late] = await waiting(server, workspace)

    active = await applying(server, listener, workspace, tmp_path)
    refused = await adopt(server, late["id"], confirmed=True)
    assert (refused.status_code, active.run_id in refused.text) == (409, True), "a run is active"
    await apply_it(listener, active, tmp_path, serial=5)
    refused = await adopt(server, late["id"])
    assert (refused.status_code, "confirm-serial" in refused.text) == (409, True), "a lower serial"
    async with server.as_(await server.person("other@example.org", "admin")) as other:
        assert (await other.post(f"/workspaces/{workspace}/actions/lock")).status_code == 200
        locked = await adopt(server, late["id"], confirmed=True)
        assert (locked.status_code, "other@example.org" in locked.text) == (409, True)
        assert (await other.post(f"/workspaces/{workspace}/actions/unlock")).status_code == 200
    assert await count(server, workspace) == 1, "what was refused changed nothing"
    adopted = await adopt(server, late["id"], confirmed=True)
    assert adopted.status_code == 200, adopted.text
    current = (await server.api.get(f"/workspaces/{workspace}/current-state-version")).json()["data"]["attributes"]
    assert (current["serial"], current["replaced"]["serial"]) == (2, 5)

    work = await lost(server, listener, workspace, tmp_path)
    assert await deliver(listener, work, tmp_path, state_bytes(9, "bbbb"), "bbbb") == 202
    [late] = await waiting(server, workspace)
    foreign = await adopt(server, late["id"], confirmed=True)
    assert (foreign.status_code, "lineage" in foreign.text) == (409, True), "no word allows another lineage"


async def test_two_adopters_race(pg_server: Running, tmp_path: Path) -> None:
    """One late state and two admins; then two late states of one workspace: each time one becomes current."""
    server = pg_server
    listener = await server.listener(tmp_path / "home")
    async with server.as_(await server.person("second@example.org", "admin")) as second:
        for _ in range(3):
            workspace = (await server.workspace())["id"]
            await server.configuration(workspace)
            work = await lost(server, listener, workspace, tmp_path)
            await deliver(listener, work, tmp_path, state_bytes(2))
            [late] = await waiting(server, workspace)
            answers = await asyncio.gather(adopt(server, late["id"]), adopt(server, late["id"], second))
            assert sorted(answer.status_code for answer in answers) == [200, 409], [a.text for a in answers]
            kept = await LateState.get(id=late["id"])
            current = (await server.api.get(f"/workspaces/{workspace}/current-state-version")).json()["data"]
            assert (kept.status, kept.state_version_id) == ("adopted", current["id"])
            versions = (await server.api.get(f"/workspaces/{workspace}/state-versions")).json()["data"]
            assert len(versions) == 1, "nothing is left of the one who lost"

            works = [await lost(server, listener, workspace, tmp_path, is_freed=True) for _ in range(2)]
            for each in works:
                await deliver(listener, each, tmp_path, state_bytes(4, resources=works.index(each) + 1))
            one, two = await waiting(server, workspace)
            answers = await asyncio.gather(adopt(server, one["id"]), adopt(server, two["id"], second))
            assert sorted(answer.status_code for answer in answers) == [200, 409], [a.text for a in answers]
            assert await count(server, workspace) == 1


async def test_the_command_line_releases_pulls_and_adopts(server: Running, tmp_path: Path) -> None:
    cli = of_server(server, tmp_path)
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace("prod"))["id"]
    await server.configuration(workspace)
    work = await held(server, listener, workspace, tmp_path)
    asked = await cli("runs", "release", work.run_id)
    assert (asked.code, "only copy of the state" in asked.err, "--yes" in asked.err) == (2, True, True)
    assert (await cli.ok("runs", "release", work.run_id, "--yes"))["status"] == "errored"
    assert (await cli("runs", "release", work.run_id, "--yes")).code == 6
    raw = state_bytes(2, resources=1)
    assert await deliver(listener, work, tmp_path, raw) == 202
    [late] = await cli.ok("states", "late", "prod")
    assert (late["serial"], late["run"], late["status"]) == (2, work.run_id, "waiting")
    assert (await cli.ok("workspaces", "show", "prod"))["late-states"] == 1
    file = tmp_path / "pulled"
    assert (await cli.ok("states", "pull", late["id"], str(file)))["size"] == len(raw)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (raw, 0o600)
    assert (await cli("states", "adopt", late["id"])).code == 2, "asks"
    assert (await cli.ok("states", "adopt", late["id"], "--yes"))["status"] == "adopted"
    assert (await cli("states", "drop", late["id"], "--yes")).code == 6
    assert await cli.ok("states", "late", "prod") == []
    assert [row["status"] for row in await cli.ok("states", "late", "prod", "--all")] == ["adopted"]
