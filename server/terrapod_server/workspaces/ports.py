"""What workspaces ask of rooms above."""

from collections.abc import Iterable
from typing import Protocol

from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db.conditions import Where
from terrapod_server.kit.ports import MultiPort, Port
from terrapod_server.kit.services import Services
from terrapod_server.workspaces.model import Workspace


class Runs(Protocol):
    """The runs of workspaces."""

    async def on_workspace_unlocked(self, services: Services, workspace_id: str) -> None:
        """Lets the runs go that waited for the lock."""
        ...

    async def release_lock(self, services: Services, workspace_id: str, principal: Principal) -> bool:
        """Frees the lock of a run that has left the state unknown; whether there was one."""
        ...

    def run_has_status(self, column: str, statuses: Iterable[str]) -> Where:
        """A condition: the run whose id is in this column has one of the statuses."""
        ...


class Pools(Protocol):
    """The pools that workspaces may use."""

    async def pool_for(self, workspace: Workspace) -> str:
        """The id of the pool that runs go to. Raises Invalid where the workspace may not use it."""
        ...


class BeforeDeletion(Protocol):
    """Asked inside the transaction that deletes a workspace. Raises Conflict where it may not go."""

    async def __call__(self, workspace: Workspace, only_empty: bool, /) -> None: ...


class OnDeletion(Protocol):
    """Removes a room's rows about a workspace, inside the same transaction; gives topics of the bus to wake afterwards."""

    async def __call__(self, workspace_id: str, /) -> set[str] | None: ...


class RemoveFiles(Protocol):
    """Removes the files of a workspace that is gone."""

    async def __call__(self, services: Services, workspace_id: str, /) -> None: ...


RUNS = Port[Runs]("workspaces.ports.RUNS")
POOLS = Port[Pools]("workspaces.ports.POOLS")
BEFORE_DELETION = MultiPort[BeforeDeletion]("workspaces.ports.BEFORE_DELETION")
ON_DELETION = MultiPort[OnDeletion]("workspaces.ports.ON_DELETION")
REMOVE_FILES = Port[RemoveFiles]("workspaces.ports.REMOVE_FILES")
