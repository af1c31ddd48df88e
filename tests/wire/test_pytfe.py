"""HashiCorp's own Python client against the real server: it decodes strictly what it gets."""

import asyncio
import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from pytfe import TFEClient, TFEConfig, errors, models
from pytfe.models.organization import ReadRunQueueOptions
from pytfe.models.run import RunIncludeOpt, RunReadOptions, RunVariable
from pytfe.models.state_version import StateVersionStatus

from kit.serving import Running, state_bytes, tar
from terrapod_shared import wire

T = TypeVar("T")
ORG = "default"


async def using(server: Running, work: Callable[[TFEClient], T]) -> T:
    """What `work` does with a client, which blocks: in a thread of its own."""

    def run() -> T:
        with TFEClient(
            TFEConfig(address=server.url, token=server.token, max_retries=0, http2=False, ca_bundle=None)
        ) as tfe:
            return work(tfe)

    return await asyncio.to_thread(run)


async def test_workspaces_from_creation_to_deletion(server: Running) -> None:
    def work(tfe: TFEClient) -> None:
        made = tfe.workspaces.create(
            ORG,
            models.WorkspaceCreateOptions(
                name="net", description="d", auto_apply=True, tag_bindings=[models.TagBinding(key="a", value="1")]
            ),
        )
        assert (made.name, made.auto_apply, made.permissions and made.permissions.can_queue_apply) == (
            "net",
            True,
            True,
        )
        assert tfe.workspaces.read("net", organization=ORG).id == tfe.workspaces.read_by_id(made.id).id == made.id
        changed = tfe.workspaces.update_by_id(made.id, models.WorkspaceUpdateOptions(description="e"))
        assert (changed.description, changed.auto_apply) == ("e", True)
        tfe.workspaces.update("net", models.WorkspaceUpdateOptions(name="net2"), organization=ORG)
        tfe.workspaces.add_tags(made.id, models.WorkspaceAddTagsOptions(tags=[models.Tag(name="b")]))
        assert {tag.name for tag in tfe.workspaces.list_tags(made.id)} == {"a", "b"}
        bound = models.WorkspaceAddTagBindingsOptions(tag_bindings=[models.TagBinding(key="env", value="prod")])
        assert ("env", "prod") in {(tag.key, tag.value) for tag in tfe.workspaces.add_tag_bindings(made.id, bound)}
        assert len(list(tfe.workspaces.list_effective_tag_bindings(made.id))) == 3
        tfe.workspaces.remove_tags(made.id, models.WorkspaceRemoveTagsOptions(tags=[models.Tag(name="b")]))
        tfe.workspaces.delete_all_tag_bindings(made.id)
        assert list(tfe.workspaces.list_tag_bindings(made.id)) == []
        tfe.workspaces.add_tags(
            made.id, models.WorkspaceAddTagsOptions(tags=[models.Tag(name="a"), models.Tag(name="env")])
        )
        for number in range(3):
            tfe.workspaces.create(ORG, models.WorkspaceCreateOptions(name=f"app-{number}"))
        options = models.WorkspaceListOptions(wildcard_name="app-*", sort="-name", page_size=1)
        assert [each.name for each in tfe.workspaces.list(ORG, options)] == ["app-2", "app-1", "app-0"]
        assert [each.name for each in tfe.workspaces.list(ORG, models.WorkspaceListOptions(tags="a,env"))] == ["net2"]
        other = tfe.workspaces.read("app-0", organization=ORG)
        consumers = models.WorkspaceAddRemoteStateConsumersOptions(workspaces=[other])
        tfe.workspaces.add_remote_state_consumers(made.id, consumers)
        assert [each.id for each in tfe.workspaces.list_remote_state_consumers(made.id)] == [other.id]
        assert tfe.workspaces.lock(made.id, models.WorkspaceLockOptions(reason="mine")).locked is True
        with pytest.raises(errors.TFEError, match="is locked by User"):
            tfe.workspaces.lock(made.id, models.WorkspaceLockOptions(reason="again"))
        assert tfe.workspaces.unlock(made.id).locked is False
        tfe.workspaces.safe_delete_by_id(made.id)
        tfe.workspaces.delete("app-0", organization=ORG)
        with pytest.raises(errors.NotFound):
            tfe.workspaces.read_by_id(made.id)

    await using(server, work)


