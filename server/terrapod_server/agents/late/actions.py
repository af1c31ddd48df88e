"""States that came after their lease: kept aside, and adopted or dropped by an admin.

Each step is one transaction under the workspace's row lock. A state is adopted
by the path of all states (`states.actions`): its bytes are stored and read
once more, and what may follow what is compared where it becomes current.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from terrapod_server.agents.model import LateState, Listener
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db import database_errors
from terrapod_server.kit.services import Services
from terrapod_server.runs import actions as runs
from terrapod_server.runs import change as changes
from terrapod_server.runs.change import Change
from terrapod_server.runs.events import Event
from terrapod_server.states import actions as states
from terrapod_server.states import kept_states
from terrapod_server.store import keys
from terrapod_server.workspaces import actions as workspaces
from terrapod_server.workspaces.ports import RUNS
from terrapod_shared import ids
from terrapod_shared.errors import Conflict, Invalid, NotFound

log = logging.getLogger(__name__)
WAITING = "waiting"


async def get(late_id: str) -> LateState:
    """Raises NotFound."""
    row = await LateState.get_or_none(id=late_id)
    if row is None:
        raise NotFound
    return row


async def waiting_count() -> int:
    """How many late states wait for an admin's word."""
    return await LateState.filter(status=WAITING).count()


async def by_ids(late_ids: Sequence[str]) -> list[LateState]:
    return await LateState.filter(id__in=list(late_ids))


async def keep(
    services: Services,
    phase: runs.PhaseRow,
    listener: Listener,
    number: int,
    sent: tuple[int, str, str],
    chunks: AsyncIterator[bytes],
) -> None:
    """Keeps one state for each lease that a listener has held, its newest: a lower serial changes nothing.

    `sent` is serial, lineage and MD5 as they were announced. Raises Conflict
    for another state with the same or a lower serial, Invalid for bytes of
    another digest.
    """
    serial, lineage, md5 = sent
    old = await LateState.get_or_none(run_id=phase.run_id, lease_number=number)
    if old is not None and old.md5 == md5:
        async for _ in chunks:
            pass
        return
    _check_newer(old, serial)
    key = keys.late_state(phase.workspace_id, phase.run_id, number, ids.tail())
    stored = await services.store.put(key, chunks)
    try:
        if stored.md5 != md5:
            message = f"the bytes have the md5 {stored.md5}, and {md5} was announced"
            raise Invalid(message)
        values: dict[str, Any] = {
            "serial": serial, "lineage": lineage, "md5": md5, "key": key, "sha256": stored.sha256, "size": stored.size,
            "listener_id": listener.id, "status": WAITING, "state_version_id": None,
        }  # fmt: skip
        async with Change(services, phase.workspace_id) as change:
            old = await LateState.get_or_none(run_id=phase.run_id, lease_number=number)
            _check_newer(old, serial)
            if old is None:
                await LateState.create(
                    id=ids.make("late"),
                    workspace_id=phase.workspace_id,
                    run_id=phase.run_id,
                    lease_number=number,
                    **values,
                )
            else:
                await LateState.filter(id=old.id).update(**values)
            await _recount(phase.workspace_id)
            text = f"listener {listener.name} sent the state with serial {serial} after its lease: it is kept aside"
            await _note(change, phase.run_id, Event.LATE_STATE, text)
    except BaseException:
        await services.store.delete(key)
        raise
    if old is not None:
        await services.store.delete(old.key)


def _check_newer(old: LateState | None, serial: int) -> None:
    if old is not None and serial <= old.serial:
        message = f"a state of this lease with the serial {old.serial} was kept already"
        raise Conflict(message)


