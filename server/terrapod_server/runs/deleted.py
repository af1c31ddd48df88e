"""What the deletion of a workspace means for its runs, and what of it is removed later.

The rows of runs go with the workspace. A phase that a listener has been given
stays, as `gone` and without a run, until its listener has let go of it: what
the listener asks or sends meanwhile is answered as by a lease that has ended.
Files go at once and once more later, since what was being written when the
workspace went may have come behind that.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta

from terrapod_server.kit.db import database
from terrapod_server.kit.services import Services
from terrapod_server.kit.work import outbox
from terrapod_server.runs import leases, states
from terrapod_server.runs.lease_clock import clock_sql
from terrapod_server.runs.model import Phase, Run
from terrapod_server.states import kept_states
from terrapod_server.store import keys
from terrapod_server.workspaces import actions as workspaces
from terrapod_server.workspaces import deleted as deleted_workspaces
from terrapod_shared import clock, wire
from terrapod_shared.errors import Conflict

log = logging.getLogger(__name__)

#: After this no upload that was under way at the deletion can be open any more.
_LAST = timedelta(minutes=15)
#: How often files are looked for while a listener has not let go.
_AGAIN = timedelta(seconds=10)
_AT_ONCE = 100
#: A server that takes the files of a workspace away keeps the others from it for so long.
_CLAIMED = timedelta(minutes=2)


async def before_workspace_deleted(workspace: workspaces.Row, _only_empty: bool) -> None:
    """Raises Conflict where a run may be changing what the workspace manages; under the workspace's row lock."""
    applying = await Run.filter(workspace_id=workspace.id, status__in=list(states.LOCKING)).order_by("id").first()
    run_id, what = (applying.id, applying.status.value) if applying else (workspace.run_lock_id, "not settled")
    if run_id:
        why = f": {workspace.run_lock_reason}" if workspace.run_lock_reason else ""
        message = f"workspace {workspace.name} is still being processed by run {run_id}, which is {what}{why}"
        raise Conflict(message)


async def on_workspace_deleted(workspace_id: str) -> set[str]:
    """Removes the runs, whatever they wait for; topics that tell the listeners which plan for them."""
    if database.is_postgres():  # a claim that is under way is waited for; later ones pass these rows over
        await database.query(
            "WITH one AS (SELECT id FROM run_phase WHERE workspace_id = $1 FOR UPDATE) SELECT count(*) FROM one",
            [workspace_id],
        )
    told = await database.query(
        f"""
        WITH one AS (SELECT 1)
        UPDATE run_phase SET lease_state = 'gone', lease_until = {clock_sql()} + {wire.LEASE_S}
        WHERE workspace_id = $1 AND lease_state IN ('offered', 'leased') RETURNING lease_listener_id
        """,  # noqa: S608  only our own numbers are put in
        [workspace_id],
    )
    await Phase.filter(workspace_id=workspace_id).exclude(lease_state="gone").delete()
    await _forget_events("workspace_id = $1", [workspace_id])
    await Run.filter(workspace_id=workspace_id).delete()
    return {f"workspace:{workspace_id}", *(leases.lapsed(row["lease_listener_id"]) for row in told)}


async def _forget_events(condition: str, values: Sequence[str] = ()) -> None:
    """Removes events of workspaces that are gone, but for those that an outlet has yet to get."""
    await database.query(
        f"""
        WITH one AS (SELECT 1)
        DELETE FROM run_event WHERE {condition} AND NOT {outbox.waits_for("run_event.id")} RETURNING id
        """,  # noqa: S608  our own words
        values,
    )


async def clear(services: Services, workspace_id: str) -> None:
    """Removes the files of a deleted workspace, but for the states that are kept of it."""
    row = await deleted_workspaces.find(workspace_id)
    if row is None:
        return
    kept = await kept_states.keys_of(workspace_id)
    await _remove(services, keys.workspace(workspace_id), kept)
    now, last = clock.now(), row.deleted_at + _LAST
    following = last if now < last else None
    if await Phase.exists(workspace_id=workspace_id):
        following = now + _AGAIN
    await deleted_workspaces.look_again(workspace_id, following)


async def _remove(services: Services, prefix: str, kept: set[str]) -> None:
    """All below a prefix; what is kept lies in the same folders as what is not."""
    if not kept:
        await services.store.delete_prefix(prefix)
        return
    full = {_folder(prefix, key) for key in kept}
    found = await services.store.keys(prefix)
    for folder in sorted({_folder(prefix, key) for key in found} - full):
        await services.store.delete_prefix(folder)
    for key in found:
        if key not in kept and _folder(prefix, key) in full:
            await services.store.delete(key)


def _folder(prefix: str, key: str) -> str:
    return prefix + key.removeprefix(prefix).partition("/")[0] + "/"


async def sweep(services: Services) -> None:
    """Lets go of phases whose listener has, then of files, then of states that were kept for long enough."""
    await database.query(
        f"""
        WITH one AS (SELECT 1)
        DELETE FROM run_phase WHERE lease_state = 'gone' AND lease_until < {clock_sql()} RETURNING id
        """  # noqa: S608  as above
    )
    for row in await deleted_workspaces.due(_AT_ONCE):
        if await deleted_workspaces.claim(row, clock.now() + _CLAIMED):
            await clear(services, row.id)
    until = clock.now() - timedelta(days=services.config.retention.deleted_days)
    for kept in await kept_states.kept_before(until, _AT_ONCE):
        await services.store.delete(kept.key)
        if not await kept_states.forget(kept.id):
            continue
        log.info(
            "the state of the deleted workspace %s, serial %d, is removed for good", kept.workspace_id, kept.serial
        )
    await _forget_events(deleted_workspaces.gone("workspace_id"))
    left = "deleted_workspace.id"
    await deleted_workspaces.forget(f"{kept_states.none_of(left)} AND {_no_event_of(left)}")


def _no_event_of(column: str) -> str:
    """A condition in SQL: no outlet has yet to get an event of the workspace that an id in `column` names."""
    return f"NOT EXISTS (SELECT 1 FROM run_event e WHERE e.workspace_id = {column})"  # noqa: S608  our own words
