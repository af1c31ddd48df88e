"""The verbs of workspaces. Each is one transaction and tells others after it."""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tortoise.exceptions import IntegrityError
from tortoise.expressions import Q

from terrapod_server.access import rules as access
from terrapod_server.access import visible
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db import database, database_errors
from terrapod_server.kit.db.conditions import Where
from terrapod_server.kit.db.database import in_transaction
from terrapod_server.kit.db.row_cache import Reader, Record
from terrapod_server.kit.services import Services
from terrapod_server.workspaces import ports, rules
from terrapod_server.workspaces.model import DeletedWorkspace, RemoteStateConsumer, Workspace, WorkspaceLabel
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, Invalid, NotFound

log = logging.getLogger(__name__)

READER = Reader(Workspace)
#: A workspace as other rooms hold it: they read it, and change it by the verbs of this module.
Row: TypeAlias = Workspace
KIND = visible.Kind("workspace_label", "workspace_id", is_workspace=True)


async def get(workspace_id: str) -> Workspace:
    """Raises NotFound, also for a text that could be no id."""
    found = await READER.one('t."id" = $1', workspace_id) if ids.is_valid(workspace_id, "ws") else None
    if found is None:
        raise NotFound
    return found.row


async def by_name(name: str) -> Workspace:
    found = await Workspace.get_or_none(name=name)
    if found is None:
        raise NotFound
    return found


async def read(*, workspace: str = "", workspace_name: str = "", org: str = "") -> Record[Workspace]:
    """One workspace, by id or by name, to be shown. Raises NotFound."""
    del org
    column, value = ("name", workspace_name) if workspace_name else ("id", workspace)
    found = await READER.one(f't."{column}" = $1', value)
    if found is None:
        raise NotFound
    return found


async def named(name: str) -> list[Workspace]:
    """The workspace of that name, in a list; an empty one where there is none."""
    return await Workspace.filter(name=name)


async def by_ids(workspace_ids: Iterable[str]) -> list[Workspace]:
    return await Workspace.filter(id__in=list(workspace_ids))


def readable(principal: Principal) -> Where:
    """Those that the caller may read."""
    return visible.where(principal.rights, KIND)


def in_readable(principal: Principal) -> Where:
    """Rows of other tables (with a `workspace_id`) whose workspace the caller may read."""
    found = visible.where(principal.rights, KIND, "w")
    if not found.sql:
        return found
    sql = f't."workspace_id" IN (SELECT w."id" FROM "workspace" w WHERE {found.sql})'  # noqa: S608  our own words
    return Where(sql, found.values, frozenset({"workspace"}))


def consuming(workspace_id: str) -> Where:
    """Those that may read the state of the workspace from inside their runs."""
    return Where(
        'EXISTS (SELECT 1 FROM "remote_state_consumer" c WHERE c."consumer_id" = t."id" AND c."workspace_id" = $1)',
        (workspace_id,),
    )


def has_name(workspace_id: str, is_name: Callable[[str], str]) -> str:
    """A condition in SQL: the workspace whose id is in a column has a name that `is_name`, a condition on a column, takes."""
    return f"EXISTS (SELECT 1 FROM workspace w WHERE w.id = {workspace_id} AND ({is_name('w.name')}))"  # noqa: S608  our own words


def names_current_state(version_id: str, workspace_id: str) -> str:
    """A condition in SQL: the state version whose id is in a column is the one that the workspace names as current."""
    return f'{version_id} = (SELECT w."current_state_version_id" FROM workspace w WHERE w."id" = {workspace_id})'  # noqa: S608


def has_label(workspace_id: str, key: str, is_value: Callable[[str], str]) -> str:
    """A condition in SQL: the workspace whose id is in a column has the label; `is_value` judges the column of its value."""
    return (
        f"EXISTS (SELECT 1 FROM workspace_label l WHERE l.workspace_id = {workspace_id} AND l.key = {key}"  # noqa: S608  our own words
        f" AND {is_value('l.value')})"
    )


def keeps_run_lock(workspace_id: str, run_id: str) -> str:
    """A condition in SQL: the run has kept the lock of the workspace since its state is unknown; both are columns."""
    return (
        f"EXISTS (SELECT 1 FROM workspace w WHERE w.id = {workspace_id}"  # noqa: S608  our own words
        f" AND w.run_lock_id = {run_id} AND w.run_lock_reason <> '')"
    )


async def tag_keys(principal: Principal, tag_ids: Collection[str]) -> dict[str, str]:
    """The label keys that tags of those ids stand for, by id, of all workspaces that the caller may read."""
    if not tag_ids:
        return {}
    seen = readable(principal)
    found = await database.rows(
        'SELECT DISTINCT l."key" FROM workspace_label l JOIN workspace t ON t."id" = l."workspace_id" '  # noqa: S608  our own words
        f"WHERE {seen.sql or '1 = 1'}",
        seen.values,
    )
    return await asyncio.to_thread(rules.tag_keys, [row[0] for row in found], frozenset(tag_ids))


