"""Listeners that do not come back are forgotten, but for those that have what somebody waits for."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from kit.phases import apply_it, plan_it, take
from kit.serving import DATA, Running, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.agents import jobs
from terrapod_server.agents.listeners import forget
from terrapod_server.agents.model import Listener
from terrapod_server.runs import leases
from terrapod_server.runs.model import Phase
from terrapod_shared import clock, errors, wire


async def begin(server: Running) -> str:
    workspace: str = (await server.workspace())["id"]
    await server.configuration(workspace)
    assert (await server.run(workspace)).status_code == 201
    return workspace


async def applying(server: Running, listener: ListenerClient, folder: Path) -> wire.Work:
    """An apply in the listener's hands."""
    await begin(server)
    plan = await take(listener)
    await plan_it(listener, plan, folder)
    assert (await server.api.post(f"/runs/{plan.run_id}/actions/apply")).status_code == 202
    work = await take(listener)
    await listener.report(work.run_id, wire.Report(phase="apply", status="applying"), work.lease.number)
    return work


async def shown(server: Running, listener: ListenerClient) -> DATA:
    answer = await server.api.get(f"/listeners/{listener.identity.kept.listener_id}")
    found: DATA = answer.json()["data"]["attributes"]
    return found


async def names() -> set[str]:
    return {row.name for row in await Listener.all()}


async def grow_old(days: int) -> None:
    await Listener.all().update(last_seen_at=clock.now() - timedelta(days=days))


async def test_who_is_offline_for_long_is_forgotten(server: Running, tmp_path: Path) -> None:
    gone = await server.listener(tmp_path / "gone", "gone")
    await server.listener(tmp_path / "asleep", "asleep")
    await grow_old(31)
    await Listener.filter(name="asleep").update(last_seen_at=clock.now() - timedelta(days=29))
    await server.listener(tmp_path / "here", "here")
    listener_id = gone.identity.kept.listener_id
    await jobs.forget_listeners(server.services)
    assert await names() == {"gone", "asleep", "here"}, "a server that has just begun has heard nobody yet"
    server.services.remembered["listeners are heard since"] -= 3601
    both = (jobs.forget_listeners(server.services), jobs.forget_listeners(server.services))
    await asyncio.gather(*both)
    assert await names() == {"asleep", "here"}
    with pytest.raises(errors.UnknownListener):
        await gone.beat(wire.Beat(free_slots=1, capacity=1))

    async def recorded() -> list[DATA]:
        entries = await server.api.get("/admin/audit-log?filter[actor]=terrapod-server")
        return [entry["attributes"] for entry in entries.json()["data"]]

    [entry] = await until(recorded)
    assert (entry["actor-type"], entry["action"], entry["resource-type"]) == ("server", "DELETE", "listeners")
    assert (entry["resource-id"], entry["status-code"]) == (listener_id, 204)
    again = await server.listener(tmp_path / "gone2", "gone")
    assert again.identity.kept.listener_id != listener_id, "its name is free"


async def test_who_has_what_somebody_waits_for_is_kept(server: Running, tmp_path: Path) -> None:
    """A plan, an apply, one that is held, and one whose state is unknown."""
    planning = await server.listener(tmp_path / "1", "planning")
    await begin(server)
    await take(planning)
    busy, free = await server.listener(tmp_path / "2", "applying"), await server.listener(tmp_path / "3", "free")
    work = await applying(server, busy, tmp_path)
    await apply_it(free, await applying(server, free, tmp_path), tmp_path)
    assert [(await shown(server, each))["free-slots"] for each in (planning, busy, free)] == [4, 4, 5]
    pool = (await server.api.get(f"/agent-pools/{await server.pool_id()}")).json()["data"]["attributes"]
    assert pool["free-slots"] == 13, "the sum of its listeners'"

    await grow_old(40)
    assert (await shown(server, planning))["free-slots"] == 0, "who is offline takes nothing"
    assert [row.name for row in await forget(clock.now() - timedelta(days=30))] == ["free"]

    apply_id = leases.phase_id_of(work.run_id, "apply")
    await Phase.filter(id=apply_id).update(lease_until=-1.0)
    await leases.sweep(server.services)
    assert (await Phase.get(id=apply_id)).lease_state == "held"
    assert await forget(clock.now()) == []
    assert (await server.api.post(f"/runs/{work.run_id}/actions/release")).status_code == 202
    assert await forget(clock.now()) == [], "its state is still awaited"
    assert (await server.api.post(f"/workspaces/{work.workspace_id}/actions/force-unlock")).status_code == 200
    spooled = {"run_id": work.run_id, "serial": 1, "size": 9, "left": False}
    await busy.beat(wire.Beat(free_slots=1, capacity=5, spooled=[spooled]))
    assert await forget(clock.now()) == [], "its state could come yet, and from nobody else"
    await busy.beat(wire.Beat(free_slots=1, capacity=5))
    assert [row.name for row in await forget(clock.now())] == ["applying"]


async def test_nobody_is_forgotten_who_calls_meanwhile(pg_server: Running, tmp_path: Path) -> None:
    """Two servers look, while each listener says that it is here: what is left is exactly what answers."""
    listeners = {f"l{n}": await pg_server.listener(tmp_path / f"l{n}", f"l{n}") for n in range(4)}
    for _ in range(3):
        await grow_old(31)
        before = clock.now() - timedelta(days=30)
        beats = (each.beat(wire.Beat(free_slots=1, capacity=1)) for each in listeners.values())
        beating = asyncio.gather(*beats, return_exceptions=True)
        found = await asyncio.gather(*(forget(before) for _ in range(4)))
        answers = dict(zip(listeners, await beating, strict=True))
        gone = [row.name for rows in found for row in rows]
        assert len(gone) == len(set(gone)), "each is forgotten once"
        assert await names() == listeners.keys() - set(gone)
        for name, answer in answers.items():
            assert isinstance(answer, errors.NotFound if name in gone else wire.Pulse), (name, answer)
        for name in gone:
            listeners[name] = await pg_server.listener(tmp_path / name, name)
