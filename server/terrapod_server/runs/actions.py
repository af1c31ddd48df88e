"""The verbs of runs: each is one `Change`."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from terrapod_server.configs import actions as configs
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db import database
from terrapod_server.kit.db.conditions import Where
from terrapod_server.kit.db.row_cache import Reader, Record
from terrapod_server.kit.services import Services
from terrapod_server.runs import engines, ports, readers, states, unknown
from terrapod_server.runs.change import Change, Repeats
from terrapod_server.runs.events import Event
from terrapod_server.runs.model import Phase, Run
from terrapod_server.runs.states import Status
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, Invalid, NotFound
from terrapod_shared.variables import refusal

#: Within this time the same request is a repeat: go-tfe sends a POST again after a 5xx or a lost answer.
REPEAT = timedelta(seconds=60)
READER = Reader(Run)
#: A run and a phase as other rooms hold them: they read them, and change them by verbs of this room.
Row: TypeAlias = Run
PhaseRow: TypeAlias = Phase


async def get(run_id: str) -> Run:
    """Raises NotFound."""
    run = await Run.get_or_none(id=run_id)
    if run is None:
        raise NotFound
    return run


async def find(run_id: str) -> Run | None:
    """The same, or None."""
    return await Run.get_or_none(id=run_id)


async def read(run_id: str) -> Record[Run]:
    """A run, to be shown. Raises NotFound."""
    found = await READER.one('t."id" = $1', run_id)
    if found is None:
        raise NotFound
    return found


async def by_ids(run_ids: Sequence[str]) -> list[Run]:
    return await Run.filter(id__in=list(run_ids))


async def has_run(workspace_id: str, run_id: str) -> bool:
    """Whether the run is of the workspace."""
    return await Run.exists(id=run_id, workspace_id=workspace_id)


async def count_unfinished() -> dict[str, int]:
    """How many runs are not over, by status."""
    named = ", ".join(f"'{status.value}'" for status in sorted(states.UNFINISHED))
    sql = f"SELECT status, count(*) FROM run WHERE status IN ({named}) GROUP BY status"  # noqa: S608  our own words
    return {str(row[0]): int(row[1]) for row in await database.rows(sql)}


async def existing(run_ids: Sequence[str]) -> set[str]:
    """Of these ids those that are there."""
    return {run.id for run in await Run.filter(id__in=list(run_ids)).only("id")}


async def active(workspace_id: str) -> Run | None:
    """The one apply-capable run of the workspace that is active."""
    return await Run.filter(workspace_id=workspace_id, holds_queue=True).first()


async def phases(phase_ids: Sequence[str]) -> list[Phase]:
    """Plans or applies by id, with what they show of their runs."""
    found = await Phase.filter(id__in=list(phase_ids))
    runs = {run.id: run for run in await by_ids([phase.run_id for phase in found])}
    for phase in found:
        phase.has_changes = runs[phase.run_id].has_changes
    return found


async def phase(phase_id: str) -> Phase:
    """Raises NotFound."""
    found = await phases([phase_id])
    if not found:
        raise NotFound
    return found[0]


def is_plan_only(values: Mapping[str, Any], version: configs.Row | None) -> bool:
    return bool(values.get("plan_only")) or (version is not None and version.speculative)


async def configuration_for(workspace: workspaces.Row, version_id: str | None) -> configs.Row:
    """The configuration that a run names, or the newest that was meant to be applied. Raises Invalid."""
    if version_id is None:
        version = await configs.latest(workspace.id)
        if version is None:
            message = f"workspace {workspace.name} has no uploaded configuration"
            raise Invalid(message, pointer="/data/relationships/configuration-version")
        return version
    try:
        version = await configs.get(version_id)
    except NotFound:
        version = None
    if version is None or version.workspace_id != workspace.id:
        message = f"there is no configuration version {version_id} in this workspace"
        raise Invalid(message, pointer="/data/relationships/configuration-version")
    if version.status not in ("uploaded", "pending"):
        message = f"the configuration version {version_id} is {version.status}"
        raise Invalid(message, pointer="/data/relationships/configuration-version")
    return version


async def create(
    services: Services,
    workspace: workspaces.Row,
    principal: Principal,
    version: configs.Row,
    values: Mapping[str, Any],
    *,
    request: bytes = b"",
) -> Run:
    """Makes a run and lets it go as far as it may. Raises Invalid.

    The same request of the same token within a minute, while the first run
    has not begun, gives the first run.
    """
    if workspace.execution_mode == "local":
        message = f"workspace {workspace.name} has execution-mode local: runs happen at the user's"
        raise Invalid(message)
    values = dict(values)
    _check(values, workspace)
    digest = (
        hashlib.sha256(b"\0".join((workspace.id.encode(), version.id.encode(), request))).hexdigest() if request else ""
    )
    run_id = ids.make("run")
    pool_id = await services.ask(ports.POOLS).pool_for(workspace)
    tool = values.pop("engine_tool", workspace.execution_backend)
    wanted = values.pop("terraform_version", None) or workspace.terraform_version
    engine = await engines.settle(services, pool_id, tool, wanted)
    own = values.pop("variables", [])
    sealed = services.cipher.seal(json.dumps(own).encode(), f"run {run_id}") if own else b""
    plan_only = is_plan_only(values, version)
    values["plan_only"] = plan_only
    if values.get("auto_apply") is None:
        values["auto_apply"] = workspace.auto_apply
    values["auto_apply"] = values["auto_apply"] and not plan_only
    is_read = values["auto_apply"] and values.get("is_terraform")
    async with Change(services, workspace.id) as change:
        new = Run(
            id=run_id,
            workspace_id=workspace.id,
            configuration_version_id=version.id,
            pool_id=pool_id,
            variables=sealed,
            engine_tool=tool,
            engine_version=engine.version,
            engine_wanted=wanted,
            engine_is_local=engine.is_local,
            status_message=engine.why[:500],
            working_directory=workspace.working_directory,
            resource_cpu=workspace.resource_cpu,
            resource_memory=workspace.resource_memory,
            created_by_id=principal.id,
            created_by_token=principal.token_id,
            request_hash=digest,
            status_timestamps={"plan-queueable-at": clock.stamp(clock.now())},
            awaited_read=readers.LOG if is_read else "",
            **values,
        )
        run = await change.add(new, repeats=Repeats(digest, principal.token_id, clock.now() - REPEAT))
        if engine.why and run is new:
            engines.note_waiting(change, run, engine.why)
    return run


def _check(values: Mapping[str, Any], workspace: workspaces.Row) -> None:
    if values.get("is_destroy") and not workspace.allow_destroy_plan:
        message = f"workspace {workspace.name} does not allow destroy plans"
        raise Invalid(message, pointer="/data/attributes/is-destroy")
    if values.get("is_destroy") and values.get("refresh_only"):
        message = "a run cannot be both is-destroy and refresh-only"
        raise Invalid(message, pointer="/data/attributes/refresh-only")
    for variable in values.get("variables", ()):
        key, value = variable.get("key"), variable.get("value")
        if not isinstance(key, str) or not key or not isinstance(value, str):
            message = "each of variables must be an object with the strings key and value"
            raise Invalid(message, pointer="/data/attributes/variables")
        if why := refusal(key, "terraform"):
            raise Invalid(why, pointer="/data/attributes/variables")


def run_variables(services: Services, run: Run) -> list[dict[str, str]]:
    """The run's own variables, `[{key, value}]`; values are HCL."""
    if not run.variables:
        return []
    found: list[dict[str, str]] = json.loads(services.cipher.unseal(run.variables, f"run {run.id}"))
    return found


