import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from kit.serving import Running, running, tar
from terrapod_server.identity import actions as identity
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db.conditions import Where
from terrapod_server.kit.services import Services
from terrapod_server.runs import actions
from terrapod_server.workspaces import ports
from terrapod_server.workspaces.model import Workspace


async def test_a_workspace_is_made_shown_changed_and_removed(server: Running) -> None:
    made = await server.workspace("net-prod", labels={"env": "prod"})
    assert made["id"].startswith("ws-")
    assert made["attributes"]["created-at"].endswith("Z")
    assert made["attributes"]["permissions"]["can-queue-apply"] is True

    for path in (
        f"/workspaces/{made['id']}",
        "/organizations/default/workspaces/net-prod",
        f"/workspaces/{made['id']}/",
    ):
        shown = await server.api.get(path)
        assert shown.status_code == 200
        assert shown.json()["data"]["attributes"]["tag-names"] == ["env"]

    changed = await server.api.patch(
        f"/workspaces/{made['id']}",
        json={"data": {"type": "workspaces", "attributes": {"auto-apply": True, "nonsense": 1}}},
    )
    assert changed.json()["data"]["attributes"]["auto-apply"] is True
    assert changed.json()["data"]["attributes"]["labels"] == {"env": "prod"}

    assert (await server.api.delete(f"/workspaces/{made['id']}")).status_code == 204
    assert (await server.api.get(f"/workspaces/{made['id']}")).status_code == 404


async def test_a_new_workspace_has_the_engine_of_the_settings(database_url: str, tmp_path: Path) -> None:
    async with running(tmp_path, database_url, runs={"default_version": "1.11"}) as server:
        assert (await server.workspace())["attributes"]["terraform-version"] == "1.11"
        own = await server.workspace(**{"terraform-version": "1.9.8"})
        assert own["attributes"]["terraform-version"] == "1.9.8"


async def test_bad_input_gets_a_clear_error(server: Running) -> None:
    path = "/organizations/default/workspaces"
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"name": 7}, 422, "/data/attributes/name"),
        ({"name": "no spaces"}, 422, "/data/attributes/name"),
        ({}, 422, "/data/attributes/name"),
        ({"name": "a", "auto-apply": "yes"}, 422, "/data/attributes/auto-apply"),
        ({"name": "a", "execution-mode": "moon"}, 422, "/data/attributes/execution-mode"),
        ({"name": "a", "working-directory": "../x"}, 422, "/data/attributes/working-directory"),
    ]
    for attributes, status, pointer in cases:
        answer = await server.post(path, attributes)
        assert answer.status_code == status, answer.text
        assert answer.json()["errors"][0]["source"]["pointer"] == pointer
    assert (
        await server.api.post(path, content=b"{nope", headers={"Content-Type": "application/json"})
    ).status_code == 400
    assert (await server.api.post(path, content=b"{}", headers={"Content-Type": "text/xml"})).status_code == 415
    large = b'{"data": "' + b"x" * (3 << 20) + b'"}'
    assert (await server.api.post(path, content=large, headers={"Content-Type": "application/json"})).status_code == 413
    assert (await server.post(path, {"name": "a"}, "runs")).json()["errors"][0]["source"]["pointer"] == "/data/type"
    assert (await server.api.get("/workspaces/ws-nope")).status_code == 404
    assert (await server.api.get("/nothing/here")).json()["errors"][0]["status"] == "404"
    assert (await server.api.put("/workspaces/ws-nope")).status_code == 405
    assert (await server.api.get("/organizations/other/workspaces")).status_code == 404
    await server.workspace("taken")
    assert (await server.post(path, {"name": "taken"})).status_code == 422


@pytest.mark.parametrize("member", ["description", "working-directory"])
async def test_null_empties_a_text_of_a_workspace(server: Running, member: str) -> None:
    made = await server.workspace(**{member: None})
    assert made["attributes"][member] == ""

    for value, shown in (("a", "a"), (None, "")):
        document = {"data": {"type": "workspaces", "attributes": {member: value}}}
        answer = await server.api.patch(f"/workspaces/{made['id']}", json=document)
        assert answer.status_code == 200, answer.text
        assert answer.json()["data"]["attributes"][member] == shown


