"""Rules of runs that people rely on: which configuration, given back by whom, which plan, and what is told of it."""

import hashlib
import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kit.phases import apply_it, plan_it, take
from kit.serving import Running, state_bytes
from terrapod_server.agents.model import Listener
from terrapod_server.runs import leases
from terrapod_server.runs.model import Phase, Run
from terrapod_shared import clock, errors, signing, wire


async def newest(server: Running, workspace_id: str) -> str:
    """The configuration version that a run without one gets."""
    made = await server.run(workspace_id, **{"plan-only": True})
    assert made.status_code == 201, made.text
    found: str = made.json()["data"]["relationships"]["configuration-version"]["data"]["id"]
    return found


async def attributes(server: Running, run: str) -> dict[str, object]:
    found: dict[str, object] = (await server.api.get(f"/runs/{run}")).json()["data"]["attributes"]
    return found


async def test_a_run_without_code_takes_the_newest_that_counts(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    first = (await server.configuration(workspace))["id"]
    only = (await server.configuration(workspace, speculative=True))["id"]
    saved = (await server.configuration(workspace, provisional=True))["id"]
    assert await newest(server, workspace) == first
    run = (await server.run(workspace, saved, **{"save-plan": True})).json()["data"]["id"]
    for phase in (await take(listener), await take(listener)):
        await plan_it(listener, phase, tmp_path)
    assert await server.status(run) == "planned_and_saved"
    assert await newest(server, workspace) == first, "a saved plan is not applied yet"
    await plan_it(listener, await take(listener), tmp_path)
    await server.api.post(f"/runs/{run}/actions/apply")
    await apply_it(listener, await take(listener), tmp_path)
    assert await server.status(run) == "applied"
    assert await newest(server, workspace) == saved
    shown = (await server.api.get(f"/configuration-versions/{saved}")).json()["data"]["attributes"]
    assert shown["provisional"] is False
    made = (await server.run(workspace, only)).json()["data"]["attributes"]
    assert made["plan-only"] is True


async def test_a_saved_plan_goes_when_the_state_is_newer(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    saved = [(await server.run(workspace, message=word, **{"save-plan": True})).json()["data"]["id"] for word in "ab"]
    for _ in saved:
        await plan_it(listener, await take(listener), tmp_path)
    assert [await server.status(run) for run in saved] == ["planned_and_saved"] * 2
    await server.api.post(f"/runs/{saved[0]}/actions/apply")
    await apply_it(listener, await take(listener), tmp_path)
    assert [await server.status(run) for run in saved] == ["applied", "discarded"]


@pytest.mark.parametrize("kind", ["plan", "apply"])
async def test_an_offer_that_nobody_can_take_ends_with_the_reason(server: Running, tmp_path: Path, kind: str) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace(**{"auto-apply": True}))["id"]
    await server.configuration(workspace)
    run = (await server.run(workspace)).json()["data"]["id"]
    if kind == "apply":
        await plan_it(listener, await take(listener), tmp_path)
    shown: dict[str, object] = {}
    refusal = wire.Report(phase="plan" if kind == "plan" else "apply", status="refused", reason="no terraform here")
    for number in range(4):
        work = await take(listener)
        assert work.phase == kind
        await listener.report(run, refusal, work.lease.number)
        shown = await attributes(server, run)
        if number < 3:
            assert (shown["status"], "no terraform here" in str(shown["status-message"])) == (f"{kind}_queued", True)
    assert shown["status"] == "errored"
    assert "4 times" in str(shown["error-message"])
    assert "listener one gave it back: no terraform here" in str(shown["error-message"])
    url = (await server.api.get(f"/runs/{run}/{kind}")).json()["data"]["attributes"]["log-read-url"]
    log = (await server.api.get(url)).content
    assert (log[:1], log[-1:], b"no terraform here" in log) == (b"\x02", b"\x03", True)
    assert await server.status((await server.run(workspace)).json()["data"]["id"]) == "plan_queued", "the queue is free"


async def test_work_that_cannot_be_made_is_given_back(server: Running, tmp_path: Path) -> None:
    """A sensitive variable, and a listener without a key to seal it to."""
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace(**{"terraform-version": "1.15.5"}))["id"]
    await server.configuration(workspace)
    run = (await server.run(workspace)).json()["data"]["id"]
    secret = {"key": "secret", "value": "x", "category": "env", "sensitive": True}
    assert (await server.post(f"/workspaces/{workspace}/vars", secret, "vars")).status_code == 201
    await Listener.all().update(sealing_key="")
    for _ in range(3):
        with pytest.raises(errors.Unavailable, match="could not be handed"):
            await listener.next_work(0)
        assert await server.status(run) == "plan_queued"
    with pytest.raises(errors.Unavailable):
        await listener.next_work(0)
    shown = await attributes(server, run)
    assert shown["status"] == "errored"
    assert "could not be handed to listener one" in str(shown["error-message"])


