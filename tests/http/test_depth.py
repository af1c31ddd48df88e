"""Queue depth of a pool in one call, and draining a listener from the server."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from kit.cli import of_server
from kit.phases import plan_it, take
from kit.serving import DATA, Running
from terrapod_server.agents.model import Listener
from terrapod_server.runs import leases
from terrapod_server.runs.model import Phase
from terrapod_shared import clock, wire

LOCAL = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]


async def pool(server: Running) -> DATA:
    found: DATA = (await server.api.get(f"/agent-pools/{await server.pool_id()}")).json()["data"]["attributes"]
    return found


async def begin(server: Running, **attributes: Any) -> str:
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    answer = await server.run(workspace, **attributes)
    assert answer.status_code == 201, answer.text
    run: str = answer.json()["data"]["id"]
    return run


def figures(shown: DATA) -> tuple[int, ...]:
    names = ("queue-depth", "queue-depth-plan-only", "running", "held", "free-slots", "slots", "agent-count")
    return tuple(shown[name] for name in names)


async def test_the_depth_of_a_queue(server: Running, tmp_path: Path) -> None:
    one = await server.listener(tmp_path / "1", "one")
    assert figures(await pool(server)) == (0, 0, 0, 0, 5, 5, 1)
    await one.beat(wire.Beat(free_slots=2, capacity=2, local_engines=LOCAL))
    asked, applied = await begin(server), await begin(server)
    works = [await take(one), await take(one)]
    for work in works:
        await plan_it(one, work, tmp_path)
    assert figures(await pool(server)) == (0, 0, 0, 0, 2, 2, 1), "who waits for a person waits for no listener"
    assert (await server.api.post(f"/runs/{applied}/actions/apply")).status_code == 202
    work = await take(one)
    assert figures(await pool(server)) == (0, 0, 1, 0, 1, 2, 1)
    await one.report(applied, wire.Report(phase="apply", status="applying"), work.lease.number)
    await begin(server)
    only = await begin(server, **{"plan-only": True})
    await Phase.filter(run_id=only, kind="plan").update(
        status_timestamps={"queued-at": clock.stamp(clock.now() - timedelta(seconds=90))}
    )
    shown = await pool(server)
    assert figures(shown) == (2, 1, 1, 0, 1, 2, 1)
    assert 90 <= shown["queue-oldest-seconds"] < 120
    await Phase.filter(id=leases.phase_id_of(applied, "apply")).update(lease_until=-1.0)
    await leases.sweep(server.services)
    assert figures(await pool(server))[:4] == (2, 1, 0, 1), "lost: held"
    assert await server.status(asked) == "planned"

    closed = {"data": {"type": "agent-pools", "attributes": {"organization-scoped": False}}}
    assert (await server.api.patch(f"/agent-pools/{await server.pool_id()}", json=closed)).status_code == 200
    assert figures(await pool(server))[:2] == (0, 0), "no listener could take them"
    listed = (await server.api.get("/organizations/default/agent-pools")).json()["data"][0]["attributes"]
    assert figures(listed) == figures(await pool(server))


async def test_a_listener_is_drained_from_the_server(server: Running, tmp_path: Path) -> None:
    cli = of_server(server, tmp_path)
    one = await server.listener(tmp_path / "1", "one")
    run = await begin(server)
    work = await take(one)
    await one.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    drained = await cli.ok("pools", "drain", "default", "one")
    assert (drained["status"], drained["drain-requested"], drained["running"]) == ("draining", True, 1)
    assert (await one.beat(wire.Beat(local_engines=LOCAL, capacity=5))).drain is True
    await begin(server)
    assert await one.next_work(0) is None, "nothing new for it"
    [row] = await cli.ok("pools", "listeners", "default")
    assert (row["status"], row["running"]) == ("draining", 1), "what it has begun it ends"
    shown = await cli.ok("pools", "show", "default")
    assert (shown["queue-depth"], shown["slots"], shown["agent-count"]) == (1, 0, 1)
    table = await cli("pools", "list")
    assert ("WAITING" in table.out, "0/0" in table.out) == (True, True)
    assert "draining" in (await cli("pools", "listeners", "default")).out
    assert (await cli.ok("pools", "drain", "default", "one", "--undo"))["status"] == "online"
    assert (await take(one)).phase == "plan"
    await Listener.filter(name="one").update(last_seen_at=clock.now() - timedelta(minutes=5))
    assert figures(await pool(server))[-3:] == (0, 0, 0), "one that is gone takes nothing"
