"""What runs ask of rooms above."""

from collections.abc import Mapping
from typing import Any, Protocol

from terrapod_server.kit.caller import Principal
from terrapod_server.kit.ports import Port
from terrapod_server.runs.model import Run
from terrapod_server.workspaces import actions as workspaces


class Pools(Protocol):
    """The pools whose listeners work on runs."""

    async def pool_for(self, workspace: workspaces.Row) -> str:
        """The id of the pool that the workspace's runs go to. Raises Invalid where it may not use it."""
        ...

    async def local_engines(self, pool_id: str) -> tuple[list[tuple[str, str]], bool]:
        """Tool and version of the engines that the pool's listeners announced; whether one of them is there now."""
        ...


class Waits(Protocol):
    """Why runs wait."""

    async def explain(self, run: Run, principal: Principal) -> Mapping[str, Any] | None:
        """Kind, text and since when; None for a run that waits for nothing."""
        ...


POOLS = Port[Pools]("runs.ports.POOLS")
WAITS = Port[Waits]("runs.ports.WAITS")