async def test_a_retry_copies_all_that_was_asked_for(server: Running, tmp_path: Path) -> None:
    await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    asked = {
        "is-destroy": True, "auto-apply": True, "refresh": False, "allow-empty-apply": True, "message": "why",
        "target-addrs": ["a.b"], "replace-addrs": ["c.d"], "variables": [{"key": "x", "value": '"1"'}],
        "terraform-version": "1.15.5",
    }  # fmt: skip
    run = (await server.run(workspace, **asked)).json()["data"]["id"]
    early = await server.api.post(f"/runs/{run}/actions/retry")
    assert (early.status_code, "plan_queued" in early.text) == (409, True)
    await server.api.post(f"/runs/{run}/actions/cancel")
    again = await server.api.post(f"/runs/{run}/actions/retry")
    assert again.status_code == 201, again.text
    found = again.json()["data"]["attributes"]
    assert {key: found[key] for key in asked if key != "message"} == {k: v for k, v in asked.items() if k != "message"}
    assert "why" in found["message"]


async def test_an_upload_whose_run_is_refused_stands(server: Running) -> None:
    workspace = (await server.workspace(**{"terraform-version": "1.0.0"}))["id"]  # it has a known hole
    more: dict[str, Any] = {"auto-queue-runs": True}
    made = await server.configuration(workspace, **more)
    shown = (await server.api.get(f"/configuration-versions/{made['id']}")).json()["data"]["attributes"]
    assert shown["status"] == "uploaded"
    assert "no run was begun" in shown["error-message"]
    assert "1.0.0" in shown["error-message"]
    assert (await server.api.get(f"/workspaces/{workspace}/runs")).json()["data"] == []