#: What lists may be sorted by; workspaces without a run come last.
ORDERS = {
    "name": 't."name"',
    "-name": 't."name" DESC',
    "current-run.created-at": 't."current_run_id" IS NULL, t."current_run_id", t."name"',
    "-current-run.created-at": 't."current_run_id" IS NULL, t."current_run_id" DESC, t."name"',
}


def search(query: Mapping[str, str]) -> Where:
    """The workspaces that a list's parameters ask for."""
    found = Where()
    if text := query.get("search[name]"):
        found &= _named(f"%{_escaped(text)}%")
    if wildcard := query.get("search[wildcard-name]"):
        found &= _named(_escaped(wildcard).replace("*", "%"))
    if keys := _words(query.get("search[tags]")):
        found &= _labelled(keys, len(keys))
    if keys := _words(query.get("search[exclude-tags]")):
        excluded = _labelled(keys, 1)
        found &= Where(f"NOT ({excluded.sql})", excluded.values)
    pairs = rules.tagged(query)
    if len(pairs) > access.LABELS_MOST:
        return Where("1 = 0")  # more than any workspace has
    for key, value in pairs:
        found &= _labelled([key], 1, value)
    return found


def _named(pattern: str) -> Where:
    return Where("lower(t.\"name\") LIKE $1 ESCAPE '!'", (pattern.lower(),))


def _escaped(text: str) -> str:
    return re.sub("[!%_]", r"!\g<0>", text)


def _words(text: str | None) -> list[str]:
    return list(dict.fromkeys(filter(None, (text or "").split(","))))


def _labelled(keys: Sequence[str], least: int, value: str | None = None) -> Where:
    """Workspaces that have at least so many of the labels, and where a value is given with that."""
    marks = ", ".join(f"${number}" for number in range(1, len(keys) + 1))
    valued = "" if value is None else f' AND "value" = ${len(keys) + 1}'
    return Where(
        f't."id" IN (SELECT "workspace_id" FROM workspace_label WHERE "key" IN ({marks}){valued} '  # noqa: S608  our own words
        f'GROUP BY "workspace_id" HAVING count(*) >= {least})',
        (*keys, *(() if value is None else (value,))),
    )


async def create(services: Services, principal: Principal, values: Mapping[str, Any]) -> Workspace:
    """Raises Invalid for a name that is taken, or a pool that may not be used."""
    settled = {"terraform_version": services.config.runs.default_version, **_settled(values)}
    workspace = Workspace(id=ids.make("ws"), owner_id=principal.id, owner_email=principal.name, **settled)
    await _check_pool(services, workspace)
    try:
        async with in_transaction():
            await workspace.save(force_create=True)
            await _write_labels(workspace.id, workspace.labels)
    except IntegrityError:
        raise _taken(workspace.name) from None
    return workspace


async def update(services: Services, workspace: Workspace, values: Mapping[str, Any]) -> Workspace:
    """Changes what is named and nothing else."""
    settled = _settled(values)
    for column, value in settled.items():
        setattr(workspace, column, value)
    if settled.keys() & {"execution_mode", "agent_pool_id"}:
        await _check_pool(services, workspace)
    workspace.updated_at = clock.now()
    try:
        async with in_transaction():
            await workspace.save(update_fields=[*settled, "updated_at"])
            if "labels" in settled:
                await _write_labels(workspace.id, workspace.labels)
    except IntegrityError:
        raise _taken(workspace.name) from None
    return workspace


def with_labels(labels: Mapping[str, str], more: Mapping[str, str | None]) -> dict[str, str]:
    """More labels; one without a value never overwrites one that has one."""
    merged = dict(labels)
    for key, value in more.items():
        if value is not None or key not in merged:
            merged[key] = value or ""
    return merged


async def relabel(workspace: Workspace, change: Callable[[Workspace], dict[str, str]]) -> None:
    """Changes the labels that are there by then: others may change them too. What `change` raises leaves all as it is."""
    async with in_transaction():
        now = await held(workspace.id)
        now.labels, now.updated_at = change(now), clock.now()
        await now.save(update_fields=["labels", "updated_at"])
        await _write_labels(now.id, now.labels)


