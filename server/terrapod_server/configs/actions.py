"""The verbs of configuration versions."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeAlias

from terrapod_server.configs import ports
from terrapod_server.configs.model import ConfigurationVersion
from terrapod_server.kit.db.database import in_transaction
from terrapod_server.kit.db.row_cache import Reader
from terrapod_server.kit.services import Services
from terrapod_server.store import keys
from terrapod_server.store.archive import checked
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, ids
from terrapod_shared.errors import Conflict, NotFound, TerrapodError

#: A configuration version as other rooms hold it: they read it.
Row: TypeAlias = ConfigurationVersion
READER = Reader(ConfigurationVersion)


async def get(version_id: str) -> ConfigurationVersion:
    found = await READER.one('t."id" = $1', version_id)
    if found is None:
        raise NotFound
    return found.row


async def by_ids(version_ids: Sequence[str]) -> list[ConfigurationVersion]:
    return await ConfigurationVersion.filter(id__in=list(version_ids))


def status_of(version_id: str) -> str:
    """In SQL: the status of the version that `version_id` names; NULL where there is none."""
    return f"(SELECT c.status FROM configuration_version c WHERE c.id = {version_id})"  # noqa: S608  our own words


async def latest(workspace_id: str) -> ConfigurationVersion | None:
    """The newest that is uploaded and was meant to be applied."""
    return (
        await ConfigurationVersion.filter(
            workspace_id=workspace_id, status="uploaded", speculative=False, provisional=False
        )
        .order_by("-id")
        .first()
    )


async def applied(version_id: str) -> None:
    """A provisional version counts from now on as any other: its run is applied."""
    await ConfigurationVersion.filter(id=version_id, provisional=True).update(provisional=False)


async def create(workspace_id: str, user_id: str, values: Mapping[str, Any]) -> ConfigurationVersion:
    async with in_transaction():
        await workspaces.held(workspace_id)
        return await ConfigurationVersion.create(
            id=ids.make("cv"), workspace_id=workspace_id, created_by_id=user_id, **values
        )


async def upload(services: Services, version_id: str, chunks: AsyncIterator[bytes]) -> ConfigurationVersion:
    """Takes the archive. The same bytes again are no error; others are, once a run uses the first.

    Raises Invalid for what is no archive, Conflict; nothing is kept then. A run
    that was to begin with it and is refused leaves its reason in `error_message`.
    """
    row = await get(version_id)
    if row.status == "archived":
        message = "this configuration version is archived"
        raise Conflict(message)
    key = keys.configuration(row.workspace_id, row.id)
    fresh = f"{key}.{ids.tail()}"
    stored = await services.store.put(fresh, checked(chunks, "configuration"))
    try:
        if row.status == "uploaded":
            if stored.sha256 == row.sha256:
                await services.store.delete(fresh)
                return row
            if await services.ask(ports.RUNS).configuration_in_use(row.id):
                message = "a run uses this configuration version already; make a new one"
                raise Conflict(message)
    except BaseException:
        await services.store.delete(fresh)
        raise
    old = row.stored_key
    changed = await ConfigurationVersion.filter(id=row.id, status=row.status, stored_key=row.stored_key).update(
        status="uploaded",
        size=stored.size,
        sha256=stored.sha256,
        stored_key=fresh,
        error_message="",
        status_timestamps={**row.status_timestamps, "uploaded-at": clock.stamp(clock.now())},
    )
    if not changed:
        await services.store.delete(fresh)
        message = "this configuration version was uploaded by somebody else at the same time"
        raise Conflict(message)
    if old:
        await services.store.delete(old)
    try:
        await services.ask(ports.RUNS).on_configuration_uploaded(services, await get(row.id))
    except TerrapodError as error:  # the upload stands, and says so: a refusal would make its sender send it again
        text = f"the configuration is here, but no run was begun with it: {error.detail}"
        await ConfigurationVersion.filter(id=row.id).update(error_message=text)
    return await get(row.id)


async def archive(services: Services, row: ConfigurationVersion) -> ConfigurationVersion:
    """Removes the bytes of a version that no run uses. Raises Conflict."""
    if await services.ask(ports.RUNS).configuration_in_use(row.id, unfinished=True):
        message = "a run that is not over uses this configuration version"
        raise Conflict(message)
    await ConfigurationVersion.filter(id=row.id).update(status="archived", stored_key="")
    if row.stored_key:
        await services.store.delete(row.stored_key)
    return await get(row.id)


async def delete_for_workspace(workspace_id: str) -> None:
    await ConfigurationVersion.filter(workspace_id=workspace_id).delete()
