"""Tells who waits on behalf of a client that the client has gone."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

#: Where the ASGI state of a connection's requests has it.
_NAME = "terrapod.departure"


class Departure:
    """Of one connection."""

    def __init__(self) -> None:
        self._told: set[Callable[[], None]] = set()

    @property
    def state(self) -> dict[str, Any]:
        """The ASGI state by which `of` finds it."""
        return {_NAME: self}

    @contextlib.contextmanager
    def tells(self, tell: Callable[[], None]) -> Iterator[None]:
        """Inside the block `tell` is called once when the client goes; it may not wait."""
        self._told.add(tell)
        try:
            yield
        finally:
            self._told.discard(tell)

    def happen(self) -> None:
        for tell in list(self._told):
            tell()


def of(scope: Any) -> Departure:
    """That of a request's connection; one that never happens where the server knows none."""
    found = scope.get("state", {}).get(_NAME)
    return found if isinstance(found, Departure) else Departure()
