"""The verbs of state versions. Bytes are stored and checked first; one short transaction then makes them current."""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db.database import in_transaction
from terrapod_server.kit.db.row_cache import Reader, Record
from terrapod_server.kit.services import Services
from terrapod_server.states import intake, kept_states, parse, ports, rules
from terrapod_server.states.model import StateOutput, StateVersion
from terrapod_server.store import keys
from terrapod_server.store.port import Stored
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, Invalid, NotFound

log = logging.getLogger(__name__)

_AT = "/data/attributes/"
_MD5 = re.compile(r"[0-9a-f]{32}")
_RUN = re.compile(r"run-[a-z0-9]{1,36}")
#: What is becoming current goes on when its caller is cancelled; the loop itself keeps no task.
_settling: set[asyncio.Task[StateVersion]] = set()
READER = Reader(StateVersion)
#: A state version as other rooms hold it: they read it.
Row: TypeAlias = StateVersion
Fence = Callable[[], Awaitable[object]]


async def get(version_id: str) -> StateVersion:
    row = await StateVersion.get_or_none(id=version_id)
    if row is None:
        raise NotFound
    return row


async def by_ids(version_ids: Sequence[str]) -> list[StateVersion]:
    return await StateVersion.filter(id__in=list(version_ids))


async def read_current(workspace_id: str) -> Record[StateVersion] | None:
    """The workspace's current version, to be shown.

    It is the one that the workspace names, as it was written under its row
    lock: ids are in the order of clocks, which servers do not have in common.
    """
    return await READER.one(workspaces.names_current_state('t."id"', "$1"), workspace_id)


async def current(workspace_id: str) -> StateVersion | None:
    """The same as the model's object."""
    found = await read_current(workspace_id)
    return found.row if found else None


def _mark(row: StateVersion | None, *, of_bytes: bool = False) -> rules.Mark | None:
    """The version as it was announced, or (`of_bytes`) as its bytes say: what a run sends is judged by that."""
    if row is None:
        return None
    lineage = row.lineage_in_bytes
    if of_bytes:
        return rules.Mark(row.serial_in_bytes, lineage, row.md5, lineage)
    return rules.Mark(row.serial, row.lineage, row.md5, lineage)


def check_lock(workspace: workspaces.Row, user_id: str) -> None:
    """Raises Conflict where a run locks the workspace, or somebody else than this user does.

    Beside a run that has left the state unknown, the holder of the manual lock may correct it.
    """
    is_repaired = bool(workspace.run_lock_reason) and workspace.locked and workspace.locked_by_id == user_id
    if workspace.run_lock_id and not is_repaired:
        message = f"workspace {workspace.name} is locked by Run {workspace.run_lock_id}"
        raise Conflict(message)
    if workspace.locked and workspace.locked_by_id != user_id:
        message = f"workspace {workspace.name} is locked by User {workspace.locked_by_name}"
        raise Conflict(message)


async def create(
    services: Services, workspace: workspaces.Row, principal: Principal, values: Mapping[str, Any], *, is_admin: bool
) -> StateVersion:
    """Announces a state, whose bytes come next (or came along, as base64).

    Raises Invalid, and Conflict for a lock in the way or a serial or lineage
    that does not follow. The cloud block cannot send `force`: an admin who
    holds the manual lock has it without.
    """
    check_lock(workspace, principal.id)
    for name in ("serial", "md5"):
        if name not in values:
            message = f"a state version needs {name}"
            raise Invalid(message, pointer=_AT + name)
    sent = _sent(values["serial"], values.get("lineage") or "", values["md5"].lower())
    await _check_run(services, values.get("run_id"), workspace.id)
    holds_lock = workspace.locked and workspace.locked_by_id == principal.id
    force = bool(values.get("force")) or (is_admin and holds_lock)
    newest = await current(workspace.id)
    verdict, reason = rules.judge(_mark(newest), sent, force=force)
    if verdict is rules.Verdict.CONFLICT:
        raise Conflict(reason)
    if verdict is rules.Verdict.REPEAT and newest is not None:
        return newest
    inline, inline_json = await intake.Inline.of(values, "state"), await intake.Inline.of(values, "json_state")
    async with in_transaction():
        await workspaces.held(workspace.id)
        await StateVersion.filter(workspace_id=workspace.id, status="pending").update(status="discarded")
        row = await StateVersion.create(
            id=ids.make("sv"),
            workspace_id=workspace.id,
            serial=sent.serial,
            lineage=sent.lineage,
            md5=sent.md5,
            forced=force,
            run_id=values.get("run_id"),
            created_by_id=principal.id,
        )
    if inline is not None:
        try:
            row = await upload(services, row.id, inline.chunks())
        except BaseException:
            await StateVersion.filter(id=row.id, status="pending").delete()
            raise
    if inline_json is not None and not row.has_json:
        await upload_json(services, row.id, inline_json.chunks())
        row = await get(row.id)
    return row


