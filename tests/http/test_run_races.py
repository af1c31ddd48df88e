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


async def statuses(server: Running, *runs: str) -> list[str]:
    return [await server.status(run) for run in runs]


async def ready(server: Running) -> tuple[str, str]:
    """A workspace and its configuration."""
    workspace = (await server.workspace())["id"]
    return workspace, (await server.configuration(workspace))["id"]


async def test_of_runs_that_are_made_at_once_one_is_queued(pg_server: Running) -> None:
    for is_plan_only in (False, True):
        workspace, _ = await ready(pg_server)
        answers = await asyncio.gather(
            *(pg_server.run(workspace, message=f"{number}", **{"plan-only": is_plan_only}) for number in range(6))
        )
        assert [answer.status_code for answer in answers] == [201] * 6
        runs = await Run.filter(workspace_id=workspace).order_by("id")
        queued = [run for run in runs if run.status.value == "plan_queued"]
        assert len(queued) == (6 if is_plan_only else 1)
        assert [run for run in runs if run.holds_queue] == ([] if is_plan_only else queued)
        shown = {answer.json()["data"]["id"]: answer.json()["data"]["attributes"]["status"] for answer in answers}
        assert shown == {run.id: run.status.value for run in runs}, "each answer told what was so"
        current = (await pg_server.api.get(f"/workspaces/{workspace}")).json()["data"]["relationships"]["current-run"]
        assert current["data"]["id"] == runs[-1 if is_plan_only else 0].id
        for run in runs:
            events = await RunEvent.filter(run_id=run.id).order_by("id").values_list("event", flat=True)
            assert [str(event) for event in events] == (["create", "queue"] if run in queued else ["create"])
            plan = await Phase.get(id=run.plan_id)
            assert (plan.status, plan.lease_state) == (("queued", "ready") if run in queued else ("pending", "none"))


async def test_the_same_request_at_once_makes_one_run(pg_server: Running) -> None:
    workspace, version = await ready(pg_server)
    answers = await asyncio.gather(*(pg_server.run(workspace, version, message="same") for _ in range(5)))
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    assert await Run.filter(workspace_id=workspace).count() == 1
    assert await Phase.filter(workspace_id=workspace).count() == 2


async def test_a_new_run_races_the_cancel_of_the_one_before_it(pg_server: Running) -> None:
    for _ in range(5):
        workspace, _ = await ready(pg_server)
        first = (await pg_server.run(workspace)).json()["data"]["id"]
        canceled, made = await asyncio.gather(
            pg_server.api.post(f"/runs/{first}/actions/cancel"), pg_server.run(workspace, message="next")
        )
        second = made.json()["data"]["id"]
        assert (canceled.status_code, made.status_code) == (202, 201)
        assert await statuses(pg_server, first, second) == ["canceled", "plan_queued"], "whoever came first"
        assert await RunEvent.filter(run_id=second, event="queue").count() == 1


async def test_a_new_run_races_the_confirmation_of_the_one_before_it(pg_server: Running) -> None:
    for _ in range(3):
        [first] = await begin(pg_server, 1)
        await end(pg_server, await planning(pg_server))
        workspace = (await Run.get(id=first)).workspace_id
        confirmed, made = await asyncio.gather(
            pg_server.api.post(f"/runs/{first}/actions/apply"), pg_server.run(workspace, message="next")
        )
        second = made.json()["data"]["id"]
        assert (confirmed.status_code, made.status_code) == (202, 201)
        assert await statuses(pg_server, first, second) == ["apply_queued", "pending"]
        assert (await pg_server.api.post(f"/runs/{first}/actions/cancel")).status_code == 202
        assert await statuses(pg_server, first, second) == ["canceled", "plan_queued"]
        await pg_server.api.post(f"/runs/{second}/actions/cancel")  # out of the way of the next claim


async def test_a_new_run_races_the_deletion_of_its_workspace(pg_server: Running) -> None:
    for _ in range(5):
        workspace, _ = await ready(pg_server)
        deleted, made = await asyncio.gather(pg_server.api.delete(f"/workspaces/{workspace}"), pg_server.run(workspace))
        assert deleted.status_code == 204
        assert made.status_code in (201, 404, 422)
        assert not await Run.filter(workspace_id=workspace).exists(), "nothing is left, whoever came first"
        assert not await Phase.filter(workspace_id=workspace).exists()
        assert not await RunEvent.filter(workspace_id=workspace).exists()
