"""The last states of workspaces that were deleted, kept for a while where no API reaches them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from terrapod_server.states.model import KeptState


async def keep(**values: Any) -> None:
    """Keeps a state; `values` are the columns of its row."""
    await KeptState.create(**values)


async def keys_of(workspace_id: str) -> set[str]:
    """Where in the store the states lie that are kept of a workspace."""
    return {state.key for state in await KeptState.filter(workspace_id=workspace_id)}


async def kept_before(until: datetime, most: int) -> Sequence[KeptState]:
    """States that were kept before that time."""
    return await KeptState.filter(kept_at__lt=until).limit(most)


async def forget(state_id: str) -> bool:
    """Removes the row of a state whose bytes are gone; whether it was still there."""
    return bool(await KeptState.filter(id=state_id).delete())


def none_of(column: str) -> str:
    """A condition in SQL: nothing is kept of the workspace that an id in `column` names."""
    return f"NOT EXISTS (SELECT 1 FROM kept_state k WHERE k.workspace_id = {column})"  # noqa: S608  our own words