async def _check_run(services: Services, run_id: str | None, workspace_id: str) -> None:
    """A state is of a run of its own workspace: whoever reads the state reads the run. Raises Invalid."""
    if run_id and not (_RUN.fullmatch(run_id) and await services.ask(ports.RUNS).has_run(workspace_id, run_id)):
        message = "there is no such run"
        raise Invalid(message, pointer="/data/relationships/run/data")


def _sent(serial: int, lineage: str, md5: str) -> rules.Mark:
    """Raises Invalid for what no database takes."""
    if not 0 <= serial < 1 << 63:
        message = "serial must be a whole number below 2^63"
        raise Invalid(message, pointer=_AT + "serial")
    if "\0" in lineage or len(lineage) > 255:  # noqa: PLR2004  the column's length
        message = "lineage must be text of 255 characters at most"
        raise Invalid(message, pointer=_AT + "lineage")
    if not _MD5.fullmatch(md5):
        message = "md5 must be 32 hexadecimal digits"
        raise Invalid(message, pointer=_AT + "md5")
    return rules.Mark(serial, lineage, md5)


async def upload(
    services: Services, version_id: str, chunks: AsyncIterator[bytes], fence: Fence | None = None
) -> StateVersion:
    """Takes the bytes of an announced state, and makes it current.

    The same bytes again are no error. The bytes may hold another lineage than
    was announced, and a higher serial, as HCP Terraform takes them: what was
    announced is shown. Raises Invalid for another digest and for a serial below
    the announced one (terraform would count from it, and the next state be
    refused), and Conflict where a newer state came in between or the bytes are
    of another lineage than the current ones; the bytes are not kept then, and
    may be sent again. `fence` is called inside the transaction that makes the
    state current, and may raise.
    """
    row = await get(version_id)
    if row.status == "discarded":
        message = "this state version was discarded: another one was announced after it"
        raise Conflict(message)
    return await _take(services, row, chunks, fence)


@dataclass(frozen=True)
class _Arrived:
    """Bytes that lie in the store at `key`, and what was read of them.

    `delivered`: of a listener, who announces what the bytes say.
    """

    key: str
    stored: Stored
    summary: parse.Summary
    outputs: list[StateOutput]
    delivered: bool


async def _take(
    services: Services,
    row: StateVersion,
    chunks: AsyncIterator[bytes],
    fence: Fence | None,
    *,
    delivered: bool = False,
) -> StateVersion:
    fresh = f"{keys.state(row.workspace_id, row.id)}.{ids.tail()}"
    try:
        stored, summary = await intake.store(services, fresh, chunks, row.md5)
        _compare(row, summary, delivered=delivered)
        outputs = await intake.THREADS.run(_outputs, services, row, summary)
    except BaseException:
        await _forget(services, fresh)
        raise
    arrived = _Arrived(fresh, stored, summary, outputs, delivered)
    task = asyncio.create_task(_settle(services, row, arrived, fence))
    _settling.add(task)
    task.add_done_callback(_settled)
    return await asyncio.shield(task)


def _settled(task: asyncio.Task[StateVersion]) -> None:
    _settling.discard(task)
    if not task.cancelled():
        task.exception()  # seen: whoever was cancelled does not ask for it