async def test_variables(server: Running) -> None:
    workspace = (await server.workspace())["id"]

    def work(tfe: TFEClient) -> None:
        options = models.VariableCreateOptions(
            key="token", value="hunter2", category=models.CategoryType.ENV, sensitive=True, hcl=False
        )
        made = tfe.variables.create(workspace, options)
        assert (made.key, made.value, made.sensitive) == ("token", None, True)
        changed = tfe.variables.update(workspace, str(made.id), models.VariableUpdateOptions(description="x"))
        assert changed.description == "x"
        assert [each.id for each in tfe.variables.list(workspace)] == [made.id]
        assert [each.id for each in tfe.variables.list_all(workspace)] == [made.id]
        assert tfe.variables.read(workspace, str(made.id)).description == "x"
        tfe.variables.delete(workspace, str(made.id))
        assert list(tfe.variables.list(workspace)) == []

    await using(server, work)


async def test_a_run_with_its_plan(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]

    def begin(tfe: TFEClient) -> models.Run:
        options = models.ConfigurationVersionCreateOptions(auto_queue_runs=False, speculative=False)
        configuration = tfe.configuration_versions.create(workspace, options)
        assert configuration.upload_url
        archive = io.BytesIO(tar({"main.tf": b"# nothing\n"}))
        tfe.configuration_versions.upload_tar_gzip(configuration.upload_url, archive)
        read = tfe.configuration_versions.read(configuration.id)
        assert (read.status, read.upload_url) == (models.ConfigurationStatus.UPLOADED, None)
        assert [each.id for each in tfe.configuration_versions.list(workspace)] == [configuration.id]
        return tfe.runs.create(
            models.RunCreateOptions(
                workspace=models.Workspace(id=workspace),
                configuration_version=models.ConfigurationVersion(id=configuration.id),
                message="by pytfe",
                variables=[RunVariable(key="a", value='"b"')],
            )
        )

    run = await using(server, begin)
    assert run.actions
    assert run.permissions
    assert (run.status, run.source, run.actions.is_cancelable, run.permissions.can_apply) == (
        models.RunStatus.Run_Plan_Queued, models.RunSource.Run_Source_API, True, True,
    )  # fmt: skip
    work = await listener.next_work(10)
    assert work is not None
    lease = work.lease.number
    await listener.report(run.id, wire.Report(phase="plan", status="planning"), lease)
    log = b"one\ntwo\nthree\nplanned\n"
    await listener.call("PUT", f"{listener.base}/runs/{run.id}/plan/log?offset=0", body=log, lease=lease)
    done = wire.Report(phase="plan", status="errored", error_message="over", log_bytes=len(log))

    def look(tfe: TFEClient) -> None:
        include = [RunIncludeOpt.RUN_PLAN, RunIncludeOpt.RUN_WORKSPACE, RunIncludeOpt.RUN_CREATED_BY]
        shown = tfe.runs.read_with_options(run.id, RunReadOptions(include=include))
        assert shown.status is models.RunStatus.Run_Planning
        assert shown.workspace
        assert shown.workspace.id == workspace
        assert [each.id for each in tfe.runs.list(workspace)] == [run.id]
        assert [each.id for each in tfe.runs.list_for_organization(ORG)] == [run.id]
        assert next(event.action for event in tfe.run_events.list(run.id)) == "create"
        plan = tfe.plans.read_for_run(run.id)
        assert plan.log_read_url
        assert tfe.plans.logs(plan.id) == ""  # it looks at the URL and no further
        assert shown.apply
        assert tfe.applies.read(shown.apply.id).id == shown.apply.id
        queue = tfe.organizations.read_run_queue(ORG, ReadRunQueueOptions())
        assert [each.id for each in queue.items] == [run.id]
        assert tfe.organizations.read_capacity(ORG).running == 1

    await using(server, look)
    await listener.report(run.id, done, lease)
    assert (await using(server, lambda tfe: tfe.runs.read(run.id))).status is models.RunStatus.Run_Errored