async def test_the_organization_sees_what_waits_and_what_runs(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    one, other = [(await server.workspace())["id"] for _ in range(2)]
    for workspace in (one, other):
        await server.configuration(workspace)
    runs = [(await server.run(where, message=str(n))).json()["data"]["id"] for n, where in enumerate((one, one, other))]
    queued = (await server.api.get("/organizations/default/runs/queue")).json()["data"]
    assert [(row["id"], row["attributes"]["position-in-queue"]) for row in queued] == [
        (runs[0], 0), (runs[1], 1), (runs[2], 0),
    ]  # fmt: skip
    capacity = (await server.api.get("/organizations/default/capacity")).json()["data"]
    assert (capacity["id"], capacity["attributes"]) == ("default", {"pending": 1, "running": 2})
    await plan_it(listener, await take(listener), tmp_path, changes=False)
    assert await server.status(runs[0]) == "planned_and_finished"
    queued = (await server.api.get("/organizations/default/runs/queue")).json()["data"]
    assert [row["id"] for row in queued] == runs[1:]
    everything = await server.api.get("/organizations/default/runs", params={"filter[status]": "plan_queued"})
    assert [row["id"] for row in everything.json()["data"]] == [runs[2], runs[1]], "newest first"


async def test_variables_are_fixed_when_the_plan_is_claimed(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace(**{"auto-apply": True}))["id"]
    made = []
    for key, category, sensitive in (("a", "terraform", False), ("s", "terraform", True), ("E", "env", False)):
        values = {"key": key, "value": "old", "category": category, "sensitive": sensitive}
        made.append((await server.post(f"/workspaces/{workspace}/vars", values, "vars")).json()["data"]["id"])
    await server.configuration(workspace)
    run = (await server.run(workspace, variables=[{"key": "r", "value": "1"}])).json()["data"]["id"]
    plan = await take(listener)
    for each in made:
        body = {"data": {"type": "vars", "attributes": {"value": "new"}}}
        assert (await server.api.patch(f"/workspaces/{workspace}/vars/{each}", json=body)).status_code == 200
    await plan_it(listener, plan, tmp_path)
    work = await take(listener)
    assert work.phase == "apply"

    def value(each: wire.Variable) -> str:
        if not each.sealed:
            return each.value
        info = wire.seal_info(run, "apply", work.lease.number, each.category, each.key)
        return signing.unseal(listener.identity.sealing_key, info, each.sealed).decode()

    found = {(each.category, each.key): value(each) for each in work.variables}
    assert found == {
        ("terraform", "a"): "old", ("terraform", "s"): "old", ("terraform", "r"): "1", ("env", "E"): "new",
    }  # fmt: skip
    assert next(each for each in work.variables if each.key == "s").sealed


async def test_a_plan_file_is_only_taken_with_its_digest(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace(**{"auto-apply": True}))["id"]
    await server.configuration(workspace)
    await server.run(workspace)
    await plan_it(listener, await take(listener), tmp_path)
    work = await take(listener)
    link = work.links["plan"]
    assert link.sha256 == hashlib.sha256(b"plan").hexdigest()
    with pytest.raises(errors.BadGateway, match="SHA-256"):
        await listener.download(link.path, tmp_path / "got", lease=work.lease.number, sha256="0" * 64)
    assert not (tmp_path / "got").exists()
    await listener.download(link.path, tmp_path / "got", lease=work.lease.number, sha256=link.sha256)
    assert (tmp_path / "got").read_bytes() == b"plan"


async def test_an_apply_begins_from_the_state_that_is_current_at_its_claim(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    run = (await server.run(workspace)).json()["data"]["id"]
    plan = await take(listener)
    assert plan.state is None
    await plan_it(listener, plan, tmp_path)
    raw = state_bytes(7, "line")
    made = (await server.state(workspace, raw)).json()["data"]
    assert (await server.api.put(made["attributes"]["hosted-state-upload-url"], content=raw)).status_code == 200
    await server.api.post(f"/runs/{run}/actions/apply")
    work = await take(listener)
    assert work.state == wire.StateRef(serial=7, lineage="line", md5=hashlib.md5(raw).hexdigest())
    await listener.download(work.links["state"].path, tmp_path / "state", lease=work.lease.number)
    assert (tmp_path / "state").read_bytes() == raw


async def test_a_force_cancel_waits_for_the_grace(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    run = (await server.run(workspace)).json()["data"]["id"]
    work = await take(listener)
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    path = f"/runs/{run}/actions/force-cancel"
    assert (await server.api.post(path)).status_code == 409, "not canceled yet"
    await server.api.post(f"/runs/{run}/actions/cancel")
    shown = await attributes(server, run)
    assert shown["actions"]["is-force-cancelable"] is False  # type: ignore[index]
    assert shown["force-cancel-available-at"]
    early = await server.api.post(path)
    assert (early.status_code, "to end by itself" in early.text) == (409, True)
    await Run.filter(id=run).update(force_cancel_available_at=clock.now() - timedelta(seconds=1))
    assert (await attributes(server, run))["actions"]["is-force-cancelable"] is True  # type: ignore[index]
    assert (await server.api.post(path)).status_code == 202
    pulse = await listener.beat(wire.Beat(leases=[wire.HeldLease(run_id=run, phase="plan", number=work.lease.number)]))
    assert pulse.cancels == {run: "force-cancel"}
    assert await server.status(run) == "planning"
    await listener.report(run, wire.Report(phase="plan", status="canceled"), work.lease.number)
    shown = await attributes(server, run)
    assert (shown["status"], bool(shown["force-canceled-at"])) == ("canceled", True)


async def test_a_lost_apply_says_what_it_waits_for(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace(**{"auto-apply": True}))["id"]
    await server.configuration(workspace)
    run = (await server.run(workspace)).json()["data"]["id"]
    path = f"/runs/{run}/actions/release"
    await plan_it(listener, await take(listener), tmp_path)
    work = await take(listener)
    await listener.report(run, wire.Report(phase="apply", status="applying"), work.lease.number)
    refused = await server.api.post(path)
    assert (refused.status_code, "its listener is not lost" in refused.text) == (409, True)
    await Phase.filter(id=leases.phase_id_of(run, "apply")).update(lease_until=-1.0)
    await leases.sweep(server.services)
    shown = await attributes(server, run)
    assert "waiting for it to come back, or for somebody to release the run" in str(shown["status-message"])
    assert (await server.api.post(f"/workspaces/{workspace}/actions/lock")).status_code == 409, "it keeps the workspace"
    assert (await server.api.delete(f"/workspaces/{workspace}?force=true")).status_code == 409
    assert (await server.api.post(path)).status_code == 202
    shown = await attributes(server, run)
    assert (shown["status"], shown["status-message"]) == ("errored", "")
    assert "the state may be behind" in str(shown["error-message"])
    assert (await server.api.post(f"/workspaces/{workspace}/actions/lock")).status_code == 200


async def test_a_forced_state_says_which_one_it_replaced(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    workspace = (await server.workspace())["id"]

    async def push(raw: bytes) -> dict[str, object]:
        made = await server.state(workspace, raw)
        assert made.status_code == 201, made.text
        url = made.json()["data"]["attributes"]["hosted-state-upload-url"]
        assert (await server.api.put(url, content=raw)).status_code == 200
        shown = (await server.api.get(f"/state-versions/{made.json()['data']['id']}")).json()["data"]
        return {"id": shown["id"], **shown["attributes"]}

    old = state_bytes(5, "line")
    first = await push(old)
    assert first["replaced"] is None
    foreign = state_bytes(1, "foreign")
    assert (await server.state(workspace, foreign)).status_code == 409, "without the lock"
    assert (await server.api.post(f"/workspaces/{workspace}/actions/lock")).status_code == 200
    with caplog.at_level(logging.WARNING):
        second = await push(foreign)  # an admin who holds the manual lock: the cloud block cannot send `force`
    assert second["replaced"] == {
        "id": first["id"], "serial": 5, "lineage": "line", "md5": hashlib.md5(old).hexdigest(),
    }  # fmt: skip
    assert any(
        str(first["id"]) in record.getMessage() and workspace in record.getMessage() for record in caplog.records
    )
    assert (await push(state_bytes(2, "foreign")))["replaced"] is None
    assert (
        json.loads((await server.api.get(str(second["hosted-state-download-url"]), follow_redirects=True)).content)[
            "lineage"
        ]
        == "foreign"
    )