def _compare(row: StateVersion, summary: parse.Summary, *, delivered: bool) -> None:
    """Raises Invalid for a serial that cannot be."""
    if delivered and row.serial != summary.serial:
        message = f"the bytes have the serial {summary.serial}, and {row.serial} was announced"
        raise Invalid(message)
    if row.serial > summary.serial:
        message = (
            f"the bytes have the serial {summary.serial}, below the {row.serial} that was announced:"
            " terraform counts on from the bytes, and its next state would be refused"
        )
        raise Invalid(message)


async def _settle(services: Services, row: StateVersion, arrived: _Arrived, fence: Fence | None) -> StateVersion:
    """Makes the stored bytes current, or removes them; never both, whatever comes in between.

    A commit whose answer was lost may have happened: the row is asked, and
    where it cannot be, the bytes stay.
    """
    key = arrived.key
    try:
        kept = await _finalize(row, arrived, fence)
    except BaseException:
        if not await StateVersion.filter(id=row.id, key=key).exists():
            await _forget(services, key)
        raise
    if kept.key != key:
        await _forget(services, key)
        return kept
    if kept.replaced:
        log.warning(
            "state %s of workspace %s, serial %s, was forced by %s in place of %s",
            kept.id, kept.workspace_id, kept.serial, kept.created_by_id, kept.replaced,
        )  # fmt: skip
    await services.ask(ports.RUNS).on_state_finalized(services, row.workspace_id)
    return kept


async def _finalize(row: StateVersion, arrived: _Arrived, fence: Fence | None) -> StateVersion:
    """The version that is current with these bytes: this one, unless they came before.

    Everything is compared once more under the workspace's row lock.
    """
    async with in_transaction():
        await workspaces.hold_row(row.workspace_id)
        if fence is not None:
            await fence()
        now = await get(row.id)
        if now.status == "finalized":
            return now
        if row.created_by_id:
            check_lock(await workspaces.get(row.workspace_id), row.created_by_id)
        newest = await current(row.workspace_id)
        verdict, reason = _judge(newest, row, arrived)
        if verdict is rules.Verdict.REPEAT and newest is not None:
            return newest
        if verdict is rules.Verdict.CONFLICT:
            raise Conflict(reason)
        await _make_current(row, arrived, newest)
        return await get(row.id)


def _judge(newest: StateVersion | None, row: StateVersion, arrived: _Arrived) -> tuple[rules.Verdict, str]:
    """By what was announced and by the lineages in the bytes; what a listener sent by its bytes alone."""
    summary, delivered = arrived.summary, arrived.delivered
    before = _mark(newest, of_bytes=delivered)
    lineage = summary.lineage if delivered else row.lineage
    sent = rules.Mark(row.serial, lineage, row.md5, summary.lineage)
    verdict, reason = rules.judge(before, sent, force=row.forced, grows=_grows(newest, row.run_id))
    if verdict is rules.Verdict.ACCEPT and (delivered or not row.forced):
        reason = rules.foreign(before, summary.lineage)
    return (rules.Verdict.CONFLICT, reason) if reason else (verdict, "")


async def _make_current(row: StateVersion, arrived: _Arrived, newest: StateVersion | None) -> None:
    """Raises Conflict where another one was announced meanwhile."""
    summary = arrived.summary
    waiting = StateVersion.filter(id=row.id, status="pending")
    if not row.created_by_id:  # what a lease delivers counts, whatever a user announces beside it
        waiting = StateVersion.filter(id=row.id, status__not="finalized")
    changed = await waiting.update(
        status="finalized",
        key=arrived.key,
        size=arrived.stored.size,
        sha256=arrived.stored.sha256,
        lineage=summary.lineage if arrived.delivered else row.lineage or summary.lineage,
        bytes_serial=summary.serial,
        bytes_lineage=summary.lineage,
        terraform_version=summary.terraform_version[:40],
        resources=summary.resources,
        modules=summary.modules,
        providers=summary.providers,
        resource_count=summary.resource_count,
        resources_error=(summary.reason or "the state is encrypted" * summary.is_encrypted)[:255] or None,
        replaced=_replaced(newest, row, arrived),
        finalized_at=clock.now(),
    )
    if not changed:
        message = "this state version was discarded: another one was announced after it"
        raise Conflict(message)
    await StateOutput.bulk_create(arrived.outputs)
    await StateVersion.filter(workspace_id=row.workspace_id, status="pending", id__lt=row.id).update(status="discarded")
    await workspaces.set_current_state(row.workspace_id, row.id, summary.resource_count)


