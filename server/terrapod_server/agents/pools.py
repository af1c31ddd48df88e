"""The verbs of pools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from tortoise.exceptions import IntegrityError

from terrapod_server.access import visible
from terrapod_server.agents import accepting
from terrapod_server.agents.model import JoinToken, Listener, Pool, PoolExcluded, PoolLabel, PoolWorkspace
from terrapod_server.agents.rules import GRACE, ONLINE
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db.database import in_transaction, rows
from terrapod_server.kit.db.row_cache import Reader
from terrapod_server.runs import leases
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, Invalid, NotFound

DEFAULT_POOL = "default"
READER = Reader(Pool)
KIND = visible.Kind("agent_pool_label", "pool_id")


async def ensure_default_pool() -> None:
    if not await Pool.exists(name=DEFAULT_POOL):
        try:
            await Pool.create(id=ids.make("apool"), name=DEFAULT_POOL)
        except IntegrityError:
            return  # another server process made it


async def get(pool_id: str) -> Pool:
    row = await Pool.get_or_none(id=pool_id)
    if row is None:
        raise NotFound
    return row


async def names(most: int) -> dict[str, str]:
    """The names of the oldest pools, by id."""
    return {row["id"]: str(row["name"]) for row in await Pool.all().order_by("id").limit(most).values("id", "name")}


async def by_ids(pool_ids: Sequence[str]) -> list[Pool]:
    return await Pool.filter(id__in=list(pool_ids))


@dataclass(frozen=True)
class Openness:
    """Ids of the workspaces that may use a pool which is not open to all, and of those that may not; None: as it is."""

    allowed: Sequence[str] | None = None
    excluded: Sequence[str] | None = None


async def create(principal: Principal, values: Mapping[str, Any], to: Openness) -> Pool:
    if not values.get("name"):
        message = "a pool needs a name"
        raise Invalid(message, pointer="/data/attributes/name")
    try:
        async with in_transaction():
            row = await Pool.create(id=ids.make("apool"), owner_id=principal.id, **values)
            await _write_labels(row)
            await _open(row.id, to)
    except IntegrityError:
        raise _taken(values["name"]) from None
    return row


async def update(row: Pool, values: Mapping[str, Any], to: Openness) -> Pool:
    if row.name == DEFAULT_POOL and values.get("name", DEFAULT_POOL) != DEFAULT_POOL:
        message = "the pool default keeps its name: workspaces with execution-mode remote use it"
        raise Invalid(message, pointer="/data/attributes/name")
    for column, value in values.items():
        setattr(row, column, value)
    try:
        async with in_transaction():
            await row.save()
            await _write_labels(row)
            await _open(row.id, to)
    except IntegrityError:
        raise _taken(row.name) from None
    return row


async def _write_labels(row: Pool) -> None:
    await PoolLabel.filter(pool_id=row.id).delete()
    await PoolLabel.bulk_create([PoolLabel(pool_id=row.id, key=key, value=value) for key, value in row.labels.items()])


async def _open(pool_id: str, to: Openness) -> None:
    listed: tuple[tuple[Any, Sequence[str] | None], ...] = ((PoolWorkspace, to.allowed), (PoolExcluded, to.excluded))
    for model, wanted in listed:
        if wanted is not None:
            await model.filter(pool_id=pool_id).delete()
            await model.bulk_create([model(pool_id=pool_id, workspace_id=each) for each in dict.fromkeys(wanted)])


async def delete(row: Pool) -> None:
    """Raises Conflict while something uses it."""
    if row.name == DEFAULT_POOL:
        message = "the pool default cannot be deleted: workspaces with execution-mode remote use it"
        raise Conflict(message)
    used = await workspaces.using_pool(row.id)
    if used is not None:
        message = f"workspace {used.name} uses pool {row.name}"
        raise Conflict(message)
    if await leases.has_work(row.id):
        message = f"pool {row.name} has work that is not over"
        raise Conflict(message)
    async with in_transaction():
        await PoolWorkspace.filter(pool_id=row.id).delete()
        await PoolExcluded.filter(pool_id=row.id).delete()
        await PoolLabel.filter(pool_id=row.id).delete()
        await JoinToken.filter(pool_id=row.id).delete()
        await Listener.filter(pool_id=row.id).delete()
        await row.delete()


async def pool_for(workspace: workspaces.Row) -> str:
    """The pool that runs of the workspace go to. Raises Invalid where the workspace may not use it."""
    is_own = workspace.agent_pool_id is not None and workspace.execution_mode == "agent"
    column, value = ("id", workspace.agent_pool_id) if is_own else ("name", DEFAULT_POOL)
    is_open = accepting.open_to("a", "$2")
    found = await rows(
        f"SELECT a.id, a.name, {is_open} FROM agent_pool a WHERE a.{column} = $1",  # noqa: S608  our own words
        [value, workspace.id],
    )
    pointer = "/data/attributes/agent-pool-id"
    if not found:
        raise Invalid(f"there is no pool {value}", pointer=pointer)
    pool_id, name, may_use = found[0]
    if not may_use:
        raise Invalid(f"pool {name} is not open to workspace {workspace.name}", pointer=pointer)
    return str(pool_id)


async def local_engines(pool_id: str) -> tuple[list[tuple[str, str]], bool]:
    """Tool and version of the engines that the pool's listeners announced; whether one of the listeners is there now.

    A listener that is offline comes back with what it had, as long as its certificate lets it.
    """
    now = clock.now()
    announced = await rows(
        """
        SELECT local_engines, max(CASE WHEN last_seen_at > $3 THEN 1 ELSE 0 END) FROM listener
        WHERE pool_id = $1 AND revoked_at IS NULL AND certificate_until > $2 GROUP BY local_engines
        """,
        [pool_id, now - GRACE, now - ONLINE],
    )
    found = {(entry["tool"], entry["version"]) for text, _ in announced for entry in msgspec.json.decode(text)}
    return sorted(found), any(is_there for _, is_there in announced)


async def delete_for_workspace(workspace_id: str) -> None:
    """A workspace that is gone is named by no pool."""
    await PoolWorkspace.filter(workspace_id=workspace_id).delete()
    await PoolExcluded.filter(workspace_id=workspace_id).delete()


def _taken(name: str) -> Invalid:
    return Invalid(f"there is a pool {name} already", pointer="/data/attributes/name")
