"""Ports: what a room asks of rooms above it, which it cannot import.

The lower room says what it asks, as a `Protocol`, and names a `Port` of it
(`configs/ports.py`). A higher room provides it in its `ROOM`:

    RUNS = Port[Runs]("configs.RUNS")                       # configs/ports.py
    Room("runs", provides=(ports.RUNS.by(actions),), ...)   # runs/room.py; a module is a provider too
    await services.ask(ports.RUNS).configuration_in_use(version_id)

A port has one provider, and the start fails where it has none or two. A
`MultiPort` has any number: all of them are asked, those of higher rooms first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

P = TypeVar("P")


class _Named(Generic[P]):
    def __init__(self, name: str) -> None:
        self.name = name  #: where it is declared, for messages

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def by(self, provider: P) -> "Provision":
        """This object, or this module, provides the port."""
        return Provision(self, provider)


class Port(_Named[P]):
    """Something that exactly one room provides."""


class MultiPort(_Named[P]):
    """Something that any number of rooms provide."""


@dataclass(frozen=True)
class Provision:
    """That a room provides a port."""

    port: _Named[Any]
    provider: Any


class Providers:
    """All ports of a server with who provides them."""

    def __init__(self, provisions: Iterable[Provision] = ()) -> None:
        self._by_port: dict[_Named[Any], tuple[Any, ...]] = {}
        for each in provisions:
            self._by_port[each.port] = (*self._by_port.get(each.port, ()), each.provider)

    def ask(self, port: Port[P]) -> P:
        """Raises LookupError for a port without a provider, of which the start makes sure that there is none."""
        found: tuple[P, ...] = self._by_port.get(port, ())
        if len(found) != 1:
            raise LookupError(f"{port.name} has {len(found)} providers")
        return found[0]

    def ask_all(self, port: MultiPort[P]) -> Sequence[P]:
        return self._by_port.get(port, ())

    def replace(self, port: _Named[P], *providers: P) -> None:
        """For tests: these provide the port from now on."""
        self._by_port[port] = providers


def check(needs: Iterable[tuple[str, _Named[Any]]], provisions: Iterable[tuple[str, Provision]]) -> list[str]:
    """What keeps the ports of rooms from fitting together. Both come with the name of the room that says so."""
    by: dict[_Named[Any], list[str]] = {}
    for room, provision in provisions:
        by.setdefault(provision.port, []).append(room)
    problems = [
        f"room {room} needs {port.name}, which no room provides"
        for room, port in needs
        if isinstance(port, Port) and port not in by
    ]
    problems += [
        f"{port.name} is provided by {len(rooms)} rooms: {', '.join(rooms)}"
        for port, rooms in by.items()
        if isinstance(port, Port) and len(rooms) > 1
    ]
    return problems