def _grows(newest: StateVersion | None, run_id: str | None) -> bool:
    """Whether the current state is an intermediate one of this run."""
    return newest is not None and newest.intermediate and bool(run_id) and newest.run_id == run_id


def _replaced(newest: StateVersion | None, row: StateVersion, arrived: _Arrived) -> dict[str, Any] | None:
    """What it took the place of by force."""
    if newest is None or not row.forced:
        return None
    before = _mark(newest, of_bytes=arrived.delivered)
    sent = rules.Mark(row.serial, row.lineage, row.md5)
    if rules.judge(before, sent)[0] is not rules.Verdict.CONFLICT and not rules.foreign(
        before, arrived.summary.lineage
    ):
        return None
    return {"id": newest.id, "serial": newest.serial, "lineage": newest.lineage, "md5": newest.md5}


def _outputs(services: Services, row: StateVersion, summary: parse.Summary) -> list[StateOutput]:
    return [_output(services, row, output) for output in summary.outputs]


def _output(services: Services, row: StateVersion, output: parse.Output) -> StateOutput:
    identity = ids.make("wsout")
    return StateOutput(
        id=identity,
        state_version_id=row.id,
        workspace_id=row.workspace_id,
        name=output.name,
        type=parse.type_name(output.type, output.value),
        detailed_type=[output.type if output.kept else None],
        sensitive=output.sensitive,
        value=services.cipher.seal(output.value, f"output {identity}"),
    )


async def _forget(services: Services, key: str) -> None:
    await asyncio.shield(services.store.delete(key))


async def accept_from_run(
    services: Services,
    *,
    workspace_id: str,
    run_id: str,
    serial: int,
    lineage: str,
    md5: str,
    chunks: AsyncIterator[bytes],
    intermediate: bool = False,
    fence: Fence | None = None,
) -> StateVersion:
    """A state that the listener sends which holds the run's lease; `fence` checks the lease where it counts.

    A repeat is no error. Raises Invalid and Conflict as an upload does.
    """
    newest = await current(workspace_id)
    _sent(serial, lineage, md5)
    sent = rules.Mark(serial, "", md5)  # the lineage that counts is that of the bytes
    verdict, reason = rules.judge(_mark(newest, of_bytes=True), sent, grows=_grows(newest, run_id))
    if verdict is rules.Verdict.CONFLICT:
        raise Conflict(reason)
    if verdict is rules.Verdict.REPEAT and newest is not None:
        async for _ in chunks:
            pass
        if newest.run_id == run_id and not intermediate:
            await StateVersion.filter(id=newest.id).update(intermediate=False)
        return newest
    row = await StateVersion.create(
        id=ids.make("sv"),
        workspace_id=workspace_id,
        serial=serial,
        lineage=lineage,
        md5=md5,
        run_id=run_id,
        intermediate=intermediate,
    )
    try:
        return await _take(services, row, chunks, fence, delivered=True)
    finally:  # where it did not become current, or another with the same bytes did
        await asyncio.shield(_drop(row.id))


async def adopt(
    services: Services,
    version_id: str,
    *,
    workspace_id: str,
    run_id: str,
    user_id: str,
    sent: tuple[int, str, str],
    force: bool,
    chunks: AsyncIterator[bytes],
    fence: Fence,
) -> StateVersion:
    """Makes bytes that are kept already (`sent` is their serial, lineage and MD5) the current state, as `version_id`.

    `fence` is called inside the transaction that makes it current, under the
    workspace's row lock, and may raise. Raises Invalid where the bytes are not
    that, and Conflict as an upload does.
    """
    mark = _sent(*sent)
    row = await StateVersion.create(
        id=version_id,
        workspace_id=workspace_id,
        serial=mark.serial,
        lineage=mark.lineage,
        md5=mark.md5,
        forced=force,
        run_id=run_id,
        created_by_id=user_id,
    )
    try:
        return await _take(services, row, chunks, fence, delivered=True)
    finally:
        await asyncio.shield(_drop(row.id))