async def lock(workspace: Workspace, principal: Principal, reason: str, *, is_admin: bool = False) -> Workspace:
    """Raises Conflict where it is locked, by whomever: a lock has no other key than its holder.

    An admin may take the manual lock beside that of a run that is over, to correct the state that it left unknown.
    """
    values = {
        "locked": True,
        "lock_reason": reason[:1024],
        "locked_by_id": principal.id,
        "locked_by_name": principal.name,
        "locked_at": clock.now(),
    }
    is_free = Q(run_lock_id=None) | ~Q(run_lock_reason="") if is_admin else Q(run_lock_id=None)
    if not await Workspace.filter(is_free, id=workspace.id, locked=False).update(**values):
        raise locked(await get(workspace.id), "lock")
    return await get(workspace.id)


async def unlock(services: Services, workspace: Workspace, principal: Principal, *, force: bool = False) -> Workspace:
    """Raises Conflict for a lock of somebody else (without `force`) or of a run, and where there is none.

    With `force`, the lock that a run has kept since its state is unknown goes first, and alone.
    """
    if force and await services.ask(ports.RUNS).release_lock(services, workspace.id, principal):
        return await get(workspace.id)
    held = Workspace.filter(id=workspace.id, locked=True)
    if not force:
        held = held.filter(locked_by_id=principal.id)
    freed = {"locked": False, "lock_reason": "", "locked_by_id": None, "locked_by_name": "", "locked_at": None}
    if not await held.update(**freed):
        now = await get(workspace.id)
        if not now.locked and not now.run_lock_id:
            message = f"workspace {now.name} is already unlocked"
            raise Conflict(message)
        raise locked(now, "unlock")
    try:
        await services.ask(ports.RUNS).on_workspace_unlocked(services, workspace.id)
    except Exception as error:  # noqa: BLE001  it is unlocked, and a client that is told otherwise would get a 409 for its repeat
        what = f"workspace {workspace.id} is unlocked; to let its runs go"
        database_errors.log_failure(log, what, error, services.config.database)
    return await get(workspace.id)


def locked(workspace: Workspace, verb: str) -> Conflict:
    """Why a lock stands in the way; go-tfe reads `is locked by Run` and `is locked by User`."""
    if workspace.locked:
        return Conflict(f"cannot {verb}: workspace {workspace.name} is locked by User {workspace.locked_by_name}")
    why = f": {workspace.run_lock_reason}" if workspace.run_lock_reason else ""
    return Conflict(f"cannot {verb}: workspace {workspace.name} is locked by Run {workspace.run_lock_id}{why}")


async def free_run_lock(workspace_id: str, run_id: str) -> bool:
    """Lets go of the lock that this run has kept since its state is unknown; whether it did."""
    kept = Workspace.filter(id=workspace_id, run_lock_id=run_id).exclude(run_lock_reason="")
    return bool(await kept.update(run_lock_id=None, run_lock_reason=""))


async def lock_for_run(workspace_id: str, run_id: str) -> None:
    """Gives a run the workspace's lock, unless a run has it already."""
    await Workspace.filter(id=workspace_id, run_lock_id=None).update(run_lock_id=run_id)


async def keep_run_lock(workspace_id: str, run_id: str, reason: str) -> bool:
    """Lets the lock of a run outlive it: the state after its apply is unknown, as the reason says. Whether it had it."""
    return bool(await Workspace.filter(id=workspace_id, run_lock_id=run_id).update(run_lock_reason=reason))


async def end_run_lock(workspace_id: str, run_id: str) -> None:
    """Ends the lock of a run, if it has it."""
    await Workspace.filter(id=workspace_id, run_lock_id=run_id).update(run_lock_id=None)


async def set_current_run(workspace_id: str, run_id: str | None) -> None:
    """Names the run that the workspace shows as `current-run`."""
    await database.query(
        "WITH one AS (SELECT 1) UPDATE workspace SET current_run_id = $1 WHERE id = $2", [run_id, workspace_id]
    )


async def set_current_state(workspace_id: str, version_id: str, resource_count: int) -> None:
    """Names the state version that is current, with the number of its resources."""
    await Workspace.filter(id=workspace_id).update(current_state_version_id=version_id, resource_count=resource_count)


async def set_late_state_count(workspace_id: str, count: int) -> None:
    """Notes how many late states wait for an admin's word."""
    await Workspace.filter(id=workspace_id).update(late_state_count=count)


async def using_pool(pool_id: str) -> Workspace | None:
    """One of the workspaces whose `agent-pool-id` names the pool."""
    return await Workspace.filter(agent_pool_id=pool_id).first()


async def hold_row(workspace_id: str) -> None:
    """Takes the row lock as `held` does, and raises nothing where there is no such workspace any more."""
    if database.is_postgres():  # SQLite runs one transaction at a time
        await database.query("SELECT id FROM workspace WHERE id = $1 FOR UPDATE", [workspace_id])