async def adopt(services: Services, late_id: str, principal: Principal, *, confirmed: bool) -> LateState:
    """Makes a late state the current one. `confirmed` allows a serial that is not higher than the current one's.

    Where its run keeps the workspace's lock since the state was unknown, that
    lock goes with it; a manual one stays.

    Raises Conflict where it does not wait any more, while a run is active,
    where somebody else locks the workspace, for another lineage, and for such
    a serial without `confirmed`.
    """
    row = await get(late_id)
    version_id = ids.make("sv")

    async def settle() -> None:
        """Inside the transaction that makes it current, under the workspace's row lock."""
        await _check_idle(row.workspace_id)
        await workspaces.free_run_lock(row.workspace_id, row.run_id)
        current = await states.current(row.workspace_id)
        is_there = current is not None and (current.serial_in_bytes, current.md5) == (row.serial, row.md5)
        if current is not None and row.serial <= current.serial_in_bytes and not (confirmed or is_there):
            message = (
                f"its serial {row.serial} is not higher than that of the current state, {current.serial_in_bytes}: what has "
                "happened since would be forgotten; to adopt it even so, send the attribute confirm-serial"
            )
            raise Conflict(message)
        kept_as = current.id if is_there and current is not None else version_id
        await _settled(row, "adopted", kept_as)
        text = f"{principal.name} adopted the late state with serial {row.serial} as {kept_as}"
        run = await runs.find(row.run_id)
        if run is not None:
            adopted = changes.entry(run, Event.STATE_ADOPTED, user_id=principal.id, description=text)
            await changes.write(services, [adopted])

    check_waits(row)
    await states.adopt(
        services,
        version_id,
        workspace_id=row.workspace_id,
        run_id=row.run_id,
        user_id=principal.id,
        sent=(row.serial, row.lineage, row.md5),
        force=confirmed,
        chunks=services.store.get(row.key),
        fence=settle,
    )
    services.outbox.wake()
    await services.store.delete(row.key)
    try:
        await services.ask(RUNS).on_workspace_unlocked(services, row.workspace_id)
    except Exception as error:  # noqa: BLE001  it is adopted, and whoever is told otherwise would get a 409 for the repeat
        what = f"late state {row.id} is adopted; to let the runs of its workspace go"
        database_errors.log_failure(log, what, error, services.config.database)
    await services.bus.publish(f"workspace:{row.workspace_id}")
    return await get(late_id)


async def drop(services: Services, late_id: str, principal: Principal) -> LateState:
    """Throws a late state away. Raises Conflict where it does not wait any more."""
    row = await get(late_id)
    async with Change(services, row.workspace_id) as change:
        await _settled(row, "dropped", None)
        text = f"{principal.name} dropped the late state with serial {row.serial}"
        await _note(change, row.run_id, Event.STATE_DROPPED, text, principal.id)
    await services.store.delete(row.key)
    return await get(late_id)


async def settled(listener_id: str, run_ids: Sequence[str]) -> list[str]:
    """Of these runs those whose leftovers their listener may drop.

    A person has adopted or dropped each late state of it, and there was one; or
    the run is gone with its workspace. Nothing is said of other listeners' runs.
    """
    asked = [run_id for run_id in run_ids if ids.is_valid(run_id, "run")]
    known = await runs.existing(asked)
    rows = await LateState.filter(listener_id=listener_id, run_id__in=list(known)).values("run_id", "status")
    waiting = {row["run_id"] for row in rows if row["status"] == WAITING}
    over = {row["run_id"] for row in rows} - waiting
    return [run_id for run_id in asked if run_id in over or run_id not in known]


async def delete_for_workspace(workspace_id: str) -> None:
    """States that came late and wait for an admin are kept as the last one is: one of them may be newer."""
    for late in await LateState.filter(workspace_id=workspace_id, status=WAITING):
        await kept_states.keep(
            id=late.id, workspace_id=workspace_id, serial=late.serial, lineage=late.lineage, md5=late.md5,
            sha256=late.sha256, key=late.key, size=late.size, is_late=True,
        )  # fmt: skip
    await LateState.filter(workspace_id=workspace_id).delete()


def check_waits(row: LateState) -> None:
    """Raises Conflict where somebody has settled it."""
    if row.status != WAITING:
        message = f"this late state was {row.status} already"
        raise Conflict(message)


async def _settled(row: LateState, status: str, version_id: str | None) -> None:
    """Of two who settle it one does: the UPDATE names what was read. Raises Conflict for the other."""
    found = LateState.filter(id=row.id, status=WAITING, key=row.key)
    if not await found.update(status=status, state_version_id=version_id):
        now = await LateState.get_or_none(id=row.id)
        word = "replaced by a newer one" if now is None or now.status == WAITING else f"{now.status} already"
        message = f"this late state was {word}"
        raise Conflict(message)
    await _recount(row.workspace_id)


async def _recount(workspace_id: str) -> None:
    count = await LateState.filter(workspace_id=workspace_id, status=WAITING).count()
    await workspaces.set_late_state_count(workspace_id, count)


async def _check_idle(workspace_id: str) -> None:
    """Raises Conflict while a run of the workspace is active."""
    active = await runs.active(workspace_id)
    if active is not None:
        message = f"run {active.id} is active ({active.status.value}): a state can be adopted when it is over"
        raise Conflict(message)


async def _note(change: Change, run_id: str, event: Event, text: str, user_id: str = "") -> None:
    run = await runs.find(run_id)
    if run is not None:
        change.note(run, event, user_id=user_id, description=text)
    change.wake(f"workspace:{change.workspace.id}")
