"""The verbs of state versions. Bytes are stored and checked first; one short transaction then makes them current."""

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from terrapod_server.kit.call import Call, Principal, Services
from terrapod_server.kit.database import in_transaction, is_postgres
from terrapod_server.states import parse, rules
from terrapod_server.states.model import StateOutput, StateVersion
from terrapod_server.store import keys
from terrapod_server.store.port import Stored, gathered, once
from terrapod_server.workspaces import actions as workspaces
from terrapod_server.workspaces.model import Workspace
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, Invalid, NotFound

_AT = "/data/attributes/"
Fence = Callable[[], Awaitable[object]]


async def get(version_id: str) -> StateVersion:
    row = await StateVersion.get_or_none(id=version_id)
    if row is None:
        raise NotFound
    return row


async def by_ids(version_ids: Sequence[str]) -> list[StateVersion]:
    return await StateVersion.filter(id__in=list(version_ids))


async def current(workspace_id: str) -> StateVersion | None:
    """The newest finalized version."""
    return await StateVersion.filter(workspace_id=workspace_id, status="finalized").order_by("-id").first()


def _mark(row: StateVersion | None) -> rules.Mark | None:
    return rules.Mark(row.serial, row.lineage, row.md5) if row else None


def check_lock(workspace: Workspace, principal: Principal) -> None:
    """Raises Conflict where a run locks the workspace, or somebody else does."""
    if workspace.run_lock_id:
        message = f"workspace {workspace.name} is locked by Run {workspace.run_lock_id}"
        raise Conflict(message)
    if workspace.locked and workspace.locked_by_id != principal.id:
        message = f"workspace {workspace.name} is locked by User {workspace.locked_by_name}"
        raise Conflict(message)


async def create(
    services: Services, workspace: Workspace, principal: Principal, values: Mapping[str, Any], *, is_admin: bool
) -> StateVersion:
    """Announces a state, whose bytes come next (or came along, as base64).

    Raises Invalid, and Conflict for a lock in the way or a serial or lineage
    that does not follow. The cloud block cannot send `force`: an admin who
    holds the manual lock has it without.
    """
    check_lock(workspace, principal)
    for name in ("serial", "md5"):
        if name not in values:
            message = f"a state version needs {name}"
            raise Invalid(message, pointer=_AT + name)
    sent = rules.Mark(values["serial"], values.get("lineage") or "", values["md5"].lower())
    holds_lock = workspace.locked and workspace.locked_by_id == principal.id
    force = bool(values.get("force")) or (is_admin and holds_lock)
    newest = await current(workspace.id)
    verdict, reason = rules.judge(_mark(newest), sent, force=force)
    if verdict is rules.Verdict.CONFLICT:
        raise Conflict(reason)
    if verdict is rules.Verdict.REPEAT and newest is not None:
        return newest
    inline = _inline(values.get("state"))
    async with in_transaction():
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
            return await upload(services, row.id, once(inline))
        except BaseException:
            await StateVersion.filter(id=row.id, status="pending").delete()
            raise
    return row


def _inline(text: str | None) -> bytes | None:
    if not text:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        message = "state must be base64"
        raise Invalid(message, pointer=_AT + "state") from None


async def upload(
    services: Services, version_id: str, chunks: AsyncIterator[bytes], fence: Fence | None = None
) -> StateVersion:
    """Takes the bytes of an announced state, and makes it current.

    The same bytes again are no error. Raises Invalid for bytes that are not
    what was announced, and Conflict where a newer state came in between; the
    bytes are not kept then, and may be sent again. `fence` is called inside the
    transaction that makes the state current, and may raise.
    """
    row = await get(version_id)
    if row.status == "discarded":
        message = "this state version was discarded: another one was announced after it"
        raise Conflict(message)
    key = keys.state(row.workspace_id, row.id)
    place = key if row.status == "pending" else f"{key}.again"
    fresh = f"{place}.{ids.tail()}"
    try:
        stored, summary = await _store(services, fresh, chunks)
        _compare(row, stored, summary)
    except BaseException:
        await _forget(services, fresh)
        raise
    if row.status == "finalized":
        await _forget(services, fresh)
        return row
    try:
        return await _finalize(services, row, stored, summary, fresh, fence)
    except BaseException:
        await _forget(services, fresh)
        raise


def _compare(row: StateVersion, stored: Stored, summary: parse.Summary) -> None:
    for name, said, found in (
        ("md5", row.md5, stored.md5),
        ("serial", row.serial, summary.serial),
        ("lineage", row.lineage or summary.lineage, summary.lineage),
    ):
        if said != found:
            message = f"the bytes have the {name} {found}, and {said} was announced"
            raise Invalid(message)


