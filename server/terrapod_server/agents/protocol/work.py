"""A claimed phase -> the work that its listener gets."""

import time
from typing import Literal

import msgspec

from terrapod_server.agents.model import Listener
from terrapod_server.configs import actions as configs
from terrapod_server.engines import actions as engine_cache
from terrapod_server.kit.services import Services
from terrapod_server.runs import actions as runs
from terrapod_server.runs import leases, logs, waited
from terrapod_server.states import actions as states
from terrapod_server.store.port import once
from terrapod_server.variables import actions as variables
from terrapod_server.variables.rules import Resolved, resolve
from terrapod_server.workspaces import actions as workspaces
from terrapod_server.workspaces.organization import PROJECT_NAME
from terrapod_shared import signing, wire
from terrapod_shared.errors import Conflict, NotFound

#: The artifact of a plan that holds its terraform variables.
_FIXED = "variables"
_FIXED_MOST = 256 << 20


async def build(services: Services, listener: Listener, phase: runs.PhaseRow) -> wire.Work:
    """Raises what stands in the way: the engine cannot be had, the configuration is gone."""
    run = await runs.get(phase.run_id)
    workspace = await workspaces.get(run.workspace_id)
    config = services.config.runs
    state = await states.current(workspace.id)
    return wire.Work(
        listener_id=listener.id,
        run_id=run.id,
        phase="plan" if phase.kind == "plan" else "apply",
        lease=wire.Lease(number=phase.lease_number, seconds=wire.LEASE_S),
        workspace_id=workspace.id,
        workspace_name=workspace.name,
        labels=workspace.labels,
        project_name=PROJECT_NAME,
        engine=await _engine(services, listener, run),
        configuration_version_id=run.configuration_version_id,
        working_directory=run.working_directory,
        options=wire.Options(
            is_destroy=run.is_destroy,
            refresh=run.refresh,
            refresh_only=run.refresh_only,
            target_addrs=run.target_addrs or [],
            replace_addrs=run.replace_addrs or [],
            allow_empty_apply=run.allow_empty_apply,
            allow_config_generation=run.allow_config_generation,
            plan_only=run.plan_only,
            save_plan=run.save_plan,
            structured=run.structured,
            message=run.message,
        ),
        variables=await _variables(services, listener, run, phase),
        run_token=services.authenticator.issue_run_token(run.id, phase.kind, phase.lease_number, workspace.id),
        hosts=services.config.hosts,
        state=_state_ref(state) if state else None,
        links=await _links(listener, run, phase),
        limits=wire.Limits(
            log_bytes=config.log_bytes,
            plan_s=config.plan_s,
            apply_s=config.apply_s,
            cancel_grace_s=config.cancel_grace_s,
            cpu=run.resource_cpu,
            memory=run.resource_memory,
        ),
        log_offset=await logs.size(services, phase),
        issued_at=time.time(),
        waited=await waited.text(run, phase),
    )


def _state_ref(state: states.Row) -> wire.StateRef:
    """What terraform will count from: the bytes' own serial and lineage."""
    return wire.StateRef(serial=state.serial_in_bytes, lineage=state.lineage_in_bytes, md5=state.md5)


async def _engine(services: Services, listener: Listener, run: runs.Row) -> wire.Engine:
    tool: Literal["terraform", "tofu"] = "tofu" if run.engine_tool == "tofu" else "terraform"
    engine_cache.check_floor(services, tool, run.engine_version)  # it may have risen since the run was made
    for entry in listener.local_engines:
        if (entry["tool"], entry["version"]) == (tool, run.engine_version):
            return wire.Engine(tool=tool, version=run.engine_version, sha256=entry["sha256"], local=True)
    row = await engine_cache.ensure(services, tool, run.engine_version, listener.os, listener.arch)
    return wire.Engine(tool=tool, version=run.engine_version, sha256=row.sha256)


async def _variables(
    services: Services, listener: Listener, run: runs.Row, phase: runs.PhaseRow
) -> list[wire.Variable]:
    """Of the workspace and of the run; sensitive values for the listener's eyes alone."""
    found = []
    for each in await _resolved(services, run, phase):
        sealed = ""
        if each.sensitive and not listener.sealing_key:
            message = f"listener {listener.name} has no key to seal the sensitive variable {each.key} to"
            raise Conflict(message)
        if each.sensitive:
            info = wire.seal_info(run.id, phase.kind, phase.lease_number, each.category, each.key)
            sealed = signing.seal(listener.sealing_key, info, each.value.encode())
        found.append(
            wire.Variable(
                key=each.key,
                category="env" if each.category == "env" else "terraform",
                value="" if sealed else each.value,
                sealed=sealed,
                hcl=each.hcl,
                sensitive=each.sensitive,
                from_run=each.from_run,
            )
        )
    return found


async def _resolved(services: Services, run: runs.Row, phase: runs.PhaseRow) -> list[Resolved]:
    """Those of terraform are fixed when the plan is claimed; those of the environment are read again at the apply."""
    own = [
        Resolved(item["key"], "terraform", item["value"], hcl=True, from_run=True)
        for item in runs.run_variables(services, run)
    ]
    now = resolve([await variables.resolve(services, run.workspace_id), own])
    if phase.kind == "plan":
        fixed = [each for each in now if each.category == "terraform"]
        if fixed:
            await services.store.put(leases.artifact_key(phase, _FIXED), once(msgspec.json.encode(fixed)))
        return now
    try:
        key = leases.artifact_key(await leases.phase(run.plan_id), _FIXED)
        fixed = msgspec.json.decode(await services.store.whole(key, _FIXED_MOST), type=list[Resolved])
    except NotFound:
        fixed = []
    return [*(each for each in now if each.category == "env"), *fixed]


async def _links(listener: Listener, run: runs.Row, phase: runs.PhaseRow) -> dict[str, wire.Link]:
    base = f"/api/v2/listeners/{listener.id}/runs/{run.id}"
    version = await configs.get(run.configuration_version_id)
    links = {
        "configuration": wire.Link(path=f"{base}/configuration", sha256=version.sha256, size=version.size),
        "engine": wire.Link(
            path=f"/api/v2/listeners/{listener.id}/engines/{run.engine_tool}/{run.engine_version}/{listener.os}/{listener.arch}"
        ),
    }
    state = await states.current(run.workspace_id)
    if state is not None:
        links["state"] = wire.Link(path=f"{base}/state", sha256=state.sha256, size=state.size)
    if phase.kind == "apply":
        plan = await leases.phase(run.plan_id)
        for name, artifact in (("plan", "plan-file"), ("lock-file", "lock-file")):
            if artifact in plan.digests:
                links[name] = wire.Link(path=f"{base}/{artifact}", sha256=plan.digests[artifact])
    return links
