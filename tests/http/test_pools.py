"""Pools as people see them, who may use them, and what a run's token may read."""

from pathlib import Path
from typing import Any

import httpx

from kit.serving import Running, state_bytes, tar
from terrapod_server.app import ENDPOINTS
from terrapod_server.kit.api.declare import Page, Route
from terrapod_server.kit.caller import Access
from terrapod_server.workspaces.model import Workspace
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


async def test_pools_are_found_by_the_workspace_that_may_use_them(server: Running) -> None:
    await server.workspace("mine")
    mine = (await server.api.get("/organizations/default/workspaces/mine")).json()["data"]["id"]
    linked = [{"type": "workspaces", "id": mine}]
    few = {"organization-scoped": False}
    await server.post(POOLS, {"name": "own", **few}, "agent-pools", allowed_workspaces=linked)
    await server.post(POOLS, {"name": "foreign", **few}, "agent-pools")
    for query, names in (
        ("filter[allowed_workspaces][name]=mine", ["default", "own"]),
        ("filter[allowed_workspaces][name]=nobody", ["default"]),
        ("q=OR&sort=-name", ["foreign"]),
        ("sort=created-at", ["default", "own", "foreign"]),
    ):
        found = (await server.api.get(f"{POOLS}?{query}")).json()["data"]
        assert [each["attributes"]["name"] for each in found] == names, query


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


async def test_an_excluded_workspace_may_not_use_a_pool(server: Running, tmp_path: Path) -> None:
    """Not though the pool is open to all, nor though it is allowed by name; whenever it was that it was excluded."""
    mine, barred = (await server.workspace())["id"], (await server.workspace())["id"]
    linked = [{"type": "workspaces", "id": barred}]
    made = await server.post(POOLS, {"name": "most"}, "agent-pools", excluded_workspaces=linked)
    assert made.status_code == 201, made.text
    pool = made.json()["data"]["id"]
    assert made.json()["data"]["relationships"]["excluded-workspaces"]["data"] == linked
    listener = await server.listener(tmp_path / "home", pool_id=pool)

    async def change(**listed: list[str]) -> int:
        related = {
            f"{name}-workspaces": {"data": [{"type": "workspaces", "id": each} for each in ids]}
            for name, ids in listed.items()
        }
        body = {"data": {"type": "agent-pools", "relationships": related}}
        return (await server.api.patch(f"/agent-pools/{pool}", json=body)).status_code

    async def assign(workspace: str) -> int:
        body = {"data": {"type": "workspaces", "attributes": {"execution-mode": "agent", "agent-pool-id": pool}}}
        return (await server.api.patch(f"/workspaces/{workspace}", json=body)).status_code

    assert (await assign(mine), await assign(barred)) == (200, 422)
    assert await change(allowed=[barred, mine]) == 200
    assert await assign(barred) == 422, "the exclusion wins"
    assert await change(excluded=["ws-unknown"]) == 422
    shown = (await server.api.get(f"/agent-pools/{pool}")).json()["data"]["relationships"]
    assert [each["id"] for each in shown["excluded-workspaces"]["data"]] == [barred], "what is not sent stays"
    await server.configuration(mine)
    run = (await server.run(mine)).json()["data"]["id"]
    assert await change(excluded=[mine]) == 200
    assert await listener.next_work(0.2) is None
    waits = (await server.shown(run))["waits-for"]
    assert (waits["kind"], "is not open to workspace" in waits["text"]) == ("pool", True)
    assert (await server.run(mine)).status_code == 422
    found = (await server.api.get(f"{POOLS}?filter[allowed_workspaces][name]={await name_of(mine)}")).json()["data"]
    assert [each["attributes"]["name"] for each in found] == ["default"]
    assert await change(excluded=[]) == 200
    work = await listener.next_work(5)
    assert work is not None
    assert work.run_id == run
    default = f"/agent-pools/{await server.pool_id()}"
    related = {"excluded-workspaces": {"data": linked}}
    body = {"data": {"type": "agent-pools", "relationships": related}}
    assert (await server.api.patch(default, json=body)).status_code == 200
    await server.configuration(barred)
    assert (await server.run(barred)).status_code == 422, "the pool default too"


async def name_of(workspace: str) -> str:
    return str((await Workspace.get(id=workspace)).name)


#: What a run's token may ask of things that are for every run.
FOR_EVERY_RUN = (
    "/api/v2/organizations/{org}",
    "/api/v2/organizations/{org}/entitlement-set",
    "/api/v2/binary-cache/{tool}/{version}/{os}/{arch}",
    "/api/v2/registry/modules/{namespace}/{name}/{provider}/versions",
    "/api/v2/registry/modules/{namespace}/{name}/{provider}/{version}/download",
)


