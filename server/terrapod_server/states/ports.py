"""What state versions ask of rooms above."""

from typing import Protocol

from terrapod_server.kit.ports import Port
from terrapod_server.kit.services import Services


class Runs(Protocol):
    """The runs of the workspaces whose states these are."""

    async def on_state_finalized(self, services: Services, workspace_id: str) -> None:
        """A newer state makes saved plans stale."""
        ...

    async def has_run(self, workspace_id: str, run_id: str) -> bool:
        """Whether the run is of the workspace."""
        ...


RUNS = Port[Runs]("states.ports.RUNS")
