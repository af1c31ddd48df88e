"""Why a run waits, in words: in its attributes, on the command line, and in the log's text."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kit.cli import of_server
from kit.phases import plan_it, take
from kit.serving import DATA, Running, until
from terrapod_server.agents import waits
from terrapod_server.agents.model import Listener
from terrapod_server.runs import leases
from terrapod_server.runs.model import Phase, Run
from terrapod_shared import clock, wire


async def why(server: Running, run: str) -> DATA:
    found: DATA = (await server.api.get(f"/runs/{run}")).json()["data"]["attributes"]["waits-for"]
    return found


async def tells(server: Running, run: str, kind: str, text: str) -> DATA:
    """Waits until a run tells this; what others than its workspace have changed is known half a second later."""

    async def told() -> DATA | None:
        found = await why(server, run)
        return found if found and found["kind"] == kind and text in found["text"] else None

    found: DATA = await until(told)
    return found


async def kinds(server: Running) -> dict[str, Any]:
    rows = (await server.api.get("/organizations/default/runs?page[size]=100")).json()["data"]
    return {row["id"]: (row["attributes"]["waits-for"] or {}).get("kind") for row in rows}


async def begin(server: Running, workspace: str, **attributes: Any) -> str:
    answer = await server.run(workspace, **attributes)
    assert answer.status_code == 201, answer.text
    run: str = answer.json()["data"]["id"]
    return run


async def ready(server: Running, name: str = "", **attributes: Any) -> str:
    workspace = await server.workspace(name, **attributes)
    await server.configuration(workspace["id"])
    found: str = workspace["id"]
    return found


async def test_a_run_says_what_it_waits_for(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home", "eu-west")
    one = Listener.filter(name="eu-west")
    prod = await ready(server, "prod")
    first, second, third = [await begin(server, prod) for _ in range(3)]
    only = await begin(server, prod, **{"plan-only": True})
    found = await tells(server, first, "listener", "pool default has a free slot")
    assert found["since"]
    assert (await kinds(server)) == {first: "listener", second: "queue", third: "queue", only: "listener"}
    assert (await why(server, third))["text"] == f"waits for 2 runs before it; next is {first}, which is plan queued"

    await one.update(last_seen_at=clock.now() - timedelta(minutes=5))
    found = await tells(server, first, "no-listener", "none of pool default has been seen since 20")
    await one.update(last_seen_at=clock.now(), drain_requested=True)
    await tells(server, first, "no-listener", "take no more work")
    await one.update(drain_requested=False, local_engines=[])
    found = await tells(server, first, "engine", "none of pool default has terraform 1.15.5")
    local = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]
    await listener.beat(wire.Beat(free_slots=1, capacity=1, local_engines=local))

    work = await take(listener)
    assert work.run_id == first
    await listener.report(first, wire.Report(phase="plan", status="planning"), work.lease.number)
    assert await why(server, first) is None, "it does not wait"
    await tells(server, only, "busy", f"waits for a listener: 1 of 1 slots of pool default are in use, by {first}")
    pool = await server.pool_id()
    closed = {"data": {"type": "agent-pools", "attributes": {"organization-scoped": False}}}
    assert (await server.api.patch(f"/agent-pools/{pool}", json=closed)).status_code == 200
    found = await tells(server, only, "pool", "not open to workspace prod")
    opened = {"data": {"type": "agent-pools", "attributes": {"organization-scoped": True}}}
    assert (await server.api.patch(f"/agent-pools/{pool}", json=opened)).status_code == 200


async def test_it_waits_for_people(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    prod = await ready(server, "prod")
    first, second = await begin(server, prod), await begin(server, prod)
    await plan_it(listener, await take(listener), tmp_path)
    assert (await why(server, first))["kind"] == "person"
    assert "which is planned and waits for somebody's approval" in (await why(server, second))["text"]
    locked = await server.api.post(f"/workspaces/{prod}/actions/lock", json={"reason": "audit"})
    assert locked.status_code == 200
    await tells(server, second, "lock", "waits until the workspace is unlocked: audit (locked by admin@localhost)")
    cli = of_server(server, tmp_path)
    shown = await cli("runs", "show", second)
    assert "waits until the workspace is unlocked: audit" in shown.out
    assert "lock" in (await cli("runs", "list")).out
    assert (await server.api.post(f"/runs/{first}/actions/discard")).status_code == 202
    assert await why(server, first) is None

    other = (await server.workspace("other"))["id"]
    announced = await server.post(f"/workspaces/{other}/configuration-versions", {"auto-queue-runs": False})
    run = (await server.run(other, announced.json()["data"]["id"])).json()["data"]["id"]
    assert (await why(server, run))["kind"] == "configuration"


async def test_what_was_given_back_says_the_last_reason(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home", "eu-west")
    run = await begin(server, await ready(server))
    work = await take(listener)
    await tells(server, run, "listener", "waits for a listener: eu-west is taking it")
    await listener.report(run, wire.Report(phase="plan", status="refused", reason="no room"), work.lease.number)
    await tells(server, run, "refused", "listener eu-west gave it back: no room")
    await Phase.filter(run_id=run, kind="plan").update(
        status_timestamps={"queued-at": clock.stamp(clock.now() - timedelta(seconds=200))}
    )
    again = await take(listener)
    assert again.waited.startswith("Waited 3 min 20 s for a listener (at last listener eu-west gave it back: no room)")


async def test_a_held_apply_says_what_can_be_done(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home", "eu-west")
    run = await begin(server, await ready(server))
    await plan_it(listener, await take(listener), tmp_path)
    assert (await server.api.post(f"/runs/{run}/actions/apply")).status_code == 202
    await Run.filter(id=run).update(
        status_timestamps={
            "planned-at": clock.stamp(clock.now() - timedelta(hours=2)), "confirmed-at": clock.stamp(clock.now()),
        }
    )  # fmt: skip
    work = await take(listener)
    assert work.waited == "Waited 2 h for somebody's approval."
    await listener.report(run, wire.Report(phase="apply", status="applying"), work.lease.number)
    assert await why(server, run) is None
    await Phase.filter(id=leases.phase_id_of(run, "apply")).update(lease_until=-1.0)
    await leases.sweep(server.services)
    found = await why(server, run)
    assert found["kind"] == "held"
    assert "listener eu-west was lost while it applied (last seen 20" in found["text"]
    assert f"terrapod runs release {run}" in found["text"]
    assert "runs release" in (await of_server(server, tmp_path)("runs", "show", run)).out
    await listener.beat(wire.Beat(leases=[wire.HeldLease(run_id=run, phase="apply", number=work.lease.number)]))
    assert await why(server, run) is None, "its listener came back"


async def test_who_may_not_read_a_run_does_not_learn_its_id(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    local = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]
    await listener.beat(wire.Beat(free_slots=1, capacity=1, local_engines=local))
    hidden = await begin(server, await ready(server))
    work = await take(listener)
    await listener.report(hidden, wire.Report(phase="plan", status="planning"), work.lease.number)
    mine = await begin(server, await ready(server, labels={"team": "a"}))
    role = {"name": "reads-a", "workspace-permission": "read", "allow-labels": {"team": "a"}}
    assert (await server.post("/roles", role)).status_code == 201
    assert hidden in (await why(server, mine))["text"]
    async with server.as_(await server.person("a@example.org", "reads-a")) as person:
        text = (await person.get(f"/runs/{mine}")).json()["data"]["attributes"]["waits-for"]["text"]
    assert text == "waits for a listener: 1 of 1 slots of pool default are in use"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered does not run out during the test: all that is seen to change is forgotten, or asked anew."""
    monkeypatch.setattr(waits, "FRESH_S", 600.0)


