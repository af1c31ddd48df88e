"""Roles, assignments, users and tokens: who may do what, through the API, on both databases."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.serving import DATA, Running, tar, until
from terrapod_server import app
from terrapod_server.access import visible
from terrapod_server.access.rules import Rights, Role
from terrapod_server.identity import actions as identity
from terrapod_server.identity.model import ApiToken
from terrapod_server.kit.caller import Level
from terrapod_server.kit.db import database
from terrapod_server.kit.work.bus import Bus
from terrapod_server.runs import leases
from terrapod_server.runs import stream as events
from terrapod_server.workspaces import actions as workspaces
from terrapod_server.workspaces.model import Workspace
from terrapod_shared import clock


async def role(server: Running, name: str, level: str, **conditions: Any) -> None:
    answer = await server.post("/roles", {"name": name, "workspace-permission": level, **conditions})
    assert answer.status_code == 201, answer.text


async def names(client: httpx.AsyncClient, path: str = "/organizations/default/workspaces") -> list[str]:
    return [row["attributes"]["name"] for row in (await client.get(path)).json()["data"]]


async def test_roles_are_made_changed_shown_and_removed(server: Running) -> None:
    made = await server.post(
        "/roles",
        {
            "name": "developer", "description": "Dev", "workspace-permission": "write",
            "allow-labels": {"env": "dev", "team": ["a", "b"]}, "deny-names": ["db"],
        },
    )  # fmt: skip
    assert made.status_code == 201
    shown = (await server.api.get("/roles/developer")).json()["data"]
    assert (shown["id"], shown["type"]) == ("developer", "roles")
    assert shown["attributes"]["allow-labels"] == {"env": "dev", "team": ["a", "b"]}
    assert shown["attributes"]["built-in"] is False
    again = await server.post("/roles", {"name": "developer", "workspace-permission": "read"})
    assert again.status_code == 422
    for wrong in (
        {"name": "admin", "workspace-permission": "read"},
        {"name": "x", "workspace-permission": "root"},
        {"name": "x"},
        {"workspace-permission": "read"},
        {"name": "x", "workspace-permission": "read", "allow-labels": {"a": 1}},
        {"name": "x", "workspace-permission": "read", "allow-names": [1]},
        {
            "name": "x",
            "workspace-permission": "read",
            "allow-labels": {f"k{key}": [f"v{value}" for value in range(501)] for key in range(2)},
        },
    ):
        assert (await server.post("/roles", wrong)).status_code == 422, wrong
    changed = await server.api.patch("/roles/developer", json={"data": {"attributes": {"deny-names": []}}})
    assert changed.json()["data"]["attributes"]["deny-names"] == []
    assert changed.json()["data"]["attributes"]["allow-labels"]["env"] == "dev"
    listed = (await server.api.get("/roles?page[size]=2&page[number]=2")).json()
    assert [row["id"] for row in listed["data"]] == ["everyone", "developer"]
    assert listed["meta"]["pagination"]["total-count"] == 4
    for built_in in ("admin", "audit", "everyone"):
        assert (await server.api.delete(f"/roles/{built_in}")).status_code == 422
        assert (await server.api.patch(f"/roles/{built_in}", json={"data": {"attributes": {}}})).status_code == 422
    assert (await server.api.delete("/roles/developer")).status_code == 204
    assert (await server.api.get("/roles/developer")).status_code == 404


async def test_assignments_replace_and_act_at_once(server: Running) -> None:
    await role(server, "dev", "write", **{"allow-labels": {"env": "dev"}})
    workspace = await server.workspace("app", labels={"env": "dev"})
    token = await server.person("ann@example.org")
    async with server.as_(token) as ann:
        assert (await ann.get(f"/workspaces/{workspace['id']}")).status_code == 404
        body: DATA = {"data": {"attributes": {"provider-name": "local", "email": "Ann@example.org", "roles": ["dev"]}}}
        given_ = await server.api.put("/role-assignments", json=body)
        assert [row["attributes"]["role-name"] for row in given_.json()["data"]] == ["dev"]
        shown = await ann.get(f"/workspaces/{workspace['id']}")
        assert shown.json()["data"]["attributes"]["permissions"]["can-queue-apply"] is True
        assert shown.json()["data"]["attributes"]["permissions"]["can-update"] is False
        body["data"]["attributes"]["roles"] = ["nothing"]
        assert (await server.api.put("/role-assignments", json=body)).status_code == 422
        listed = (await server.api.get("/role-assignments?filter[email]=ann@example.org")).json()["data"]
        assert [row["attributes"]["role-name"] for row in listed] == ["dev"]
        path = "/role-assignments/local/ann@example.org/dev"
        assert (await server.api.delete(path)).status_code == 204
        assert (await server.api.delete(path)).status_code == 404
        assert (await ann.get(f"/workspaces/{workspace['id']}")).status_code == 404


async def test_a_role_of_another_provider_gives_nothing(server: Running) -> None:
    token = await server.person("ann@example.org")
    body: DATA = {"data": {"attributes": {"provider-name": "sso", "email": "ann@example.org", "roles": ["admin"]}}}
    assert (await server.api.put("/role-assignments", json=body)).status_code == 200
    async with server.as_(token) as ann:
        assert (await ann.get("/roles")).status_code == 403


async def test_lists_show_what_may_be_read_with_its_level(server: Running) -> None:
    await role(server, "dev", "plan", **{"allow-labels": {"env": ["dev", "test"]}, "deny-labels": {"secret": "yes"}})
    await role(server, "ops", "write", **{"allow-names": ["d1", "x1"]})
    for name, labels in {
        "d1": {"env": "dev"}, "d2": {"env": "test"}, "d3": {"env": "dev", "secret": "yes"},
        "x1": {}, "x2": {}, "open": {"access": "everyone"},
    }.items():  # fmt: skip
        await server.workspace(name, labels=labels)
    token = await server.person("ann@example.org", "dev", "ops")
    async with server.as_(token) as ann:
        own = await ann.post("/organizations/default/workspaces", json={"data": {"attributes": {"name": "mine"}}})
        assert own.status_code == 201
        answer = (await ann.get("/organizations/default/workspaces")).json()
        levels = {row["attributes"]["name"]: row["attributes"]["permissions"] for row in answer["data"]}
        assert sorted(levels) == ["d1", "d2", "mine", "open", "x1"]
        assert answer["meta"]["pagination"]["total-count"] == 5
        assert levels["d1"]["can-queue-apply"] is True
        assert (levels["d2"]["can-queue-run"], levels["d2"]["can-queue-apply"]) == (True, False)
        assert (levels["open"]["can-read-settings"], levels["open"]["can-queue-run"]) == (True, False)
        assert levels["mine"]["can-force-delete"] is True
        assert await names(ann, "/organizations/default/workspaces?search[name]=D") == ["d1", "d2"]
        assert await names(ann, "/organizations/default/workspaces?search[tags]=env&sort=-name") == ["d2", "d1"]
        paged = (await ann.get("/organizations/default/workspaces?page[size]=2&page[number]=3")).json()
        assert [row["attributes"]["name"] for row in paged["data"]] == ["x1"]
    everything = (await server.api.get("/organizations/default/workspaces")).json()["data"]
    assert all(row["attributes"]["permissions"]["can-update"] for row in everything)


async def test_runs_pools_and_includes_hide_what_may_not_be_read(server: Running) -> None:
    hidden, shown = await server.workspace("hidden"), await server.workspace("shown", labels={"access": "everyone"})
    home = server.folder / "one"
    listener = await server.listener(home)
    runs = {}
    for workspace in (hidden, shown):
        version = await server.configuration(workspace["id"])
        runs[workspace["id"]] = (await server.run(workspace["id"], version["id"])).json()["data"]["id"]
    pool = (await server.post("/organizations/default/agent-pools", {"name": "p", "organization-scoped": False},
            allowed_workspaces=[{"type": "workspaces", "id": w["id"]} for w in (hidden, shown)])).json()["data"]  # fmt: skip
    await server.api.patch(
        f"/agent-pools/{pool['id']}", json={"data": {"attributes": {"labels": {"access": "everyone"}}}}
    )
    token = await server.person("ann@example.org")
    async with server.as_(token) as ann:
        for path in ("/organizations/default/runs", "/organizations/default/runs/queue"):
            listed = (await ann.get(path)).json()["data"]
            assert [row["id"] for row in listed] == [runs[shown["id"]]], path
            assert listed[0]["attributes"]["permissions"]["can-apply"] is False
        pools = (await ann.get("/organizations/default/agent-pools?include=workspaces")).json()
        assert [row["attributes"]["name"] for row in pools["data"]] == ["p"]
        assert [row["id"] for row in pools["included"]] == [shown["id"]]
        assert [row["id"] for row in pools["data"][0]["relationships"]["workspaces"]["data"]] == [shown["id"]]
        assert (await ann.get(f"/runs/{runs[hidden['id']]}")).status_code == 404
        assert (await ann.get(f"/plans/{runs[hidden['id']].replace('run-', 'plan-')}")).status_code == 404
        states = "/state-versions?filter[organization][name]=default&filter[workspace][name]="
        assert (await ann.get(states + "hidden")).status_code == 404
        assert (await ann.get(states + "shown")).status_code == 200
    await listener.close()


async def test_labels_that_would_shut_the_caller_out_need_force(server: Running) -> None:
    await role(server, "dev", "admin", **{"allow-labels": {"env": "dev"}})
    workspace = await server.workspace("app", labels={"env": "dev"})
    path = f"/workspaces/{workspace['id']}"
    async with server.as_(await server.person("ann@example.org", "dev")) as ann:
        for labels in ({"env": "prod"}, {}):
            refused = await ann.patch(path, json={"data": {"attributes": {"labels": labels}}})
            assert refused.status_code == 409
            assert "from admin to none" in refused.json()["errors"][0]["detail"]
        tags = path + "/relationships/tags"
        gone: DATA = {"data": [{"type": "tags", "attributes": {"name": "env"}}]}
        assert (await ann.request("DELETE", tags, json=gone)).status_code == 409
        bindings = {"data": [{"type": "tag-bindings", "attributes": {"key": "env", "value": "prod"}}]}
        assert (await ann.patch(path + "/tag-bindings", json=bindings)).status_code == 409
        assert (await ann.put(path + "/tag-bindings", json={"data": []})).status_code == 409
        same = await ann.patch(path, json={"data": {"attributes": {"labels": {"env": "dev", "more": "x"}}}})
        assert same.status_code == 200
        forced = await ann.patch(path, json={"data": {"attributes": {"labels": {"env": "prod"}, "force": True}}})
        assert forced.status_code == 200
        assert "force" not in forced.json()["data"]["attributes"]
        assert (await ann.get(path)).status_code == 404
    pool = (await server.post("/organizations/default/agent-pools", {"name": "p", "labels": {"env": "dev"}})).json()
    async with server.as_(await server.person("bea@example.org", "dev")) as bea:
        path = f"/agent-pools/{pool['data']['id']}"
        change: DATA = {"data": {"attributes": {"labels": {}}}}
        assert (await bea.patch(path, json=change)).status_code == 409
        assert (await bea.patch(path, json={"data": {"attributes": {"labels": {}, "force": True}}})).status_code == 200


async def test_a_platform_admin_does_not_lose_its_own_role_by_mistake(server: Running) -> None:
    email = (await server.api.get("/account/details")).json()["data"]["attributes"]["email"]
    body: DATA = {"data": {"attributes": {"email": email, "roles": ["audit"]}}}
    assert (await server.api.put("/role-assignments", json=body)).status_code == 409
    assert (await server.api.delete(f"/role-assignments/local/{email}/admin")).status_code == 409
    me = await identity.user(email)
    off: DATA = {"data": {"attributes": {"is-active": False}}}
    assert (await server.api.patch(f"/users/{me.id}", json=off)).status_code == 409
    assert (await server.api.delete(f"/users/{me.id}")).status_code == 409
    body["data"]["attributes"]["force"] = True
    assert (await server.api.put("/role-assignments", json=body)).status_code == 200
    assert (await server.api.get("/roles")).status_code == 200
    assert (await server.post("/roles", {"name": "x", "workspace-permission": "read"})).status_code == 403


async def test_a_pool_that_may_not_be_used_is_not_there(server: Running) -> None:
    pool = (await server.post("/organizations/default/agent-pools", {"name": "prod"})).json()["data"]
    async with server.as_(await server.person("ann@example.org")) as ann:
        mode = {"execution-mode": "agent", "agent-pool-id": pool["id"]}
        create = {"data": {"attributes": {"name": "mine", **mode}}}
        path = "/organizations/default/workspaces"
        refused = await ann.post(path, json=create)
        assert (refused.status_code, pool["id"] in refused.text) == (422, True)
        mine = (await ann.post(path, json={"data": {"attributes": {"name": "mine"}}})).json()["data"]["id"]
        assert (await ann.patch(f"/workspaces/{mine}", json={"data": {"attributes": mode}})).status_code == 422
        await server.api.patch(
            f"/agent-pools/{pool['id']}", json={"data": {"attributes": {"labels": {"access": "everyone"}}}}
        )
        assert (await ann.patch(f"/workspaces/{mine}", json={"data": {"attributes": mode}})).status_code == 403
        await role(server, "pools", "write", **{"allow-names": ["prod"]})
        body: DATA = {"data": {"attributes": {"email": "ann@example.org", "roles": ["pools"]}}}
        assert (await server.api.put("/role-assignments", json=body)).status_code == 200
        assert (await ann.patch(f"/workspaces/{mine}", json={"data": {"attributes": mode}})).status_code == 200
        owner = {"data": {"attributes": {"owner-email": "admin@localhost"}}}
        assert (await ann.patch(f"/workspaces/{mine}", json=owner)).status_code == 403
        assert (await server.api.patch(f"/workspaces/{mine}", json=owner)).status_code == 200
        assert (await ann.get(f"/workspaces/{mine}")).status_code == 404


async def test_users_are_made_found_deactivated_and_removed(server: Running) -> None:
    made = await server.post("/organizations/default/users", {"email": "Ann@Example.org", "display-name": "Ann"})
    assert made.status_code == 201
    ann = made.json()["data"]
    assert ann["attributes"]["email"] == "ann@example.org"
    assert (await server.post("/organizations/default/users", {"email": "ann@example.org"})).status_code == 409
    for wrong in ("ann", "@x", "a b@c", "", None):
        assert (await server.post("/organizations/default/users", {"email": wrong})).status_code == 422, wrong
    for key in (ann["id"], "ANN@example.org"):
        assert (await server.api.get(f"/users/{key}")).json()["data"]["id"] == ann["id"]
    token = (await identity.create_token(ann["id"], "t")).text or ""
    other = (await identity.create_token(ann["id"], "t")).text or ""
    async with server.as_(token) as client, server.as_(other) as second:
        assert (await client.get("/account/details")).status_code == 200
        assert (await second.get("/account/details")).status_code == 200
        off = await server.api.patch(f"/users/{ann['id']}", json={"data": {"attributes": {"is-active": False}}})
        assert off.json()["data"]["attributes"]["is-active"] is False
        assert (await client.get("/account/details")).status_code == 401
        on = await server.api.patch(f"/users/{ann['id']}", json={"data": {"attributes": {"is-active": True}}})
        assert on.status_code == 200
        assert (await second.get("/account/details")).status_code == 401, "its tokens are gone for good"
    token = await server.person("bea@example.org", "audit")
    async with server.as_(token) as bea:
        newest = (await bea.get("/organizations/default/users?page[size]=1")).json()["data"]
        assert [row["attributes"]["email"] for row in newest] == ["bea@example.org"]
        assert (await bea.patch(f"/users/{ann['id']}", json={"data": {"attributes": {}}})).status_code == 403
        assert (await server.api.delete("/users/bea@example.org")).status_code == 204
        assert (await bea.get("/account/details")).status_code == 401
    assert (await server.api.get("/role-assignments?filter[email]=bea@example.org")).json()["data"] == []


async def test_who_may_not_look_at_users_gets_their_names_only(server: Running) -> None:
    workspace = (await server.workspace(labels={"access": "everyone"}))["id"]
    assert (await server.api.post(f"/workspaces/{workspace}/actions/lock")).status_code == 200
    private = ("is-active", "is-admin", "is-site-admin", "has-password", "last-login-at")

    async def locker(client: httpx.AsyncClient) -> DATA:
        found = (await client.get(f"/workspaces/{workspace}?include=locked_by")).json()["included"]
        attributes: DATA = found[0]["attributes"]
        return attributes

    async with server.as_(await server.person("ann@example.org")) as ann:
        assert (await ann.get("/users/admin@localhost")).status_code == 403
        shown = await locker(ann)
        assert shown["username"] == "admin@localhost"
        assert [shown[name] for name in private] == [None] * 5
        own = (await ann.get("/account/details")).json()["data"]["attributes"]
        assert (own["is-admin"], own["is-active"], own["has-password"]) == (False, True, False)
    async with server.as_(await server.person("bea@example.org", "audit")) as bea:
        assert (await locker(bea))["is-admin"] is True


async def test_an_include_is_followed_a_handful_of_times(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    assert (await server.api.post(f"/workspaces/{workspace}/actions/lock")).status_code == 200
    unknown = ",".join(f"locked_by.x{number}" for number in range(15))
    some = (await server.api.get(f"/workspaces/{workspace}?include={unknown},project")).json()
    assert {one["type"] for one in some["included"]} == {"users", "projects"}
    many = (await server.api.get(f"/workspaces/{workspace}?include={unknown},locked_by.y,project")).json()
    assert {one["type"] for one in many["included"]} == {"users"}


async def test_what_was_read_before_a_change_is_not_remembered_after_it(server: Running) -> None:
    token = await server.person("ann@example.org")
    authenticator = identity.Authenticator(server.services.signer, leases, server.services.bus)
    asked = asyncio.create_task(authenticator.bearer(token))
    await asyncio.sleep(0)  # it waits for the database now
    assert not asked.done()
    authenticator.forget()
    assert await asked is not None
    await ApiToken.all().delete()
    assert await authenticator.bearer(token) is None


async def test_a_stream_sends_nothing_more_once_rights_are_gone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_RIGHTS_S", 0.0)
    await server.listener(server.folder / "one")
    workspace = (await server.workspace(labels={"access": "everyone"}, **{"terraform-version": "1.15.5"}))["id"]
    await server.configuration(workspace)
    async with (
        server.as_(await server.person("ann@example.org")) as ann,
        ann.stream("GET", f"/workspaces/{workspace}/runs/events") as stream,
    ):
        lines = stream.aiter_lines()
        assert await anext(lines) == ": terrapod"
        assert (await server.run(workspace)).status_code == 201
        while not (await anext(lines)).startswith("event:"):
            pass
        gone: DATA = {"data": {"attributes": {"labels": {}}}}
        assert (await server.api.patch(f"/workspaces/{workspace}", json=gone)).status_code == 200
        while await anext(lines):  # the rest of that event
            pass
        second = (await server.run(workspace, message="second")).json()["data"]["id"]
        assert second not in "".join([line async for line in lines])


async def test_upload_urls_end_with_the_person_who_got_them(server: Running) -> None:
    async with server.as_(await server.person("ann@example.org")) as ann:

        async def made(path: str, kind: str, **attributes: Any) -> DATA:
            answer = await ann.post(path, json={"data": {"type": kind, "attributes": attributes}})
            assert answer.status_code == 201, answer.text
            data: DATA = answer.json()["data"]
            return data

        workspace = (await made("/organizations/default/workspaces", "workspaces", name="hers"))["id"]
        state = await made(
            f"/workspaces/{workspace}/state-versions", "state-versions", serial=1, lineage="a", md5="0" * 32
        )
        version = await made(f"/workspaces/{workspace}/configuration-versions", "configuration-versions")
        await made("/organizations/default/registry-modules", "registry-modules", name="net", provider="aws")
        module = await made(
            "/organizations/default/registry-modules/private/default/net/aws/versions",
            "registry-module-versions",
            version="1.0.0",
        )
    out = {"data": {"attributes": {"is-active": False}}}
    assert (await server.api.patch("/users/ann@example.org", json=out)).status_code == 200
    for url in (
        state["attributes"]["hosted-state-upload-url"],
        state["attributes"]["hosted-json-state-upload-url"],
        version["attributes"]["upload-url"],
        module["links"]["upload"],
    ):
        assert (await server.api.put(url, content=tar({"main.tf": b"# late"}))).status_code == 404, url
    assert (await server.api.get(f"/workspaces/{workspace}/runs")).json()["data"] == []


async def test_tokens_are_shown_once_limited_and_revoked(server: Running) -> None:
    workspace, other = await server.workspace(), await server.workspace()
    me = (await server.api.get("/account/details")).json()["data"]["id"]
    path = f"/users/{me}/authentication-tokens"
    until = clock.stamp(clock.now() + timedelta(days=1))
    made = (await server.post(path, {"description": "ci", "read-only": True, "expired-at": until})).json()["data"]
    text = made["attributes"]["token"]
    assert text.startswith("tpod_")
    shown = (await server.api.get(f"/authentication-tokens/{made['id']}")).json()["data"]["attributes"]
    assert shown["token"] is None
    assert shown["expired-at"].endswith("Z")
    assert (await server.post(path, {"expired-at": "2020-01-01T00:00:00Z"})).status_code == 422
    async with server.as_(text) as reader:
        assert (await reader.get(f"/workspaces/{workspace['id']}")).json()["data"]["attributes"]["permissions"][
            "can-update"
        ] is False
        change = {"data": {"attributes": {"auto-apply": True}}}
        assert (await reader.patch(f"/workspaces/{workspace['id']}", json=change)).status_code == 403
        assert (await reader.post("/roles", json={"data": {"attributes": {}}})).status_code == 403
        assert (await reader.get("/roles")).status_code == 200
        assert (await reader.post(path, json={"data": {"attributes": {}}})).status_code == 403
        assert (await reader.get(f"/authentication-tokens/{made['id']}")).status_code == 404
        body: DATA = {"data": {"attributes": {"name": "new"}}}
        assert (await reader.post("/organizations/default/workspaces", json=body)).status_code == 403
    one = (await server.post(path, {"workspace-id": workspace["id"]})).json()["data"]
    async with server.as_(one["attributes"]["token"]) as single:
        assert (await single.patch(f"/workspaces/{workspace['id']}", json=change)).status_code == 200
        assert (await single.get(f"/workspaces/{other['id']}")).status_code == 404
        assert [row["id"] for row in (await single.get("/organizations/default/workspaces")).json()["data"]] == [
            workspace["id"]
        ]
        assert (await single.get("/organizations/default/agent-pools")).json()["data"] == []
        assert (await single.get("/roles")).status_code == 403
        assert (await single.post("/organizations/default/workspaces", json=body)).status_code == 403
    assert (await server.post(path, {"workspace-id": "ws-nowhere"})).status_code == 404
    listed = (await server.api.get(path)).json()["data"]
    assert {made["id"], one["id"]} <= {row["id"] for row in listed}
    async with server.as_(await server.person("ann@example.org")) as ann, server.as_(text) as reader:
        assert (await ann.get(path)).status_code == 404
        assert (await ann.get("/users/user-nobody/authentication-tokens")).status_code == 404
        for verb in ("GET", "DELETE"):
            assert (await ann.request(verb, f"/authentication-tokens/{made['id']}")).status_code == 404
        assert (await server.api.delete(f"/authentication-tokens/{made['id']}")).status_code == 204
        assert (await reader.get("/account/details")).status_code == 401
    await ApiToken.filter(id=one["id"]).update(expired_at=clock.now())
    await server.services.authenticator.changed()
    async with server.as_(one["attributes"]["token"]) as single:
        assert (await single.get("/account/details")).status_code == 401


async def test_another_process_forgets_at_once(pg_server: Running, postgres_url: str) -> None:
    """What a second server process remembers of a token goes with the wake-up that PostgreSQL carries to it."""
    token = await pg_server.person("ann@example.org", "audit")
    bus = Bus(database.postgres_dsn(postgres_url))
    await bus.start()
    second = identity.Authenticator(pg_server.services.signer, leases, bus)
    second.start()

    async def is_auditor() -> bool:
        principal = await second.bearer(token)
        return principal is not None and principal.is_auditor

    async def is_out() -> bool:
        return not await is_auditor()

    try:
        assert await is_auditor()
        assert (await pg_server.api.delete("/role-assignments/local/ann@example.org/audit")).status_code == 204
        await until(is_out, identity.REMEMBERED_S / 2)
    finally:
        await bus.stop()
        await second.stop()


PAIRS = st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"]))
ROLES = st.builds(
    Role,
    name=st.just("r"),
    level=st.sampled_from([Level.READ, Level.WRITE]),
    allow=st.frozensets(PAIRS, max_size=2),
    allow_names=st.frozensets(st.sampled_from(["n1", "n2"]), max_size=1),
    deny=st.frozensets(PAIRS, max_size=1),
    deny_names=st.frozensets(st.sampled_from(["n1", "n3"]), max_size=1),
)
RIGHTS = st.builds(
    Rights,
    user_id=st.sampled_from(["", "user-1"]),
    is_admin=st.booleans(),
    is_reader=st.booleans(),
    roles=st.lists(ROLES, max_size=3).map(tuple),
    only_workspace=st.sampled_from(["", "", "ws-n1"]),
)


@pytest.fixture
async def things(database_url: str) -> AsyncIterator[list[Workspace]]:
    await database.open_(database_url, app.MODELS)
    await database.migrate()
    made = []
    for number, labels in enumerate([{}, {"a": "1"}, {"a": "2", "b": "1"}, {"b": "2"}, {"access": "everyone"}], 1):
        row = await Workspace.create(
            id=f"ws-n{number}", name=f"n{number}", labels=labels, owner_id="user-1" if number == 4 else ""
        )
        await workspaces._write_labels(row.id, labels)
        made.append(row)
    yield made
    await database.close()


async def test_the_condition_in_sql_says_what_the_rule_says(things: list[Workspace]) -> None:
    seen = []

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(RIGHTS)
    def collect(rights: Rights) -> None:
        seen.append(rights)

    collect()
    for rights in seen:
        where = visible.where(rights, workspaces.KIND)
        sql = f"SELECT t.id FROM workspace t {'WHERE ' + where.sql if where.sql else ''}"
        found = {row[0] for row in await database.rows(sql, where.values)}
        assert found == {
            row.id for row in things if rights.level(row.id, row.name, row.labels, row.owner_id) > Level.NONE
        }, rights
