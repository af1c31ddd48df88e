"""What races between server processes: on PostgreSQL, with nothing but its locks between the callers."""

import asyncio
import contextlib

import httpx
import pytest

from kit.serving import Running
from terrapod_server.agents.protocol import claiming
from terrapod_server.identity import actions as identity
from terrapod_server.kit.db.database import postgres_dsn
from terrapod_server.kit.work.bus import Bus
from terrapod_server.runs import leases
from terrapod_server.runs.model import Phase, Run, RunEvent
from terrapod_shared import wire
from terrapod_shared.errors import LeaseEnded

LISTENER, ENGINES = "listener-of-the-races", ["terraform 1.15.5"]
PLANNED = wire.Report(phase="plan", status="planned", has_changes=True)


@pytest.fixture(autouse=True)
async def _engine(pg_server: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A listener of the default pool announces the engine that the runs resolve to."""
    await pg_server.listener(tmp_path_factory.mktemp("home"))


async def begin(server: Running, count: int, **attributes: str) -> list[str]:
    """Runs of so many workspaces, queued."""
    made = []
    for _ in range(count):
        workspace = await server.workspace(**attributes)
        await server.configuration(workspace["id"])
        answer = await server.run(workspace["id"])
        assert answer.status_code == 201, answer.text
        made.append(answer.json()["data"]["id"])
    return made


async def planning(server: Running) -> Phase:
    """The oldest waiting plan, accepted, with what an ended plan must have."""
    phase = await claiming.claim(LISTENER, await server.pool_id(), ENGINES)
    assert phase is not None
    await leases.accept(server.services, phase.run_id, "plan", phase.lease_number, LISTENER)
    for name in ("plan-file", "plan-json"):
        await leases.note_artifact(server.services, phase.run_id, "plan", phase.lease_number, LISTENER, name, "0" * 64)
    return phase


async def end(server: Running, phase: Phase) -> Run:
    return await leases.finish(server.services, phase.run_id, PLANNED, phase.lease_number, LISTENER, 0)


async def test_a_cancel_races_the_end_of_the_plan(pg_server: Running) -> None:
    runs = await begin(pg_server, 6)
    phases = [await planning(pg_server) for _ in runs]

    async def cancel(phase: Phase) -> int:
        return (await pg_server.api.post(f"/runs/{phase.run_id}/actions/cancel")).status_code

    codes, _ = await asyncio.gather(
        asyncio.gather(*(cancel(phase) for phase in phases)),
        asyncio.gather(*(end(pg_server, phase) for phase in phases)),
    )
    for code, phase in zip(codes, phases, strict=True):
        status = await pg_server.status(phase.run_id)
        assert (code, status) in {(202, "canceled"), (409, "planned")}, "never both"
        ends = await RunEvent.filter(run_id=phase.run_id, event__in=["plan", "cancel"]).count()
        assert ends == 1


async def test_confirms_by_two_tokens_race(pg_server: Running) -> None:
    phases = [await planning(pg_server) for _ in await begin(pg_server, 5)]
    token = await pg_server.person("second@example.org", "admin")
    second_id = (await identity.user("second@example.org")).id
    async with httpx.AsyncClient(
        base_url=pg_server.api.base_url, headers={"Authorization": f"Bearer {token}"}, timeout=30
    ) as other:
        for phase in phases:
            await end(pg_server, phase)
            path = f"/runs/{phase.run_id}/actions/apply"
            answers = await asyncio.gather(pg_server.api.post(path), other.post(path))
            assert sorted(answer.status_code for answer in answers) == [202, 409]
            run = await Run.get(id=phase.run_id)
            assert (run.confirmed_by_id == second_id) is (answers[1].status_code == 202)
            assert await RunEvent.filter(run_id=run.id, event="confirm").count() == 1


async def test_a_refusal_races_the_sweep(pg_server: Running) -> None:
    await begin(pg_server, 5)
    for _ in range(5):
        phase = await planning(pg_server)
        await Phase.filter(id=phase.id).update(lease_until=-1.0)

        async def refuse(of: Phase = phase) -> None:
            with contextlib.suppress(LeaseEnded):
                await leases.refuse(pg_server.services, of.run_id, "plan", of.lease_number, LISTENER, "no disk")

        await asyncio.gather(refuse(), leases.sweep(pg_server.services), refuse(), leases.sweep(pg_server.services))
        after = await Phase.get(id=phase.id)
        assert (after.lost_count, after.lease_number, after.lease_state) == (1, phase.lease_number + 1, "ready")
        assert await pg_server.status(phase.run_id) == "plan_queued"
        assert await RunEvent.filter(run_id=phase.run_id, event="lose").count() == 1
        await pg_server.api.post(f"/runs/{phase.run_id}/actions/cancel")  # out of the way of the next claim


async def test_twenty_claims_on_five_phases_of_two_pools(
    pg_server: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = await pg_server.post(
        "/organizations/default/agent-pools", {"name": "second", "organization-scoped": True}, "agent-pools"
    )
    assert made.status_code == 201, made.text
    first, second = await pg_server.pool_id(), made.json()["data"]["id"]
    await pg_server.listener(tmp_path_factory.mktemp("second"), "two", pool_id=second)
    wanted = {first: await begin(pg_server, 3)}
    wanted[second] = await begin(pg_server, 2, **{"execution-mode": "agent", "agent-pool-id": second})
    claims = await asyncio.gather(
        *(claiming.claim(f"listener-{number}", (first, second)[number % 2], ENGINES) for number in range(20))
    )
    taken = [phase for phase in claims if phase is not None]
    for pool, runs in wanted.items():
        assert sorted(phase.run_id for phase in taken if phase.pool_id == pool) == sorted(runs), "each once"
    assert len(taken) == 5
    assert len({phase.lease_listener_id for phase in taken}) == 5
    assert {phase.lease_number for phase in taken} == {1}


async def test_a_wake_up_crosses_processes(pg_server: Running, postgres_url: str) -> None:
    one, other = Bus(postgres_dsn(postgres_url)), Bus(postgres_dsn(postgres_url))
    await asyncio.gather(one.start(), other.start())
    try:
        async with other.subscribe("pool:a") as wanted, other.subscribe("pool:b") as unwanted:
            await one.publish("pool:a")
            assert await wanted.wait(10)
            await one.publish("pool:a")
            assert await wanted.wait(10), "each time"
            assert not await unwanted.wait(0)
        async with pg_server.services.bus.subscribe("pool:a") as served:
            await other.publish("pool:a")
            assert await served.wait(10), "the server hears it too"
    finally:
        await asyncio.gather(one.stop(), other.stop())