async def held(workspace_id: str) -> Workspace:
    """The workspace under its row lock: until the transaction ends nobody changes or deletes it. Raises NotFound."""
    locked = " FOR UPDATE" if database.is_postgres() else ""  # SQLite runs one transaction at a time
    found = await READER.one(f't."id" = $1{locked}', workspace_id)
    if found is None:
        raise NotFound
    return found.row


async def delete(services: Services, workspace: Workspace, principal: Principal, *, only_empty: bool = False) -> None:
    """Removes the workspace with all rows about it; its runs end, whatever they wait for.

    Its last state is kept for a while where no API reaches it. `only_empty`
    refuses with Conflict while it is locked or its state has resources. Raises
    Conflict while a run may be changing what the workspace manages.
    """
    topics: set[str] = set()
    async with in_transaction():
        now = await held(workspace.id)
        if only_empty:
            _check_empty(now)
        for ask in services.ask_all(ports.BEFORE_DELETION):
            await ask(now, only_empty)
        for tell in services.ask_all(ports.ON_DELETION):
            topics |= await tell(now.id) or set()
        await WorkspaceLabel.filter(workspace_id=now.id).delete()
        await RemoteStateConsumer.filter(workspace_id=now.id).delete()
        await RemoteStateConsumer.filter(consumer_id=now.id).delete()
        await DeletedWorkspace.create(
            id=now.id,
            name=now.name,
            deleted_by_id=principal.id,
            deleted_by_name=principal.name,
            sweep_at=clock.now(),
        )
        await Workspace.filter(id=now.id).delete()
    log.info("workspace %s (%s) was deleted by %s", now.name, now.id, principal.name)
    try:
        await services.bus.publish(*sorted(topics))
        await services.ask(ports.REMOVE_FILES)(services, now.id)
    except Exception as error:  # noqa: BLE001  it is gone, and a job removes what is left
        what = f"workspace {now.id} is deleted; to remove its files, which is done later,"
        database_errors.log_failure(log, what, error, services.config.database)


def _check_empty(workspace: Workspace) -> None:
    if workspace.locked or workspace.run_lock_id:
        raise locked(workspace, "delete")
    if workspace.resource_count:
        message = f"workspace {workspace.name} still manages {workspace.resource_count} resources"
        raise Conflict(message)


async def change_consumers(workspace_id: str, *, add: Iterable[str] = (), remove: Iterable[str] | None = ()) -> None:
    """`remove` None removes all first: the list is replaced."""
    wanted = list(dict.fromkeys(add))
    async with in_transaction():
        gone = RemoteStateConsumer.filter(workspace_id=workspace_id)
        await (gone if remove is None else gone.filter(consumer_id__in=[*remove, *wanted])).delete()
        await RemoteStateConsumer.bulk_create(
            [RemoteStateConsumer(workspace_id=workspace_id, consumer_id=consumer) for consumer in wanted]
        )


async def shares_state_with(workspace_id: str, consumer_id: str) -> bool:
    """Whether a run of `consumer_id` may read the state of `workspace_id`."""
    if workspace_id == consumer_id:
        return True
    if await Workspace.exists(id=workspace_id, global_remote_state=True):
        return True
    return await RemoteStateConsumer.exists(workspace_id=workspace_id, consumer_id=consumer_id)


def _settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Both spellings of a setting become one column."""
    settled = dict(values)
    if (operations := settled.pop("operations", None)) is not None:
        settled.setdefault("execution_mode", "remote" if operations else "local")
    if (folder := settled.pop("vcs_working_directory", None)) is not None:
        settled.setdefault("working_directory", folder)
    own = settled.pop("setting_overwrites", {})
    if own.get("execution-mode") is False:  # there is no setting above that it could inherit but the first one
        settled.setdefault("execution_mode", "remote")
    if False in (own.get("agent-pool"), own.get("execution-mode")):
        settled.setdefault("agent_pool_id", None)
    return settled


async def _check_pool(services: Services, workspace: Workspace) -> None:
    if workspace.execution_mode == "agent" and not workspace.agent_pool_id:
        message = "execution-mode agent needs an agent-pool-id"
        raise Invalid(message, pointer="/data/attributes/agent-pool-id")
    if workspace.agent_pool_id:
        await services.ask(ports.POOLS).pool_for(workspace)


async def _write_labels(workspace_id: str, labels: Mapping[str, str]) -> None:
    await WorkspaceLabel.filter(workspace_id=workspace_id).delete()
    await WorkspaceLabel.bulk_create(
        [WorkspaceLabel(workspace_id=workspace_id, key=key, value=value) for key, value in labels.items()]
    )


def _taken(name: str) -> Invalid:
    return Invalid(f"the name {name} has already been taken", pointer="/data/attributes/name")
