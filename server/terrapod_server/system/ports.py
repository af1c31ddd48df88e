"""What the documents about the server ask of whoever has put it together."""

from collections.abc import Mapping
from typing import Any, Protocol

from terrapod_server.kit.api.declare import Route
from terrapod_server.kit.ports import Port


class Declared(Protocol):
    """All that the rooms have declared."""

    @property
    def endpoints(self) -> tuple[Route, ...]: ...

    @property
    def tags(self) -> Mapping[str, tuple[str, str]]:
        """What the endpoints of each room are about."""
        ...

    @property
    def discovery(self) -> Mapping[str, Any]:
        """The services of this host."""
        ...


DECLARED = Port[Declared]("system.ports.DECLARED")
