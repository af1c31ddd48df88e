"""What configuration versions ask of rooms above."""

from typing import Protocol

from terrapod_server.configs.model import ConfigurationVersion
from terrapod_server.kit.ports import Port
from terrapod_server.kit.services import Services


class Runs(Protocol):
    """The runs that use configuration versions."""

    async def on_configuration_uploaded(self, services: Services, version: ConfigurationVersion) -> None:
        """Lets the runs go that waited for the bytes; makes one where the version asks for it."""
        ...

    async def configuration_in_use(self, version_id: str, *, unfinished: bool = False) -> bool:
        """Whether a run uses it; `unfinished`: one that is not over."""
        ...


RUNS = Port[Runs]("configs.ports.RUNS")