@pytest.mark.usefixtures("slow")
async def test_a_page_costs_one_statement_and_final_runs_none(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.listener(tmp_path / "home")
    workspaces = [await ready(server) for _ in range(3)]
    made = [await begin(server, each) for each in workspaces for _ in range(3)]
    asked: list[list[str]] = []
    told = waits.facts

    async def counted(run_ids: Any, principal: Any) -> Any:
        asked.append(list(run_ids))
        return await told(run_ids, principal)

    monkeypatch.setattr(waits, "facts", counted)
    shown = await server.api.get("/organizations/default/runs?page[size]=100")
    assert len(asked) <= 1
    assert {row["id"] for row in shown.json()["data"]} == set(made)
    asked.clear()
    again = await server.api.get("/organizations/default/runs?page[size]=100")
    assert (asked, again.json()) == ([], shown.json())
    for run in made:
        await server.api.post(f"/runs/{run}/actions/cancel")
        await server.api.post(f"/runs/{run}/actions/discard")
    assert {await server.status(run) for run in made} <= {"canceled", "discarded"}
    asked.clear()
    await server.api.get("/organizations/default/runs?page[size]=100")
    assert asked == [], "what is over waits for nothing"


@pytest.mark.usefixtures("slow")
async def test_what_changes_in_its_own_workspace_is_known_at_once(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await ready(server)
    runs = [await begin(server, workspace) for _ in range(4)]
    rows = (await server.api.get(f"/workspaces/{workspace}/runs")).json()["data"]
    positions = {row["id"]: row["attributes"]["position-in-queue"] for row in rows}
    assert positions == dict(zip(runs, range(4), strict=True))
    assert (await why(server, runs[3]))[
        "text"
    ] == f"waits for 3 runs before it; next is {runs[0]}, which is plan queued"
    work = await take(listener)
    await listener.report(runs[0], wire.Report(phase="plan", status="planning"), work.lease.number)
    assert (await why(server, runs[3]))["text"] == f"waits for 3 runs before it; next is {runs[0]}, which is planning"
    assert (await server.api.post(f"/runs/{runs[1]}/actions/cancel")).status_code == 202
    assert (await why(server, runs[3]))["text"] == f"waits for 2 runs before it; next is {runs[0]}, which is planning"
    shown = (await server.api.get(f"/runs/{runs[3]}")).json()["data"]["attributes"]
    assert shown["position-in-queue"] == 2
    assert (await why(server, runs[0])) is None


@pytest.mark.usefixtures("slow")
async def test_names_follow_rights_whatever_others_have_seen(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    local = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]
    await listener.beat(wire.Beat(free_slots=1, capacity=1, local_engines=local))
    other = await ready(server)
    hidden = await begin(server, other)
    work = await take(listener)
    await listener.report(hidden, wire.Report(phase="plan", status="planning"), work.lease.number)
    mine = await begin(server, await ready(server, labels={"team": "a"}))
    role = {"name": "reads-a", "workspace-permission": "read", "allow-labels": {"team": "a"}}
    assert (await server.post("/roles", role)).status_code == 201
    async with server.as_(await server.person("a@example.org", "reads-a")) as person:
        for labels, is_named in (({}, False), ({"team": "a"}, True), ({}, False)):
            body = {"data": {"type": "workspaces", "attributes": {"labels": labels}}}
            assert (await server.api.patch(f"/workspaces/{other}", json=body)).status_code == 200
            for path in (f"/runs/{mine}", "/organizations/default/runs"):
                assert hidden in (await server.api.get(path)).text, "to an admin"
                seen = (await person.get(path)).json()["data"]
                row = seen if isinstance(seen, dict) else next(each for each in seen if each["id"] == mine)
                assert (hidden in row["attributes"]["waits-for"]["text"]) is is_named