async def confirm(services: Services, run_id: str, principal: Principal) -> Run:
    """Lets a planned run be applied. A second one by the same token within a minute is no error."""
    run = await get(run_id)
    async with Change(services, run.workspace_id) as change:
        run = await get(run_id)
        repeated = run.confirmed_at is not None and run.confirmed_at > clock.now() - REPEAT
        if repeated and run.confirmed_by_token == principal.token_id:
            return run
        states.after(run.status, Event.CONFIRM)
        if change.workspace.locked or change.workspace.run_lock_reason:
            raise workspaces.locked(change.workspace, "apply")
        await change.confirm(
            run,
            user_id=principal.id,
            confirmed_by_id=principal.id,
            confirmed_by_token=principal.token_id,
            confirmed_at=clock.now(),
        )
        await change.advance()
    return await get(run_id)


async def discard(services: Services, run_id: str, principal: Principal, comment: str = "") -> Run:
    """Ends a run that waits, unapplied."""
    run = await get(run_id)
    async with Change(services, run.workspace_id) as change:
        await change.fire(await get(run_id), Event.DISCARD, user_id=principal.id, description=comment)
        await change.advance()
    return await get(run_id)


async def cancel(services: Services, run_id: str, principal: Principal, comment: str = "") -> Run:
    """Ends a run that has not begun; asks the listener to interrupt one that has, and waits for its word."""
    run = await get(run_id)
    async with Change(services, run.workspace_id) as change:
        run = await get(run_id)
        states.after(run.status, Event.CANCEL)
        now = clock.now()
        if run.status in states.RUNNING:
            if not run.cancel_requested:
                grace = timedelta(seconds=services.config.runs.cancel_grace_s)
                await Run.filter(id=run.id).update(
                    cancel_requested="cancel", canceled_at=now, force_cancel_available_at=now + grace
                )
                await _asked(change, run, Event.CANCEL_REQUESTED, principal.id, comment)
        else:
            await change.fire(run, Event.CANCEL, user_id=principal.id, description=comment, canceled_at=now)
            await change.advance()
    return await get(run_id)


