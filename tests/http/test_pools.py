"""Pools as people see them, who may use them, and what a run's token may read."""

from pathlib import Path

import httpx

from kit.serving import Running, state_bytes
from terrapod_server.app import ENDPOINTS
from terrapod_server.kit.jsonapi import Access
from terrapod_shared import wire

POOLS = "/organizations/default/agent-pools"


async def test_pools_from_their_creation_to_their_end(server: Running) -> None:
    made = await server.post(POOLS, {"name": "gpu", "description": "big"}, "agent-pools")
    assert made.status_code == 201, made.text
    pool = made.json()["data"]["id"]
    assert (await server.post(POOLS, {"name": "gpu"}, "agent-pools")).status_code == 422
    assert (await server.post(POOLS, {}, "agent-pools")).status_code == 422
    names = [each["attributes"]["name"] for each in (await server.api.get(POOLS)).json()["data"]]
    assert names == ["default", "gpu"]
    change = {"data": {"type": "agent-pools", "attributes": {"description": "bigger"}}}
    changed = (await server.api.patch(f"/agent-pools/{pool}", json=change)).json()["data"]["attributes"]
    assert (changed["name"], changed["description"]) == ("gpu", "bigger")
    workspace = await server.workspace(**{"execution-mode": "agent", "agent-pool-id": pool})
    assert (await server.api.delete(f"/agent-pools/{pool}")).status_code == 409, "in use"
    assert (await server.api.delete(f"/workspaces/{workspace['id']}")).status_code == 204
    assert (await server.api.delete(f"/agent-pools/{pool}")).status_code == 204
    assert (await server.api.get(f"/agent-pools/{pool}")).status_code == 404
    assert (await server.api.delete(f"/agent-pools/{await server.pool_id()}")).status_code == 409


async def test_a_workspace_that_lost_its_grant_is_passed_over(server: Running, tmp_path: Path) -> None:
    mine, other = await server.workspace(), await server.workspace()
    linked = [{"type": "workspaces", "id": mine["id"]}]
    made = await server.post(
        POOLS, {"name": "few", "organization-scoped": False}, "agent-pools", allowed_workspaces=linked
    )
    assert made.status_code == 201, made.text
    pool = made.json()["data"]["id"]
    assert made.json()["data"]["relationships"]["allowed-workspaces"]["data"] == linked
    unknown = [{"type": "workspaces", "id": "ws-unknown"}]
    assert (await server.post(POOLS, {"name": "x"}, "agent-pools", allowed_workspaces=unknown)).status_code == 422
    listener = await server.listener(tmp_path / "home", pool_id=pool)

    async def allow(*workspaces: str) -> None:
        related = {"allowed-workspaces": {"data": [{"type": "workspaces", "id": each} for each in workspaces]}}
        body = {"data": {"type": "agent-pools", "relationships": related}}
        assert (await server.api.patch(f"/agent-pools/{pool}", json=body)).status_code == 200

    async def run_of(workspace: str) -> httpx.Response:
        body = {"data": {"type": "workspaces", "attributes": {"execution-mode": "agent", "agent-pool-id": pool}}}
        changed = await server.api.patch(f"/workspaces/{workspace}", json=body)
        if changed.status_code != 200:
            return changed
        await server.configuration(workspace)
        return await server.run(workspace)

    assert (await run_of(other["id"])).status_code == 422, "never had the grant"
    run = await run_of(mine["id"])
    assert run.status_code == 201, run.text
    await allow()
    assert await listener.next_work(0.2) is None
    await allow(mine["id"])
    work = await listener.next_work(5)
    assert work is not None
    assert work.run_id == run.json()["data"]["id"]


async def test_a_runs_token_reads_its_state_and_nothing_else(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    mine, other = await server.workspace(), await server.workspace()
    for workspace in (mine, other):
        raw = state_bytes(1)
        await server.api.post(f"/workspaces/{workspace['id']}/actions/lock")
        made = await server.state(workspace["id"], raw)
        assert made.status_code == 201, made.text
        put = await server.api.put(made.json()["data"]["attributes"]["hosted-state-upload-url"], content=raw)
        assert put.status_code == 200, put.text
        await server.api.post(f"/workspaces/{workspace['id']}/actions/unlock")
    await server.configuration(mine["id"])
    run = (await server.run(mine["id"])).json()["data"]["id"]
    work = await listener.next_work(10)
    assert work is not None
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    values = {"org": "default", "workspace": mine["id"], "run": run, "pool": await server.pool_id(),
              "listener": listener.identity.kept.listener_id, "name": mine["attributes"]["name"]}  # fmt: skip
    headers = {"Authorization": f"Bearer {work.run_token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=20) as api:
        own = await api.get(f"/api/v2/workspaces/{mine['id']}/current-state-version")
        assert own.status_code == 200, own.text
        foreign = await api.get(f"/api/v2/workspaces/{other['id']}/current-state-version")
        assert foreign.status_code in {403, 404}
        swept = 0
        for endpoint in ENDPOINTS:
            if endpoint.needs in {Access.PUBLIC, Access.CAPABILITY} or endpoint.run_token:
                continue
            path = "/".join(
                values.get(part[1:-1], "some-thing") if part.startswith("{") else part
                for part in endpoint.path.split("/")
            )
            answer = await api.request(endpoint.method, path, json={"data": {"attributes": {}}})
            assert answer.status_code in {401, 403, 404}, (endpoint.method, path, answer.text)
            swept += 1
        assert swept > 80
        await listener.report(run, wire.Report(phase="plan", status="errored", error_message="over"), work.lease.number)
        after = await api.get(f"/api/v2/workspaces/{mine['id']}/current-state-version")
        assert after.status_code == 401, "the token ends with the lease"