async def _drop(version_id: str) -> None:
    """Removes a version that nobody waits for."""
    await StateVersion.filter(id=version_id, status__not="finalized").delete()


async def upload_json(services: Services, version_id: str, chunks: AsyncIterator[bytes]) -> None:
    """Takes terraform's external form of the same state, once; the same bytes again are no error.

    Raises Conflict for other bytes, and for a version that was discarded.
    """
    row = await get(version_id)
    key = keys.json_state(row.workspace_id, row.id)
    if row.has_json:
        if await _sha256(chunks) != await _sha256(services.store.get(key)):
            message = "this state version has its JSON form already, and it is another one"
            raise Conflict(message)
        return
    taken = row.status != "discarded"
    if taken:
        await services.store.put(key, chunks)
        taken = bool(await StateVersion.filter(id=row.id, status__not="discarded").update(has_json=True))
        if not taken:
            await _forget(services, key)
    if not taken:
        message = "this state version was discarded"
        raise Conflict(message)


async def _sha256(chunks: AsyncIterator[bytes]) -> bytes:
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def opened(services: Services, rows: Sequence[StateOutput], *, sensitive: bool) -> Sequence[StateOutput]:
    """The rows with their values; those of sensitive ones only where asked for."""
    for row in rows:
        if sensitive or not row.sensitive:
            row.shown = msgspec.Raw(services.cipher.unseal(row.value, f"output {row.id}"))
    return rows


async def outputs_by_ids(output_ids_: Sequence[str]) -> list[StateOutput]:
    return await StateOutput.filter(id__in=list(output_ids_))


async def show_outputs(rows: Sequence[StateOutput], call: Call) -> None:
    """Opens what lists may show."""
    await asyncio.to_thread(opened, call.services, [row for row in rows if row.shown is None], sensitive=False)


async def outputs(version_id: str) -> list[StateOutput]:
    return await StateOutput.filter(state_version_id=version_id).order_by("name")


async def output_ids(version_ids: Sequence[str]) -> dict[str, list[str]]:
    """The ids of each version's outputs."""
    found: dict[str, list[str]] = {version_id: [] for version_id in version_ids}
    for row in (
        await StateOutput.filter(state_version_id__in=list(version_ids))
        .order_by("name")
        .values("id", "state_version_id")
    ):
        found[row["state_version_id"]].append(row["id"])
    return found


async def may_run_read(principal: Principal, workspace_id: str) -> bool:
    """Whether a run's token may read the state of a workspace: its own, or one that shares."""
    return await workspaces.shares_state_with(workspace_id, principal.workspace_id)


async def before_workspace_deleted(workspace: workspaces.Row, only_empty: bool) -> None:
    """Raises Conflict where the workspace is to go only if its state holds nothing, and nobody can tell."""
    last = await current(workspace.id) if only_empty else None
    if last is not None and last.resources_error:
        message = f"workspace {workspace.name} may manage resources: {last.resources_error}"
        raise Conflict(message)


async def delete_for_workspace(workspace_id: str) -> None:
    """Removes all rows; the current state is kept, for whoever deleted the wrong workspace."""
    last = await current(workspace_id)
    if last is not None:
        await kept_states.keep(
            id=last.id,
            workspace_id=workspace_id,
            serial=last.serial_in_bytes,
            lineage=last.lineage_in_bytes,
            md5=last.md5,
            sha256=last.sha256,
            key=last.key,
            size=last.size,
        )
    await StateOutput.filter(workspace_id=workspace_id).delete()
    await StateVersion.filter(workspace_id=workspace_id).delete()