async def force_cancel(services: Services, run_id: str, principal: Principal, comment: str = "") -> Run:
    """Asks the listener to kill a process that an interrupt did not end. Raises Conflict before its time."""
    run = await get(run_id)
    async with Change(services, run.workspace_id) as change:
        run = await get(run_id)
        available = run.force_cancel_available_at
        if run.status not in states.RUNNING or available is None:
            message = f"cannot force-cancel a run that is {run.status.value} and was not canceled first"
            raise Conflict(message)
        if clock.now() < available:
            message = f"the run was canceled and has until {clock.stamp(available)} to end by itself"
            raise Conflict(message)
        await Run.filter(id=run.id).update(cancel_requested="force-cancel")
        await _asked(change, run, Event.FORCE_CANCEL, principal.id, comment)
    return await get(run_id)


async def _asked(change: Change, run: Run, event: Event, user_id: str, comment: str) -> None:
    change.note(run, event, user_id=user_id, description=comment)
    running = await Phase.filter(run_id=run.id, status="running").first()
    if running is not None and running.lease_listener_id:
        change.wake(f"listener:{running.lease_listener_id}")


async def retry(services: Services, run_id: str, principal: Principal) -> Run:
    """A new run with everything of one that is over. Raises Conflict."""
    old = await get(run_id)
    if not old.is_final:
        message = f"cannot retry a run that is {old.status.value}"
        raise Conflict(message)
    workspace = await workspaces.get(old.workspace_id)
    version = await configuration_for(workspace, old.configuration_version_id)
    copied = (
        "is_destroy", "plan_only", "save_plan", "auto_apply", "refresh", "refresh_only", "allow_empty_apply",
        "allow_config_generation", "target_addrs", "replace_addrs", "structured", "engine_tool", "source",
    )  # fmt: skip
    values: dict[str, Any] = {name: getattr(old, name) for name in copied}
    values |= {
        "variables": run_variables(services, old),
        "terraform_version": old.engine_version or old.engine_wanted,
        "message": f"Retry of {old.id}: {old.message}" if old.message else f"Retry of {old.id}",
    }
    return await create(services, workspace, principal, version, values)