async def with_state(server: Running) -> dict[str, str]:
    """Path parameters that name a new workspace and what it holds."""
    workspace = await server.workspace()
    raw = state_bytes(1, outputs={"a": {"value": "secret", "type": "string", "sensitive": True}})
    await server.api.post(f"/workspaces/{workspace['id']}/actions/lock")
    made = await server.state(workspace["id"], raw)
    assert made.status_code == 201, made.text
    for name in ("hosted-state-upload-url", "hosted-json-state-upload-url"):
        put = await server.api.put(made.json()["data"]["attributes"][name], content=raw)
        assert put.status_code == 200, put.text
    await server.api.post(f"/workspaces/{workspace['id']}/actions/unlock")
    state = made.json()["data"]["id"]
    outputs = (await server.api.get(f"/state-versions/{state}/outputs")).json()["data"]
    return {
        "workspace": workspace["id"],
        "workspace_name": workspace["attributes"]["name"],
        "state_version": state,
        "state_version_output": outputs[0]["id"],
    }


async def module(server: Running) -> dict[str, str]:
    """Path parameters that name a published module, and an engine."""
    modules = "/organizations/default/registry-modules"
    owned = await server.post(modules, {"name": "net", "provider": "aws"})
    assert owned.status_code == 201
    made = await server.post(f"{modules}/private/default/net/aws/versions", {"version": "1.0.0"})
    assert (await server.api.put(made.json()["data"]["links"]["upload"], content=tar({"a.tf": b""}))).status_code == 200
    return {"module": owned.json()["data"]["id"], "namespace": "default", "name": "net", "provider": "aws", "version": "1.0.0",
            "tool": "terraform", "os": "linux", "arch": "amd64"}  # fmt: skip


async def test_a_runs_token_reads_modules_and_its_own_state_and_nothing_else(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    mine, other, sharing = [await with_state(server) for _ in range(3)]
    linked = [{"type": "workspaces", "id": mine["workspace"]}]
    consumers = f"/workspaces/{sharing['workspace']}/relationships/remote-state-consumers"
    assert (await server.api.post(consumers, json={"data": linked})).status_code == 204
    shared = {"org": "default", **await module(server)}
    await server.configuration(mine["workspace"])
    run = (await server.run(mine["workspace"])).json()["data"]["id"]
    work = await listener.next_work(10)
    assert work is not None
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    more = {"run": run, "plan": run.replace("run-", "plan-"), "pool": await server.pool_id(),
            "listener": listener.identity.kept.listener_id}  # fmt: skip

    def filled(endpoint: Route, values: dict[str, str]) -> str:
        return "/".join(
            values.get(part[1:-1], "some-thing") if part.startswith("{") else part for part in endpoint.path.split("/")
        )

    headers = {"Authorization": f"Bearer {work.run_token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=20) as api:
        swept = 0
        for endpoint in ENDPOINTS:
            if endpoint.needs in {Access.PUBLIC, Access.CAPABILITY}:
                continue
            path = filled(endpoint, {**mine, **shared, **more})
            body: dict[str, Any] | None = None if endpoint.method == "GET" else {"data": {"attributes": {}}}
            answer = await api.request(endpoint.method, path, json=body)
            swept += 1
            if isinstance(endpoint, Page):  # it knows sessions alone
                cookie = {"Cookie": f"terrapod={work.run_token}"}
                for led in (answer, await api.request(endpoint.method, path, json=body, headers=cookie)):
                    assert (led.status_code, led.headers["location"][:8]) == (303, "/sign-in"), path
                continue
            if not endpoint.run_token:
                assert answer.status_code in {401, 403, 404}, (endpoint.method, path, answer.text)
                continue
            assert endpoint.method == "GET", path
            assert answer.status_code not in {401, 403, 404, 500}, (path, answer.text)
            if endpoint.path in FOR_EVERY_RUN:
                continue
            allowed = await api.get(filled(endpoint, {**sharing, **shared}))
            assert allowed.status_code == answer.status_code, (allowed.url, allowed.text)
            foreign = await api.get(filled(endpoint, {**other, **shared}))
            assert foreign.status_code in {403, 404}, (foreign.url, foreign.text)
            assert "secret" not in foreign.text
        assert swept > 120
        related = await api.get(f"/api/v2/workspaces/{mine['workspace']}?include=current_run,current_state_version")
        assert [each["type"] for each in related.json()["included"]] == ["state-versions"]
        await listener.report(run, wire.Report(phase="plan", status="errored", error_message="over"), work.lease.number)
        for path in (f"/api/v2/workspaces/{mine['workspace']}/current-state-version",
                     "/api/v2/registry/modules/default/net/aws/versions"):  # fmt: skip
            assert (await api.get(path)).status_code == 401, "the token ends with the lease"