async def _store(services: Services, key: str, chunks: AsyncIterator[bytes]) -> tuple[Stored, parse.Summary]:
    """Stores and reads at once: each chunk goes to the store and to the parser's thread."""
    pipe = parse.Pipe()
    loop = asyncio.get_running_loop()
    parsing = loop.run_in_executor(None, _parse, pipe)

    async def forked() -> AsyncIterator[bytes]:
        try:
            async for chunk in gathered(chunks):
                await asyncio.to_thread(pipe.put, chunk)
                yield chunk
        finally:
            await asyncio.shield(asyncio.to_thread(pipe.close))

    try:
        stored = await services.store.put(key, forked())
    except BaseException:
        await asyncio.to_thread(pipe.close)
        with contextlib.suppress(Exception):
            await asyncio.shield(parsing)
        raise
    if stored.size == 0:
        await asyncio.to_thread(pipe.close)
    summary = await parsing
    if isinstance(summary, parse.Unreadable):
        raise Invalid(str(summary))
    return stored, summary


def _parse(pipe: parse.Pipe) -> parse.Summary | parse.Unreadable:
    try:
        return parse.summarise(pipe)
    except parse.Unreadable as error:
        return error
    finally:
        pipe.drain()


async def _finalize(
    services: Services, row: StateVersion, stored: Stored, summary: parse.Summary, key: str, fence: Fence | None
) -> StateVersion:
    """Compares once more with what is current now, and makes it current, under the workspace's row lock."""
    outputs = [_output(services, row, output) for output in summary.outputs]
    async with in_transaction() as connection:
        if is_postgres():  # SQLite runs one transaction at a time
            await connection.execute_query_dict("SELECT id FROM workspace WHERE id = $1 FOR UPDATE", [row.workspace_id])
        if fence is not None:
            await fence()
        newest = await current(row.workspace_id)
        verdict, reason = rules.judge(_mark(newest), rules.Mark(row.serial, row.lineage, row.md5), force=row.forced)
        if verdict is rules.Verdict.CONFLICT:
            raise Conflict(reason)
        changed = await StateVersion.filter(id=row.id, status="pending").update(
            status="finalized",
            key=key,
            size=stored.size,
            sha256=stored.sha256,
            lineage=row.lineage or summary.lineage,
            terraform_version=summary.terraform_version[:40],
            resources=summary.resources,
            modules=summary.modules,
            providers=summary.providers,
            resource_count=summary.resource_count,
            finalized_at=clock.now(),
        )
        if not changed:
            message = "this state version is no longer waiting for its bytes"
            raise Conflict(message)
        await StateOutput.bulk_create(outputs)
        await StateVersion.filter(workspace_id=row.workspace_id, status="pending", id__lt=row.id).update(
            status="discarded"
        )
        await Workspace.filter(id=row.workspace_id).update(
            current_state_version_id=row.id, resource_count=summary.resource_count
        )
    await services.on_state_finalized(services, row.workspace_id)
    return await get(row.id)


def _output(services: Services, row: StateVersion, output: parse.Output) -> StateOutput:
    identity = ids.make("wsout")
    return StateOutput(
        id=identity,
        state_version_id=row.id,
        workspace_id=row.workspace_id,
        name=output.name,
        type=parse.type_name(output.type, output.value),
        detailed_type=[output.type],
        sensitive=output.sensitive,
        value=services.cipher.seal(parse.encoded(output.value), f"output {identity}"),
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
    sent = rules.Mark(serial, lineage, md5)
    verdict, reason = rules.judge(_mark(newest), sent)
    if verdict is rules.Verdict.CONFLICT:
        raise Conflict(reason)
    if verdict is rules.Verdict.REPEAT and newest is not None:
        async for _ in chunks:
            pass
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
        return await upload(services, row.id, chunks, fence)
    except BaseException:
        await asyncio.shield(StateVersion.filter(id=row.id, status="pending").delete())
        raise


async def upload_json(services: Services, version_id: str, chunks: AsyncIterator[bytes]) -> None:
    """Takes terraform's external form of the same state."""
    row = await get(version_id)
    await services.store.put(keys.json_state(row.workspace_id, row.id), chunks)
    await StateVersion.filter(id=row.id).update(has_json=True)


def opened(services: Services, rows: Sequence[StateOutput], *, sensitive: bool) -> Sequence[StateOutput]:
    """The rows with their values; those of sensitive ones only where asked for."""
    for row in rows:
        if sensitive or not row.sensitive:
            row.shown = json.loads(services.cipher.unseal(row.value, f"output {row.id}"))
    return rows


async def outputs_by_ids(output_ids_: Sequence[str]) -> list[StateOutput]:
    return await StateOutput.filter(id__in=list(output_ids_))


async def show_outputs(rows: Sequence[StateOutput], call: Call) -> None:
    """Opens what lists may show."""
    opened(call.services, [row for row in rows if row.shown is None], sensitive=False)


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


async def delete_for_workspace(workspace_id: str) -> None:
    await StateOutput.filter(workspace_id=workspace_id).delete()
    await StateVersion.filter(workspace_id=workspace_id).delete()