async def release(services: Services, run_id: str, principal: Principal) -> Run:
    """Gives up an apply whose listener is lost: the run is errored, and keeps the workspace's lock. Raises Conflict.

    Nobody knows what it has made; see `release_lock`.
    """
    run = await get(run_id)
    async with Change(services, run.workspace_id) as change:
        run = await get(run_id)
        held = await Phase.filter(id=run.apply_id, lease_state="held").first()
        if held is None:
            message = f"run {run.id} is not held: its listener is not lost"
            raise Conflict(message)
        await Phase.filter(id=held.id).update(lease_number=held.lease_number + 1)
        why = f"released by {principal.name}: the listener was lost while it applied, and the state may be behind"
        text = unknown.error_message(change.workspace.name, why)
        await change.fire(run, Event.FAIL, user_id=principal.id, unknown_why=why, error_message=text, status_message="")
        await change.advance()
    return await get(run_id)


async def release_lock(services: Services, workspace_id: str, principal: Principal) -> bool:
    """Frees the lock that a run has kept since its state is unknown, and lets the next run go; whether there was one.

    A manual lock stays, and holds the next run as ever.
    """
    async with Change(services, workspace_id) as change:
        run_id = await change.free_lock()
        if not run_id:
            return False
        text = f"{principal.name} freed the lock that the run had kept: its state is no longer unknown"
        change.note(await get(run_id), Event.LOCK_RELEASED, user_id=principal.id, description=text)
        await change.advance()
    return True


async def on_configuration_uploaded(services: Services, version: configs.Row) -> None:
    """Lets the runs go that waited for the bytes; makes one where the version asks for it."""
    waiting = await Run.exists(configuration_version_id=version.id)
    if waiting:
        async with Change(services, version.workspace_id) as change:
            await change.advance()
    elif version.auto_queue_runs:
        workspace = await workspaces.get(version.workspace_id)
        if workspace.execution_mode == "local":
            return
        maker = Principal(kind="user", id=version.created_by_id)
        values = {"source": "tfe-configuration-version", "message": "Queued by the upload of a configuration"}
        await create(services, workspace, maker, version, values)


async def configuration_in_use(version_id: str, *, unfinished: bool = False) -> bool:
    """Whether a run uses a configuration; `unfinished`: one that is not over."""
    runs = Run.filter(configuration_version_id=version_id)
    runs = runs.filter(status__in=list(states.UNFINISHED)) if unfinished else runs.exclude(status=Status.PENDING)
    return await runs.exists()


async def on_state_finalized(services: Services, workspace_id: str) -> None:
    """A newer state makes saved plans stale: they are discarded."""
    if not await Run.filter(workspace_id=workspace_id, status=Status.PLANNED_AND_SAVED).exists():
        return
    async with Change(services, workspace_id) as change:
        for run in await Run.filter(workspace_id=workspace_id, status=Status.PLANNED_AND_SAVED):
            await change.fire(run, Event.DISCARD, description="the workspace has a newer state")


async def on_workspace_unlocked(services: Services, workspace_id: str) -> None:
    async with Change(services, workspace_id) as change:
        await change.advance()


def run_has_status(column: str, statuses: Iterable[str]) -> Where:
    """The run that an id in `column` names has one of the statuses."""
    known = [status for status in dict.fromkeys(statuses) if status in {member.value for member in Status}]
    marks = ", ".join(f"${number}" for number in range(1, len(known) + 1)) or "NULL"
    sql = f'EXISTS (SELECT 1 FROM run r WHERE r."id" = {column} AND r."status" IN ({marks}))'  # noqa: S608  our own words
    return Where(sql, tuple(known))
