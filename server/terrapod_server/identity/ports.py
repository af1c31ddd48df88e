"""What identity asks of rooms above."""

from typing import Protocol

from terrapod_server.kit.ports import Port


class Leases(Protocol):
    """Who knows which leases there are: a run's token ends with its lease."""

    async def lease_is_live(self, run_id: str, kind: str, number: int) -> bool: ...


LEASES = Port[Leases]("identity.ports.LEASES")