async def test_locks_have_holders(server: Running) -> None:
    made = await server.workspace()
    lock, unlock = (f"/workspaces/{made['id']}/actions/{verb}" for verb in ("lock", "unlock"))
    locked = await server.api.post(lock, json={"data": {"type": "", "attributes": {"reason": "mine"}}})
    assert locked.json()["data"]["attributes"]["locked"] is True
    again = await server.api.post(lock, json={"reason": "again"})
    assert again.status_code == 409
    assert "is locked by User admin@localhost" in again.json()["errors"][0]["detail"]
    assert (await server.api.post(unlock)).status_code == 200
    twice = await server.api.post(unlock)
    assert (twice.status_code, "already unlocked" in twice.text) == (409, True)


async def test_locks_of_others_and_of_runs(server: Running) -> None:
    made = await server.workspace()
    lock, unlock, force = (f"/workspaces/{made['id']}/actions/{verb}" for verb in ("lock", "unlock", "force-unlock"))
    mine = {"Authorization": f"Bearer {await server.person('other@example.com', 'admin')}"}
    other = await identity.user("other@example.com")
    assert (await server.api.post(force)).status_code == 409, "nothing to free"
    assert (await server.api.post(lock, headers=mine)).status_code == 200
    shown = (await server.api.get(f"/workspaces/{made['id']}?include=locked_by")).json()
    assert shown["data"]["relationships"]["locked-by"]["data"] == {"type": "users", "id": other.id}
    assert shown["included"][0]["attributes"]["email"] == "other@example.com"
    refused = await server.api.post(unlock)
    assert (refused.status_code, "is locked by User other@example.com" in refused.text) == (409, True)
    assert (await server.api.post(force)).json()["data"]["attributes"]["locked"] is False
    assert (await server.api.post(lock, headers=mine)).status_code == 200
    assert (await server.api.post(force, headers=mine)).status_code == 200, "one's own"
    await Workspace.filter(id=made["id"]).update(run_lock_id="run-abc")
    for path in (lock, unlock, force):
        answer = await server.api.post(path)
        assert (answer.status_code, "is locked by Run run-abc" in answer.text) == (409, True), path
    gone = await server.api.post(f"/workspaces/{made['id']}/actions/safe-delete")
    assert (gone.status_code, "locked" in gone.text) == (409, True)


