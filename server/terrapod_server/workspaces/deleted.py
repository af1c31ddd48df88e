"""What is remembered of workspaces that are gone, until nothing of them is left."""

from datetime import datetime

from terrapod_server.kit.db import database
from terrapod_server.workspaces.model import DeletedWorkspace
from terrapod_shared import clock


async def find(workspace_id: str) -> DeletedWorkspace | None:
    """A workspace that was deleted, while something of it may be left."""
    return await DeletedWorkspace.get_or_none(id=workspace_id)


def gone(column: str) -> str:
    """A condition in SQL: the workspace that an id in `column` names was deleted, and is remembered."""
    return f"{column} IN (SELECT id FROM deleted_workspace)"  # noqa: S608  our own words


async def due(most: int) -> list[DeletedWorkspace]:
    """Those whose files are to be looked for now, the longest due first."""
    return await DeletedWorkspace.filter(sweep_at__lte=clock.now()).order_by("sweep_at").limit(most)


async def claim(row: DeletedWorkspace, until: datetime) -> bool:
    """Keeps other servers from one that is due until then; whether this one got it. It comes back if its server ends."""
    return bool(await DeletedWorkspace.filter(id=row.id, sweep_at=row.sweep_at).update(sweep_at=until))


async def look_again(workspace_id: str, at: datetime | None) -> None:
    """Notes when its files are looked for next; None: never again."""
    await DeletedWorkspace.filter(id=workspace_id).update(sweep_at=at)


async def forget(condition: str) -> None:
    """Forgets those that nobody looks at again and that meet a condition in SQL about `deleted_workspace`."""
    await database.query(
        f"""
        WITH one AS (SELECT 1)
        DELETE FROM deleted_workspace WHERE sweep_at IS NULL AND {condition} RETURNING id
        """  # noqa: S608  our own words
    )
