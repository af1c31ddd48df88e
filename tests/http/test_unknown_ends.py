"""An apply whose state is unknown: its run keeps the workspace until somebody has looked at the state."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kit.cli import of_server
from kit.phases import apply_it, plan_it, take
from kit.serving import DATA, Running, state_bytes
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.runs import leases
from terrapod_server.runs.model import Phase
from terrapod_shared import ids, wire

End = Callable[[Running, ListenerClient, wire.Work], Awaitable[None]]


async def applying(server: Running, listener: ListenerClient, workspace: str, folder: Path) -> wire.Work:
    run = (await server.run(workspace)).json()["data"]["id"]
    await plan_it(listener, await take(listener), folder)
    assert (await server.api.post(f"/runs/{run}/actions/apply")).status_code == 202
    work = await take(listener)
    assert work.run_id == run
    await listener.report(run, wire.Report(phase="apply", status="applying"), work.lease.number)
    return work


async def released(server: Running, _: ListenerClient, work: wire.Work) -> None:
    await Phase.filter(id=leases.phase_id_of(work.run_id, "apply")).update(lease_until=-1.0)
    await leases.sweep(server.services)
    assert (await server.api.post(f"/runs/{work.run_id}/actions/release")).status_code == 202


async def spooled(_: Running, listener: ListenerClient, work: wire.Work) -> None:
    report = wire.Report(phase="apply", status="errored", state="spooled", error_message="the server did not take it")
    await listener.report(work.run_id, report, work.lease.number)


async def cut_off(_: Running, listener: ListenerClient, work: wire.Work) -> None:
    report = wire.Report(
        phase="apply", status="errored", state="uploaded", error_message="cut off", unknown="its supervisor was killed"
    )
    await listener.report(work.run_id, report, work.lease.number)


async def killed(server: Running, listener: ListenerClient, work: wire.Work) -> None:
    assert (await server.api.post(f"/runs/{work.run_id}/actions/cancel")).status_code == 202
    report = wire.Report(phase="apply", status="canceled", state="unchanged", unknown="terraform was killed")
    await listener.report(work.run_id, report, work.lease.number)


async def failed(_: Running, listener: ListenerClient, work: wire.Work) -> None:
    report = wire.Report(phase="apply", status="errored", state="uploaded", error_message="terraform apply failed")
    await listener.report(work.run_id, report, work.lease.number)


async def interrupted(server: Running, listener: ListenerClient, work: wire.Work) -> None:
    assert (await server.api.post(f"/runs/{work.run_id}/actions/cancel")).status_code == 202
    report = wire.Report(phase="apply", status="canceled", state="uploaded")
    await listener.report(work.run_id, report, work.lease.number)


async def shown(server: Running, workspace: str) -> DATA:
    """The workspace: `locked`, `reason`, and who locks it as `by`."""
    data = (await server.api.get(f"/workspaces/{workspace}")).json()["data"]
    by = data["relationships"]["locked-by"]["data"]
    return {**data["attributes"], "reason": data["attributes"]["lock-reason"], "by": by and (by["type"], by["id"])}


async def act(server: Running, workspace: str, verb: str) -> int:
    return (await server.api.post(f"/workspaces/{workspace}/actions/{verb}")).status_code


async def begin(server: Running, workspace: str, **attributes: object) -> str:
    answer = await server.run(workspace, **{"message": str(attributes), **attributes})
    assert answer.status_code == 201, answer.text
    run: str = answer.json()["data"]["id"]
    return run


async def deliver(listener: ListenerClient, work: wire.Work, folder: Path, raw: bytes, serial: int) -> int:
    (folder / "late").write_bytes(raw)
    query = f"serial={serial}&lineage=aaaa&md5={hashlib.md5(raw).hexdigest()}"
    path = f"{listener.base}/runs/{work.run_id}/state?{query}"
    return (await listener.call("PUT", path, file=folder / "late", lease=work.lease.number)).status_code


@pytest.mark.parametrize("end", [released, spooled, cut_off, killed])
async def test_the_run_keeps_the_lock_and_the_next_one_waits(server: Running, tmp_path: Path, end: End) -> None:
    listener = await server.listener(tmp_path / "home")
    made = await server.workspace(labels={"team": "a"}, **{"auto-apply": True})
    workspace, name = made["id"], made["attributes"]["name"]
    await server.configuration(workspace)
    saved = await begin(server, workspace, **{"save-plan": True})
    await plan_it(listener, await take(listener), tmp_path)
    assert await server.status(saved) == "planned_and_saved"
    await server.api.patch(f"/workspaces/{workspace}", json={"data": {"attributes": {"auto-apply": False}}})
    work = await applying(server, listener, workspace, tmp_path)
    waiting = await begin(server, workspace, **{"auto-apply": True})
    await end(server, listener, work)

    row = await shown(server, workspace)
    assert (row["locked"], row["by"]) == (True, ("runs", work.run_id))
    for part in (
        work.run_id,
        "Compare the state",
        f"terrapod workspaces unlock {name} --force",
        "terrapod states late",
    ):
        assert part in row["reason"], row
    run = (await server.api.get(f"/runs/{work.run_id}")).json()["data"]["attributes"]
    assert run["status"] == ("canceled" if end is killed else "errored")
    assert "The workspace stays locked by this run" in run["error-message"]
    events = (await server.api.get(f"/runs/{work.run_id}/run-events")).json()["data"]
    assert "state_unknown" in [event["attributes"]["action"] for event in events]

    next_ = (await server.api.get(f"/runs/{waiting}")).json()["data"]["attributes"]
    assert (next_["status"], next_["waits-for"]["kind"]) == ("pending", "unknown-state")
    assert work.run_id in next_["waits-for"]["text"]
    later = await begin(server, workspace, **{"auto-apply": True, "is-destroy": True})
    assert await server.status(later) == "pending"
    speculative = await begin(server, workspace, **{"plan-only": True})
    assert await server.status(speculative) == "plan_queued", "what changes nothing goes on"
    confirmed = await server.api.post(f"/runs/{saved}/actions/apply")
    assert (confirmed.status_code, work.run_id in confirmed.text) == (409, True)
    for address in (f"/workspaces/{workspace}", f"/workspaces/{workspace}?force=true"):
        refused = await server.api.delete(address)
        assert (refused.status_code, "being processed" in refused.text) == (409, True)
    assert await act(server, workspace, "safe-delete") == 409
    assert await act(server, workspace, "unlock") == 409
    pushed = await server.state(workspace, state_bytes(7))
    assert (pushed.status_code, "is locked by Run" in pushed.text) == (409, True), "not without the manual lock"

    role = {"name": "writers", "workspace-permission": "write", "allow-labels": {"team": "a"}}
    assert (await server.post("/roles", role)).status_code == 201
    async with server.as_(await server.person("writer@example.org", "writers")) as writer:
        locked = await writer.post(f"/workspaces/{workspace}/actions/lock")
        assert (locked.status_code, f"is locked by Run {work.run_id}" in locked.text) == (409, True)
        assert (await writer.post(f"/workspaces/{workspace}/actions/force-unlock")).status_code == 403
    assert await server.status(waiting) == "pending"

    assert await act(server, workspace, "force-unlock") == 200
    assert (await server.status(waiting), await server.status(later)) == ("plan_queued", "pending")
    row = await shown(server, workspace)
    assert (row["locked"], row["by"], row["reason"]) == (False, None, "")
    assert await act(server, workspace, "force-unlock") == 409, "there is no lock any more"
    events = (await server.api.get(f"/runs/{work.run_id}/run-events")).json()["data"]
    assert "lock_released" in [event["attributes"]["action"] for event in events]


@pytest.mark.parametrize("end", [failed, interrupted])
async def test_an_apply_whose_state_is_here_locks_nothing(server: Running, tmp_path: Path, end: End) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    work = await applying(server, listener, workspace, tmp_path)
    waiting = await begin(server, workspace)
    await end(server, listener, work)
    row = await shown(server, workspace)
    assert (row["locked"], row["reason"]) == (False, "")
    assert await server.status(waiting) == "plan_queued"


async def test_an_admin_corrects_the_state_beside_the_run(server: Running, tmp_path: Path) -> None:
    """As `terraform state push` does it: lock, create a state version, unlock; `force-unlock` is another step."""
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    work = await applying(server, listener, workspace, tmp_path)
    assert await act(server, workspace, "lock") == 409, "it still applies"
    waiting = await begin(server, workspace)
    await released(server, listener, work)

    assert await act(server, workspace, "lock") == 200
    assert await act(server, workspace, "lock") == 409
    row = await shown(server, workspace)
    assert (row["locked"], row["by"][0]) == (True, "users")
    async with server.as_(await server.person("second@example.org", "admin")) as second:
        body = {"serial": 7, "lineage": "aaaa", "md5": "0" * 32}
        path = f"/workspaces/{workspace}/state-versions"
        pushed = await second.post(path, json={"data": {"type": "state-versions", "attributes": body}})
        assert pushed.status_code == 409, "the lock is another's"
        assert (await second.post(f"/workspaces/{workspace}/actions/lock")).status_code == 409
    raw = state_bytes(7, resources=1)
    announced = await server.state(workspace, raw)
    assert announced.status_code == 201, announced.text
    put = await server.api.put(announced.json()["data"]["attributes"]["hosted-state-upload-url"], content=raw)
    assert put.status_code == 200, put.text
    assert await act(server, workspace, "unlock") == 200
    row = await shown(server, workspace)
    assert (row["locked"], row["by"], await server.status(waiting)) == (True, ("runs", work.run_id), "pending")

    assert await act(server, workspace, "lock") == 200
    assert await act(server, workspace, "force-unlock") == 200
    row = await shown(server, workspace)
    assert (row["locked"], row["by"][0], row["reason"]) == (True, "users", ""), "the run's lock went alone"
    run = (await server.api.get(f"/runs/{waiting}")).json()["data"]["attributes"]
    assert (run["status"], run["waits-for"]["kind"]) == ("pending", "lock")
    assert await act(server, workspace, "unlock") == 200
    assert await server.status(waiting) == "plan_queued"
    state = (await take(listener)).state
    assert state is not None
    assert state.serial == 7


@pytest.mark.parametrize("is_locked", [False, True])
async def test_adopting_its_late_state_frees_the_run_s_lock(server: Running, tmp_path: Path, is_locked: bool) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    work = await applying(server, listener, workspace, tmp_path)
    waiting = await begin(server, workspace)
    await spooled(server, listener, work)
    assert await deliver(listener, work, tmp_path, state_bytes(4, resources=2), 4) == 202
    if is_locked:
        assert await act(server, workspace, "lock") == 200
    [late] = (await server.api.get(f"/workspaces/{workspace}/late-states")).json()["data"]
    adopted = await server.api.post(f"/late-states/{late['id']}/actions/adopt", json={"data": {"type": "late-states"}})
    assert adopted.status_code == 200, adopted.text
    row = await shown(server, workspace)
    assert (row["locked"], row["by"] and row["by"][0]) == ((True, "users") if is_locked else (False, None))
    if is_locked:
        assert await server.status(waiting) == "pending"
        assert await act(server, workspace, "unlock") == 200
    assert await server.status(waiting) == "plan_queued"
    state = (await take(listener)).state
    assert state is not None
    assert state.serial == 4, "what was adopted is what the next plan begins with"


async def test_another_run_s_late_state_frees_nothing(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    first = await applying(server, listener, workspace, tmp_path)
    await released(server, listener, first)
    assert await act(server, workspace, "force-unlock") == 200
    second = await applying(server, listener, workspace, tmp_path)
    await released(server, listener, second)
    assert await deliver(listener, first, tmp_path, state_bytes(2), 2) == 202
    [late] = (await server.api.get(f"/workspaces/{workspace}/late-states")).json()["data"]
    path = f"/late-states/{late['id']}/actions/adopt"
    refused = await server.api.post(path, json={"data": {"type": "late-states"}})
    assert (refused.status_code, second.run_id in refused.text) == (409, True)
    assert (await server.api.post(f"/late-states/{late['id']}/actions/drop")).status_code == 200
    assert (await shown(server, workspace))["by"] == ("runs", second.run_id), "neither does dropping one"


async def test_a_state_that_was_dropped_leaves_the_lock(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    work = await applying(server, listener, workspace, tmp_path)
    await released(server, listener, work)
    assert await deliver(listener, work, tmp_path, state_bytes(2), 2) == 202
    [late] = (await server.api.get(f"/workspaces/{workspace}/late-states")).json()["data"]
    assert (await server.api.post(f"/late-states/{late['id']}/actions/drop")).status_code == 200
    assert (await shown(server, workspace))["by"] == ("runs", work.run_id)
    assert await act(server, workspace, "force-unlock") == 200
    assert (await server.api.delete(f"/workspaces/{workspace}")).status_code == 204


async def test_a_listener_hears_what_of_its_leftovers_is_settled(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    work = await applying(server, listener, workspace, tmp_path)
    other = await server.listener(tmp_path / "other", name="two")

    gone = ids.make("run")

    async def settled(of: ListenerClient) -> list[str]:
        return (await of.beat(wire.Beat(left=[work.run_id, gone, "\0' OR 1=1"]))).settled

    assert await settled(listener) == [gone]
    await released(server, listener, work)
    assert await settled(listener) == [gone], "there is no late state"
    assert await deliver(listener, work, tmp_path, state_bytes(2), 2) == 202
    [late] = (await server.api.get(f"/workspaces/{workspace}/late-states")).json()["data"]
    assert await settled(listener) == [gone], "it waits"
    assert (await server.api.post(f"/late-states/{late['id']}/actions/drop")).status_code == 200
    assert await settled(listener) == [work.run_id, gone]
    assert await settled(other) == [gone], "the run is another's"
    many = wire.Beat(left=[ids.make("run") for _ in range(wire.LEFT_MOST + 9)])
    assert len((await listener.beat(many)).settled) == wire.LEFT_MOST


async def test_the_next_run_never_slips_past_a_release(pg_server: Running, tmp_path: Path) -> None:
    """Runs come, and listeners ask for work, while an apply is given up."""
    server = pg_server
    listener = await server.listener(tmp_path / "home")
    for _ in range(6):
        workspace = (await server.workspace(**{"auto-apply": True}))["id"]
        await server.configuration(workspace)
        run = await begin(server, workspace)
        await plan_it(listener, await take(listener), tmp_path)
        work = await take(listener)
        assert work.run_id == run
        await listener.report(run, wire.Report(phase="apply", status="applying"), work.lease.number)
        runs = [await begin(server, workspace, message=str(number)) for number in range(3)]
        await Phase.filter(id=leases.phase_id_of(run, "apply")).update(lease_until=-1.0)
        await leases.sweep(server.services)
        answers = await asyncio.gather(
            server.api.post(f"/runs/{run}/actions/release"),
            server.api.post(f"/runs/{run}/actions/release"),
            *(begin(server, workspace, message=f"beside {number}") for number in range(4)),
            *(listener.next_work(0) for _ in range(4)),
        )
        codes = sorted(answer.status_code for answer in answers[:2])  # type: ignore[union-attr]
        assert codes == [202, 409]
        assert [answer for answer in answers[6:] if answer is not None] == [], "nothing was handed out"
        assert {await server.status(each) for each in (*runs, *answers[2:6])} == {"pending"}  # type: ignore[arg-type]
        assert (await shown(server, workspace))["by"] == ("runs", run)


async def test_adopting_races_with_freeing(pg_server: Running, tmp_path: Path) -> None:
    """Whoever comes first: no run begins with an older state than the one that was adopted."""
    server = pg_server
    listener = await server.listener(tmp_path / "home")
    seen = set()
    for number in range(8):
        workspace = (await server.workspace())["id"]
        await server.configuration(workspace)
        work = await applying(server, listener, workspace, tmp_path)
        waiting = await begin(server, workspace)
        await released(server, listener, work)
        assert await deliver(listener, work, tmp_path, state_bytes(4), 4) == 202
        [late] = (await server.api.get(f"/workspaces/{workspace}/late-states")).json()["data"]
        path, body = f"/late-states/{late['id']}/actions/adopt", {"data": {"type": "late-states"}}
        calls = [server.api.post(path, json=body), server.api.post(f"/workspaces/{workspace}/actions/force-unlock")]
        first, second = await asyncio.gather(*(calls if number % 2 else reversed(calls)))
        adopted, freed = (first, second) if number % 2 else (second, first)
        outcome = (adopted.status_code, freed.status_code)
        seen.add(outcome)
        assert outcome in {(200, 409), (409, 200)}, (adopted.text, freed.text)
        next_ = await take(listener)
        assert (next_.run_id, next_.state.serial if next_.state else None) == (
            waiting,
            4 if outcome[0] == 200 else None,
        )
        row = await shown(server, workspace)
        assert (row["by"], row["late-states"]) == (None, 0 if outcome[0] == 200 else 1)
        # it was offered and nobody accepts it: on a slow machine the offer lapses, and a later round would be given it
        assert (await server.api.post(f"/runs/{next_.run_id}/actions/cancel")).status_code == 202


async def test_the_command_line_says_it_and_frees_it(server: Running, tmp_path: Path) -> None:
    cli = of_server(server, tmp_path)
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace("prod"))["id"]
    await server.configuration(workspace)
    work = await applying(server, listener, workspace, tmp_path)
    waiting = await begin(server, workspace)
    await released(server, listener, work)
    for argv in (("workspaces", "show", "prod"), ("runs", "show", waiting), ("runs", "show", work.run_id)):
        said = await cli(*argv)
        assert "workspaces unlock prod --force" in " ".join(said.out.split()), said.out
    assert (await cli("workspaces", "unlock", "prod")).code == 6
    assert (await cli("workspaces", "unlock", "prod", "--force")).code == 0
    assert await server.status(waiting) == "plan_queued"


async def test_the_next_apply_locks_and_frees_as_ever(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    await released(server, listener, await applying(server, listener, workspace, tmp_path))
    assert await act(server, workspace, "force-unlock") == 200
    work = await applying(server, listener, workspace, tmp_path)
    row = await shown(server, workspace)
    assert (row["by"], row["reason"]) == (("runs", work.run_id), "")
    await apply_it(listener, work, tmp_path)
    assert (await shown(server, workspace))["locked"] is False