async def test_states(server: Running) -> None:
    workspace = await server.workspace()
    key, name = workspace["id"], workspace["attributes"]["name"]
    first, second = (
        state_bytes(serial, "line", {"port": {"value": 443, "type": "number"}}, resources=2) for serial in (1, 2)
    )

    def options(raw: bytes, serial: int, state: str | None = None) -> models.StateVersionCreateOptions:
        md5 = hashlib.md5(raw).hexdigest()
        return models.StateVersionCreateOptions(serial=serial, md5=md5, lineage="line", state=state)

    def work(tfe: TFEClient) -> None:
        made = tfe.state_versions.upload(key, raw_state=first, raw_json_state=b"{}", options=options(first, 1))
        assert (made.status, made.size, made.resources_processed) == (
            StateVersionStatus.FINALIZED, len(first), True,
        )  # fmt: skip
        assert tfe.state_versions.download_current(key) == first
        inline = tfe.state_versions.create(key, options(second, 2, base64.b64encode(second).decode()))
        assert inline.status is StateVersionStatus.FINALIZED
        assert tfe.state_versions.download(inline.id) == second
        wanted = models.StateVersionListOptions(organization=ORG, workspace=name)
        assert [each.serial for each in tfe.state_versions.list(wanted)] == [2, 1]
        [output] = tfe.state_version_outputs.read_current(key)
        assert (output.name, output.value, output.type) == ("port", 443, "number")
        assert tfe.state_version_outputs.read(output.id).value == 443
        assert [each.name for each in tfe.state_versions.list_outputs(made.id)] == ["port"]

    await using(server, work)


async def test_pools_account_and_organization(server: Running) -> None:
    def work(tfe: TFEClient) -> None:
        pool = tfe.agent_pools.create(ORG, models.AgentPoolCreateOptions(name="gpu", organization_scoped=True))
        assert {each.name for each in tfe.agent_pools.list(ORG)} == {"default", "gpu"}
        changed = tfe.agent_pools.update(pool.id, models.AgentPoolUpdateOptions(name="gpu2"))
        assert (changed.name, tfe.agent_pools.read(pool.id).organization_scoped) == ("gpu2", True)
        token = tfe.agent_tokens.create(pool.id, models.AgentTokenCreateOptions(description="t"))
        assert token.token
        assert [each.id for each in tfe.agent_tokens.list(pool.id)] == [token.id]
        assert tfe.agent_tokens.read(token.id).description == "t"
        tfe.agent_tokens.delete(token.id)
        tfe.agent_pools.delete(pool.id)
        assert tfe.users.read_current().email == "admin@localhost"
        assert [each.name for each in tfe.organizations.list()] == [tfe.organizations.read(ORG).name] == [ORG]
        assert tfe.organizations.read_entitlements(ORG).operations is True
        [project] = tfe.projects.list(ORG)
        assert tfe.projects.read(project.id).name == "Default Project"

    await using(server, work)


async def test_modules_from_creation_to_deletion(server: Running) -> None:
    def work(tfe: TFEClient) -> None:
        modules, named = tfe.registry_modules, models.RegistryModuleID(organization=ORG, name="net", provider="aws")
        made = modules.create(ORG, models.RegistryModuleCreateOptions(name="net", provider="aws"))
        assert (made.name, made.status and made.status.value) == ("net", "pending")
        seen = set()
        for number in ("1.0.0", "1.1.0"):
            version = modules.create_version(named, models.RegistryModuleCreateVersionOptions(version=number))
            modules.upload_tar_gzip(version.links["upload"], io.BytesIO(tar({"main.tf": b""})))
            assert modules.read_version(named, number).id == version.id
            seen.add(version.id)
        shown = modules.read(models.RegistryModuleID(id=made.id))
        assert (shown.status and shown.status.value, [each.version for each in shown.version_statuses]) == (
            "setup_complete",
            ["1.1.0", "1.0.0"],
        )
        assert {each.id for each in modules.list_versions(named)} == seen
        assert [each.id for each in modules.list(ORG)] == [made.id]
        modules.update(named, models.RegistryModuleUpdateOptions(no_code=True))
        modules.delete_version(named, "1.0.0")
        assert [each.version for each in modules.read(named).version_statuses] == ["1.1.0"]
        modules.delete_provider(named)
        with pytest.raises(errors.NotFound):
            modules.read(named)

    await using(server, work)