async def test_what_is_done_is_not_told_as_failed(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    path = f"/workspaces/{(await server.workspace())['id']}/actions"
    assert (await server.api.post(f"{path}/lock")).status_code == 200

    class Broken:
        """Runs of a database that goes away when a workspace is unlocked."""

        async def release_lock(self, services: Services, workspace_id: str, principal: Principal) -> bool:
            return await actions.release_lock(services, workspace_id, principal)

        def run_has_status(self, column: str, statuses: Iterable[str]) -> Where:
            return actions.run_has_status(column, statuses)

        async def on_workspace_unlocked(self, services: Services, workspace_id: str) -> None:  # noqa: ARG002
            raise OSError("the database went away")

    server.services.providers.replace(ports.RUNS, Broken())
    unlocked = await server.api.post(f"{path}/unlock")
    assert (unlocked.status_code, unlocked.json()["data"]["attributes"]["locked"]) == (200, False)
    assert "the database went away" in caplog.text


async def test_a_wake_up_that_cannot_be_sent_breaks_nothing(
    pg_server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    await pg_server.services.bus.publish("x" * 9000)  # more than PostgreSQL takes
    assert "does not reach the other processes" in caplog.text


async def test_a_lock_has_one_holder(pg_server: Running) -> None:
    path = f"/workspaces/{(await pg_server.workspace())['id']}/actions/lock"
    answers = await asyncio.gather(*(pg_server.api.post(path) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 7]


async def test_lists_are_searched_and_paged(server: Running) -> None:
    for number in range(5):
        await server.workspace(f"app-{number}", labels={"n": str(number), "team": ""})
    await server.workspace("other")
    base = "/organizations/default/workspaces"

    async def names(query: str) -> list[str]:
        answer = await server.api.get(f"{base}?{query}")
        assert answer.status_code == 200, answer.text
        return [entry["attributes"]["name"] for entry in answer.json()["data"]]

    assert await names("search[name]=APP-1") == ["app-1"]
    assert await names("search[tags]=team,n&page[size]=2") == ["app-0", "app-1"]
    assert await names("search[exclude-tags]=team") == ["other"]
    assert await names("filter[tagged][0][key]=n&filter[tagged][0][value]=3&search[tags]=n") == ["app-3"]
    assert await names("search[wildcard-name]=*-4") == ["app-4"]
    assert (await names("sort=-name"))[0] == "other"
    page = (await server.api.get(f"{base}?page[number]=9&page[size]=2")).json()
    assert page["data"] == []
    assert page["meta"]["pagination"] == {
        "current-page": 9, "prev-page": 8, "next-page": None, "total-pages": 3, "total-count": 6,
    }  # fmt: skip
    assert (await server.api.get(f"{base}?page[size]=x")).status_code == 422


async def test_tags_are_labels(server: Running) -> None:
    made = await server.workspace(labels={"env": "prod"})
    path = f"/workspaces/{made['id']}"
    await server.api.patch(
        f"{path}/tag-bindings",
        json={
            "data": [{"type": "tag-bindings", "attributes": {"key": "env"}}, {"attributes": {"key": "a", "value": "b"}}]
        },
    )
    await server.api.post(
        f"{path}/relationships/tags", json={"data": [{"type": "tags", "attributes": {"name": "extra"}}]}
    )
    shown = (await server.api.get(path)).json()["data"]["attributes"]
    assert shown["labels"] == {"env": "prod", "a": "b", "extra": ""}
    await server.api.request(
        "DELETE", f"{path}/relationships/tags", json={"data": [{"type": "tags", "attributes": {"name": "extra"}}]}
    )
    bindings = (await server.api.get(f"{path}/tag-bindings")).json()["data"]
    assert [(b["attributes"]["key"], b["attributes"]["value"]) for b in bindings] == [("a", "b"), ("env", "prod")]


async def test_tags_of_an_update(server: Running) -> None:
    made = await server.workspace(labels={"env": "prod", "a": ""})
    path = f"/workspaces/{made['id']}"

    async def patch(**relations: list[dict[str, Any]] | None) -> Any:
        related = {name.replace("_", "-"): {"data": data} for name, data in relations.items()}
        answer = await server.api.patch(path, json={"data": {"type": "workspaces", "relationships": related}})
        return answer.json()["data"]["attributes"]["labels"] if answer.status_code == 200 else answer.status_code

    def tag(name: Any) -> dict[str, Any]:
        return {"type": "tags", "attributes": {"name": name}}

    assert await patch(tags=[tag("env"), tag("b")]) == {"env": "prod", "a": "", "b": ""}, (
        "adds, and takes no value away"
    )
    assert await patch(tag_bindings=[{"attributes": {"key": "k", "value": "v"}}]) == {"k": "v"}, "replaces"
    assert await patch(tags=[tag(7)]) == 422
    assert await patch(tags=[tag("a,b")]) == 422
    assert await patch(tag_bindings=[]) == {}


async def test_tags_that_are_added_at_once_are_all_there(pg_server: Running) -> None:
    path = f"/workspaces/{(await pg_server.workspace())['id']}"
    bodies = [{"data": [{"type": "tags", "attributes": {"name": f"t{number}"}}]} for number in range(8)]
    answers = await asyncio.gather(*(pg_server.api.post(f"{path}/relationships/tags", json=body) for body in bodies))
    assert {answer.status_code for answer in answers} == {204}
    found = (await pg_server.api.get(path)).json()["data"]["attributes"]["tag-names"]
    assert found == [f"t{number}" for number in range(8)]


async def test_a_repeated_post_is_done_once(server: Running) -> None:
    body = {"data": {"type": "workspaces", "attributes": {"name": "once"}}}
    first, second = [
        await server.api.post("/organizations/default/workspaces", json=body, headers={"Idempotency-Key": "k1"})
        for _ in range(2)
    ]
    assert first.status_code == second.status_code == 201
    assert first.json() == second.json()
    other = {"data": {"type": "workspaces", "attributes": {"name": "two"}}}
    changed = await server.api.post("/organizations/default/workspaces", json=other, headers={"Idempotency-Key": "k1"})
    assert changed.status_code == 422


async def test_variables_are_sealed_and_sensitive_for_good(server: Running) -> None:
    made = await server.workspace()
    path = f"/workspaces/{made['id']}/vars"
    secret = "canary-4711-secret"
    answer = await server.post(path, {"key": "token", "value": secret, "category": "env", "sensitive": True}, "vars")
    assert answer.status_code == 201
    assert answer.json()["data"]["attributes"]["value"] is None
    var = answer.json()["data"]["id"]
    assert (await server.post(path, {"key": "token", "value": "x", "category": "terraform"}, "vars")).status_code == 201
    assert (await server.post(path, {"key": "token", "value": "x", "category": "env"}, "vars")).status_code == 422
    for reserved in ("PATH", "LD_PRELOAD", "TF_CLI_ARGS_plan", "TF_WORKSPACE", "a=b"):
        assert (await server.post(path, {"key": reserved, "value": "x", "category": "env"}, "vars")).status_code == 422
    opened = await server.api.patch(
        f"{path}/{var}", json={"data": {"type": "vars", "attributes": {"sensitive": False}}}
    )
    assert opened.status_code == 422
    before = (await server.api.get(f"{path}/{var}")).json()["data"]["attributes"]["version-id"]
    await server.api.patch(f"{path}/{var}", json={"data": {"type": "vars", "attributes": {}}})
    assert (await server.api.get(f"{path}/{var}")).json()["data"]["attributes"]["version-id"] != before
    for text in ((await server.api.get(path)).text, (await server.api.get(f"/workspaces/{made['id']}/all-vars")).text):
        assert secret not in text
    for file in server.folder.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


async def test_uploads_leave_one_object(server: Running) -> None:
    made = await server.workspace()
    answer = await server.post(f"/workspaces/{made['id']}/configuration-versions", {"auto-queue-runs": False})
    url = answer.json()["data"]["attributes"]["upload-url"]
    for archive in (tar({"a.tf": b"1"}), tar({"a.tf": b"1"}), tar({"a.tf": b"2"})):
        assert (await server.api.put(url, content=archive)).status_code == 200
    answers = await asyncio.gather(*(server.api.put(url, content=tar({"a.tf": b"x" * n})) for n in range(4)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len(await server.services.store.keys(f"workspaces/{made['id']}/configurations/")) == 1
    assert (await server.api.delete(f"/workspaces/{made['id']}")).status_code == 204
    assert await server.services.store.keys(f"workspaces/{made['id']}/") == []


async def test_a_tag_is_added_by_its_id(server: Running) -> None:
    """As go-tfe does; an id of no tag is refused, and is no name."""
    first = await server.workspace(labels={"team": "a", "prod": ""})
    second = (await server.workspace())["id"]
    path = f"/workspaces/{second}/relationships/tags"
    tags = (await server.api.get(f"/workspaces/{first['id']}/relationships/tags")).json()["data"]
    ids = {tag["attributes"]["name"]: tag["id"] for tag in tags}

    async def labels(workspace: str) -> dict[str, str]:
        found: dict[str, str] = (await server.api.get(f"/workspaces/{workspace}")).json()["data"]["attributes"][
            "labels"
        ]
        return found

    by_id = [{"type": "tags", "id": ids["team"]}, {"type": "tags", "attributes": {"name": "extra"}}]
    assert (await server.api.post(path, json={"data": by_id})).status_code == 204
    assert await labels(second) == {"team": "", "extra": ""}
    wrong = await server.api.post(path, json={"data": [by_id[1], {"type": "tags", "id": "tag-x"}]})
    assert (wrong.status_code, wrong.json()["errors"][0]["source"]["pointer"]) == (422, "/data/1/id")
    assert await labels(second) == {"team": "", "extra": ""}, "nothing half done"
    named = {"type": "tags", "id": ids["prod"], "attributes": {"name": "other"}}
    assert (await server.api.post(path, json={"data": [named]})).status_code == 204
    assert await labels(second) == {"team": "", "extra": "", "other": ""}
    gone = [{"type": "tags", "id": each} for each in (ids["team"], ids["prod"], "tag-x")]
    assert (await server.api.request("DELETE", path, json={"data": gone})).status_code == 204
    assert await labels(second) == {"extra": "", "other": ""}
    made = await server.post(
        "/organizations/default/workspaces", {"name": "by-id"}, "workspaces", tags=[{"type": "tags", "id": ids["prod"]}]
    )
    assert made.json()["data"]["attributes"]["labels"] == {"prod": ""}
    unknown = await server.post(
        "/organizations/default/workspaces", {"name": "x"}, "workspaces", tags=[{"type": "tags", "id": "tag-x"}]
    )
    assert unknown.json()["errors"][0]["source"]["pointer"] == "/data/relationships/tags/data/0/id"

    async with server.as_(await server.person("stranger@example.org")) as stranger:
        own = await stranger.post(
            "/organizations/default/workspaces", json={"data": {"type": "workspaces", "attributes": {"name": "own"}}}
        )
        own_path = f"/workspaces/{own.json()['data']['id']}/relationships/tags"
        hidden = await stranger.post(own_path, json={"data": [{"type": "tags", "id": ids["prod"]}]})
        assert hidden.status_code == 422, "a tag of workspaces that one may not see is not there"
