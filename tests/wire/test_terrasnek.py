"""A client that adds slashes, sends `null` with each DELETE and follows no redirect of a GET."""

import asyncio
import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from terrasnek.api import TFC
from terrasnek.exceptions import TFCHTTPConflict, TFCHTTPNotFound, TFCHTTPUnprocessableEntity

from kit.serving import Running, state_bytes, tar

T = TypeVar("T")


async def using(server: Running, work: Callable[[TFC], T]) -> T:
    def run() -> T:
        api = TFC(server.token, url=server.url, skip_version_check=True)
        api.set_org("default")
        return work(api)

    return await asyncio.to_thread(run)


def body(kind: str, attributes: dict[str, Any], **relationships: Any) -> dict[str, Any]:
    related = {name.replace("_", "-"): {"data": value} for name, value in relationships.items()}
    return {"data": {"type": kind, "attributes": attributes, "relationships": related}}


async def test_workspaces_variables_and_states(server: Running) -> None:
    raw = state_bytes(1, "line", {"port": {"value": 443, "type": "number"}})

    def work(api: TFC) -> None:
        key = api.workspaces.create(body("workspaces", {"name": "net"}))["data"]["id"]
        assert api.workspaces.show(workspace_name="net")["data"]["id"] == key
        api.workspaces.update(body("workspaces", {"description": "d"}), workspace_id=key)
        api.workspaces.add_tags(key, {"data": [{"type": "tags", "attributes": {"name": "a"}}]})
        [tag] = api.workspaces.list_all_tags(key)["data"]
        api.workspaces.remove_tags(key, {"data": [{"type": "tags", "id": tag["id"]}]})
        assert [each["id"] for each in api.workspaces.list_all(search={"name": "ne"})["data"]] == [key]
        variable = api.workspace_vars.create(key, body("vars", {"key": "a", "value": "b", "category": "terraform"}))
        assert [each["id"] for each in api.workspace_vars.list(key)["data"]] == [variable["data"]["id"]]
        api.workspace_vars.update(key, variable["data"]["id"], body("vars", {"value": "c"}))
        api.workspace_vars.destroy(key, variable["data"]["id"])
        with pytest.raises(TFCHTTPUnprocessableEntity):
            api.workspace_vars.create(key, body("vars", {"key": "PATH", "value": "b", "category": "env"}))
        api.workspaces.lock(key, {"reason": "mine"})
        with pytest.raises(TFCHTTPConflict):
            api.workspaces.lock(key, {"reason": "again"})
        attributes = {"serial": 1, "lineage": "line", "md5": hashlib.md5(raw).hexdigest()}
        state = base64.b64encode(raw).decode()
        made = api.state_versions.create(key, body("state-versions", {**attributes, "state": state}))["data"]["id"]
        assert api.state_versions.get_current(key)["data"]["id"] == made
        filters = [
            {"keys": ["workspace", "name"], "value": "net"},
            {"keys": ["organization", "name"], "value": "default"},
        ]
        assert [each["id"] for each in api.state_versions.list_all(filters)["data"]] == [made]
        [output] = api.state_version_outputs.show_current_for_workspace(key)["data"]
        assert api.state_version_outputs.show(output["id"])["data"]["attributes"]["value"] == 443
        api.workspaces.force_unlock(key)
        api.workspaces.safe_destroy(workspace_name="net")
        with pytest.raises(TFCHTTPNotFound):
            api.workspaces.show(workspace_id=key)

    await using(server, work)


async def test_a_run_from_an_uploaded_string(server: Running, tmp_path: Path) -> None:
    await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.api.post(f"/workspaces/{workspace}/actions/lock")  # so that it waits

    def work(api: TFC) -> None:
        made = api.config_versions.create(workspace, body("configuration-versions", {"auto-queue-runs": False}))["data"]
        api.config_versions.upload_from_string("# nothing\n", made["attributes"]["upload-url"])
        assert api.config_versions.show(made["id"])["data"]["attributes"]["status"] == "uploaded"
        linked = {
            "workspace": {"type": "workspaces", "id": workspace},
            "configuration_version": {"type": "configuration-versions", "id": made["id"]},
        }
        run = api.runs.create(body("runs", {"message": "by terrasnek"}, **linked))["data"]
        shown = api.runs.show(run["id"], include=["plan"])
        plan = run["relationships"]["plan"]["data"]["id"]
        assert [each["id"] for each in shown["included"]] == [plan]
        assert api.plans.show(plan)["data"]["attributes"]["log-read-url"]
        assert api.applies.show(run["relationships"]["apply"]["data"]["id"])["data"]["type"] == "applies"
        assert [each["id"] for each in api.runs.list_all(workspace)["data"]] == [run["id"]]
        api.runs.discard(run["id"], {"comment": "no"})
        assert api.runs.show(run["id"])["data"]["attributes"]["status"] == "discarded"

    await using(server, work)


async def test_pools_account_and_organization(server: Running) -> None:
    def work(api: TFC) -> None:
        pool = api.agents.create_pool(body("agent-pools", {"name": "gpu"}))["data"]["id"]
        assert len(api.agents.list_pools()["data"]) == 2
        api.agents.update(pool, body("agent-pools", {"name": "gpu2"}))
        token = api.agent_tokens.create(pool, body("authentication-tokens", {"description": "t"}))["data"]
        assert token["attributes"]["token"]
        assert len(api.agent_tokens.list(pool)["data"]) == 1
        api.agent_tokens.destroy(token["id"])
        api.agents.destroy_pool(pool)
        assert api.account.show()["data"]["attributes"]["email"] == "admin@localhost"
        assert api.orgs.entitlements("default")["data"]["attributes"]["operations"] is True
        assert [each["id"] for each in api.orgs.list_all()["data"]] == ["default"]
        [project] = api.projects.list_all()["data"]
        assert api.projects.show(project["id"])["data"]["id"] == project["id"]

    await using(server, work)


async def test_modules(server: Running, tmp_path: Path) -> None:
    archive = tmp_path / "module.tar.gz"
    archive.write_bytes(tar({"main.tf": b""}))

    def work(api: TFC) -> None:
        made = {}
        for provider in ("aws", "google"):
            made[provider] = api.registry_modules.create(
                body("registry-modules", {"name": "net", "provider": provider})
            )
            for number in ("1.0.0", "1.1.0-rc.1+b"):
                version = body("registry-module-versions", {"version": number, "commit-sha": "abc"})
                link = api.registry_modules.create_version("net", provider, version)["data"]["links"]["upload"]
                api.registry_modules.upload_version(str(archive), link)
        assert api.registry_modules.show("net", "google")["data"]["id"] == made["google"]["data"]["id"]
        assert len(api.registry_modules.list_all()["data"]) == 2
        [found] = api.registry_modules.list_versions("net", "aws")["modules"]
        assert [each["version"] for each in found["versions"]] == ["1.1.0-rc.1+b", "1.0.0"]
        api.registry_modules.destroy("net", provider="aws", version="1.1.0-rc.1+b")
        api.registry_modules.destroy("net", provider="aws")
        with pytest.raises(TFCHTTPNotFound):
            api.registry_modules.show("net", "aws")
        api.registry_modules.destroy("net")
        assert api.registry_modules.list_all()["data"] == []

    await using(server, work)
