"""Nothing that a client can send is accepted and dropped: each member is done, kept, refused or read-only by declaration."""

import json
from pathlib import Path
from typing import Any

import pytest

from kit.serving import Running
from terrapod_server import app
from terrapod_server.kit.api import members, openapi, parse
from terrapod_server.kit.api.declare import Resource
from terrapod_shared.errors import Invalid

ROOT = Path(__file__).parents[2]
BY_TYPE = {resource.type: resource for resource in app.RESOURCES}
#: What go-tfe 1.109 can send, by resource that is served: attributes and relationships of its create and update options.
GO_TFE = {
    "workspaces": "agent-pool-id allow-destroy-plan assessments-enabled auto-apply auto-apply-run-trigger auto-destroy-at"
    " auto-destroy-activity-duration inherits-project-auto-destroy description execution-mode file-triggers-enabled"
    " global-remote-state project-remote-state migration-environment name operations queue-all-runs speculative-enabled"
    " source-name source-url structured-run-output-enabled terraform-version trigger-prefixes trigger-patterns vcs-repo"
    " working-directory hyok-enabled tags setting-overwrites project tag-bindings",
    "runs": "allow-config-generation allow-empty-apply terraform-version plan-only is-destroy refresh refresh-only save-plan"
    " message configuration-version workspace target-addrs replace-addrs policy-paths auto-apply variables"
    " invoke-action-addrs",
    "state-versions": "lineage md5 serial state force run json-state json-state-outputs",
    "configuration-versions": "auto-queue-runs speculative provisional",
    "agent-pools": "name organization-scoped allowed-workspaces allowed-projects excluded-workspaces",
    "authentication-tokens": "description expired-at",
    "vars": "key value description category hcl sensitive",
    "registry-modules": "name provider registry-name namespace no-code vcs-repo initial-version test-config tag-bindings",
    "registry-module-versions": "version commit-sha",
    "users": "username email",
}


def declared(resource: Resource) -> set[str]:
    """What may be sent with a meaning."""
    written = {member.name for member in (*resource.attributes, *resource.relations) if member.write}
    return written | {member.name for member in resource.unsupported}


def test_the_page_is_what_the_declarations_say() -> None:
    assert (ROOT / "docs" / "request-attributes.md").read_text() == members.page(app.ENDPOINTS), "run make docs"


@pytest.mark.parametrize("kind", GO_TFE)
def test_each_member_of_go_tfe_is_declared(kind: str) -> None:
    assert set(GO_TFE[kind].split()) - declared(BY_TYPE[kind]) == set()


UNSUPPORTED = [(resource, member) for resource in app.RESOURCES for member in resource.unsupported]


@pytest.mark.parametrize(("resource", "member"), UNSUPPORTED, ids=lambda each: getattr(each, "name", "") or each.type)
def test_what_is_not_supported_is_refused_unless_it_asks_for_nothing(resource: Resource, member: Any) -> None:
    def sent(value: Any) -> None:
        if member.related:
            parse.relations({"relationships": {member.name: value}}, resource)
        else:
            parse.attributes({"attributes": {member.name: value}}, resource)

    for value in (None, *member.values):
        sent({"data": value} if member.related else value)
    where = f"/data/{'relationships' if member.related else 'attributes'}/{member.name}"
    for value in ("x", 0, 1, 1.5, ["x"], {"a": 1}, [[]], {"data": ["x"]}):
        with pytest.raises(Invalid) as refused:
            sent({"data": value} if member.related else value)
        assert (refused.value.pointer, member.name in refused.value.detail) == (where, True)
    written = {each.name for each in (*resource.attributes, *resource.relations) if each.write}
    assert member.name not in written, "it is either done or not"
    json.dumps(openapi.document(app.ENDPOINTS))


async def test_a_narrowed_run_is_no_run_of_everything(server: Running, tmp_path: Path) -> None:
    await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    for narrowed in ({"invoke-action-addrs": ["action.a.b"]}, {"policy-paths": ["p"]}, {"invoke-action-addrs": "a"}):
        answer = await server.run(workspace, **narrowed)
        pointer = answer.json()["errors"][0]["source"]["pointer"]
        assert (answer.status_code, pointer) == (422, f"/data/attributes/{next(iter(narrowed))}")
    assert (await server.api.get(f"/workspaces/{workspace}/runs")).json()["data"] == []
    empty = await server.run(workspace, **{"invoke-action-addrs": [], "policy-paths": None})
    assert empty.status_code == 201


async def test_what_an_endpoint_does_not_take_of_its_resource_is_refused(server: Running) -> None:
    """A token that was to be limited is not made without the limit."""
    me = (await server.api.get("/account/details")).json()["data"]
    pool, workspace = await server.pool_id(), (await server.workspace())["id"]
    tokens = (f"/agent-pools/{pool}/authentication-tokens", f"/users/{me['id']}/authentication-tokens")
    for path, name, value in (
        (tokens[0], "workspace-id", workspace),
        (tokens[0], "read-only", True),
        (tokens[1], "expires-at", "2099-01-01T00:00:00Z"),
        (tokens[1], "max-uses", 1),
        ("/organizations/default/workspaces", "owner-email", "other@example.org"),
    ):
        answer = await server.post(path, {"name": "made", name: value})
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["source"]["pointer"] == f"/data/attributes/{name}"
    for name, value in (("email", "new@example.org"), ("username", "new"), ("is-active", False), ("password", "x")):
        body = {"data": {"type": "users", "attributes": {name: value}}}
        assert (await server.api.patch("/account/update", json=body)).status_code == 422, name
    same = {"data": {"type": "users", "attributes": {"email": me["attributes"]["email"], "display-name": "Me"}}}
    assert (await server.api.patch("/account/update", json=same)).status_code == 200


async def test_settings_that_are_no_overwrites_are_those_of_a_new_workspace(server: Running) -> None:
    pool = (await server.post("/organizations/default/agent-pools", {"name": "own"}, "agent-pools")).json()["data"][
        "id"
    ]
    made = await server.workspace(**{"execution-mode": "agent", "agent-pool-id": pool})

    async def patch(**attributes: Any) -> Any:
        body = {"data": {"type": "workspaces", "attributes": attributes}}
        answer = await server.api.patch(f"/workspaces/{made['id']}", json=body)
        return answer.json()["data"]["attributes"] if answer.status_code == 200 else answer.status_code

    kept = await patch(**{"setting-overwrites": {"execution-mode": True, "agent-pool": None}})
    assert (kept["execution-mode"], kept["agent-pool-id"]) == ("agent", pool)
    assert await patch(**{"setting-overwrites": {"auto-apply": False}}) == 422
    assert await patch(**{"setting-overwrites": {"execution-mode": "no"}}) == 422
    back = await patch(**{"setting-overwrites": {"execution-mode": False, "agent-pool": False}})
    assert (back["execution-mode"], back["agent-pool-id"]) == ("remote", None)
    named = await patch(**{"setting-overwrites": {"execution-mode": False}, "execution-mode": "local"})
    assert named["execution-mode"] == "local"
