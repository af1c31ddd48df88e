"""Rooms: what each of them says once, and the whole that is made of all of them.

A room is a folder (`runs`) whose `room.py` exports one `ROOM`. `app.py` lists
the rooms from the floor up, and is the only place that knows them all.
"""

import contextlib
import importlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from terrapod_server.kit import ports
from terrapod_server.kit.api.declare import Endpoint, Extension, Page, Raw, Resource, Route, Thing
from terrapod_server.kit.ports import Provision
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.outbox import FanOut, Outlet
from terrapod_server.kit.work.periodic import Job
from terrapod_server.store.sealed import SealedColumn, SealedObjects
from terrapod_shared.operator_errors import OperatorError

_PARAMETER = re.compile(r"\{\w+\}")


class InvalidComposition(OperatorError):
    """The rooms do not fit together."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a room has. What it does not have is left out."""

    name: str  #: of its folder
    tag: tuple[str, str] | None = None  #: of its endpoints in the OpenAPI document: a name, and what they are about
    models: tuple[str, ...] = ()  #: modules that declare tables, below the folder: `("model",)`
    sealed: tuple[SealedColumn | SealedObjects, ...] = ()  #: what of its tables and objects is encrypted
    resources: tuple[Resource, ...] = ()
    extends: tuple[Extension, ...] = ()  #: what it adds to resources of lower rooms
    endpoints: tuple[Endpoint | Raw, ...] = ()
    pages: tuple[Page, ...] = ()
    things: tuple[Thing, ...] = ()  #: how the things are found whose level its paths are about
    jobs: tuple[Job[Services], ...] = ()
    outlets: tuple[Outlet | FanOut, ...] = ()  #: where events of runs and workspaces go
    discovery: Mapping[str, Any] = field(default_factory=dict)  #: its services in `/.well-known/terraform.json`
    needs: tuple[ports.Port[Any] | ports.MultiPort[Any], ...] = ()  #: what it asks of higher rooms
    provides: tuple[Provision, ...] = ()  #: what it does for lower rooms
    start: Callable[[Services], Awaitable[None]] | None = None  #: awaited once the database is open and migrated
    stop: Callable[[Services], Awaitable[None]] | None = None  #: awaited while the database is still open


def load(names: Iterable[str]) -> tuple["Room", ...]:
    """The rooms in these folders or modules: `runs` is `terrapod_server/runs/room.py`."""
    return tuple(importlib.import_module(f"terrapod_server.{name}.room").ROOM for name in names)


class Composition:
    """All rooms, from the floor up, as one declaration. `check` says what does not fit.

    `own` are ports that no room provides, but whoever makes a server of them.
    """

    def __init__(self, rooms: Sequence[Room], own: tuple[ports.Port[Any], ...] = ()) -> None:
        self.rooms = tuple(rooms)
        self.models = tuple(f"terrapod_server.{room.name}.{each}" for room in rooms for each in room.models)
        self.sealed = tuple(each for room in rooms for each in room.sealed)
        self.things = tuple(each for room in rooms for each in room.things)
        self.jobs = tuple(each for room in rooms for each in room.jobs)
        self.outlets = tuple(each for room in rooms for each in room.outlets)
        self.tags = {room.name: room.tag for room in rooms if room.tag}
        self.discovery = {name: where for room in rooms for name, where in room.discovery.items()}
        self.provides = tuple(each for room in reversed(self.rooms) for each in room.provides)
        self.own = own

    async def start(self, services: Services) -> None:
        """Starts the rooms from the floor up."""
        for room in self.rooms:
            if room.start is not None:
                await room.start(services)

    async def stop(self, services: Services) -> None:
        """Stops the rooms from the top down, each whatever became of the one before."""
        async with contextlib.AsyncExitStack() as ending:
            for room in self.rooms:
                if room.stop is not None:
                    ending.push_async_callback(room.stop, services)

    @cached_property
    def resources(self) -> tuple[Resource, ...]:
        """The resources with all that other rooms have added to them."""
        added: dict[str, list[Extension]] = {}
        for room in self.rooms:
            for each in room.extends:
                added.setdefault(each.of, []).append(each)
        return tuple(_extended(each, added.get(each.type, ())) for room in self.rooms for each in room.resources)

    @cached_property
    def endpoints(self) -> tuple[Route, ...]:
        """The endpoints, which take and give the extended resources."""
        extended = {resource.type: resource for resource in self.resources if resource.extensions}
        return tuple(_with(each, extended) for room in self.rooms for each in (*room.endpoints, *room.pages))

    def check(self) -> list[str]:
        """What does not fit, each as a line."""
        needs = [(room.name, port) for room in self.rooms for port in room.needs if port not in self.own]
        provisions = [(room.name, each) for room in reversed(self.rooms) for each in room.provides]
        return [
            *_twice("room", [room.name for room in self.rooms]),
            *_twice("resource", [each.type for each in self.resources]),
            *_twice("endpoint", [f"{each.method} {_PARAMETER.sub('{}', each.path)}" for each in self.endpoints]),
            *_twice("thing", [each.parameter for each in self.things]),
            *_twice("job", [each.name for each in self.jobs]),
            *_twice("outlet", [each.name for each in self.outlets]),
            *_twice("service", [name for room in self.rooms for name in room.discovery]),
            *self._unknown_resources(),
            *self._extension_problems(),
            *ports.check(needs, provisions),
        ]

    def _unknown_resources(self) -> list[str]:
        known = {resource.type for resource in self.resources}
        return [
            f"{each.method} {each.path} shows {each.resource.type}, which is in the resources of no room"
            for each in self.endpoints
            if isinstance(each, Endpoint) and each.resource is not None and each.resource.type not in known
        ]

    def _extension_problems(self) -> list[str]:
        floor = {each.type: place for place, room in enumerate(self.rooms) for each in room.resources}
        problems = []
        for place, room in enumerate(self.rooms):
            for each in room.extends:
                if each.of not in floor:
                    problems.append(f"room {room.name} extends {each.of}, which no room declares")
                elif floor[each.of] > place:
                    problems.append(
                        f"room {room.name} extends {each.of} of the higher room {self.rooms[floor[each.of]].name}"
                    )
                problems += [
                    f"room {room.name} adds {each.of}.{member.name}, which only the room of {each.of} could let clients write"
                    for member in (*each.attributes, *each.relations)
                    if member.write and floor.get(each.of) != place
                ]
        for resource in self.resources:
            for members in (resource.attributes, resource.relations):
                problems += _twice(f"{resource.type} member", [member.name for member in members])
        return problems


def _extended(resource: Resource, extensions: Sequence[Extension]) -> Resource:
    if not extensions:
        return resource
    return replace(
        resource,
        attributes=(*resource.attributes, *(attr for each in extensions for attr in each.attributes)),
        relations=(*resource.relations, *(relation for each in extensions for relation in each.relations)),
        extensions=tuple(extensions),
    )


def _with(endpoint: Route, extended: Mapping[str, Resource]) -> Route:
    if not isinstance(endpoint, Endpoint):
        return endpoint
    resource = extended.get(endpoint.resource.type) if endpoint.resource else None
    takes = extended.get(endpoint.takes.type) if endpoint.takes else None
    if resource is None and takes is None:
        return endpoint
    return replace(endpoint, resource=resource or endpoint.resource, takes=takes or endpoint.takes)


def _twice(what: str, names: Sequence[str]) -> list[str]:
    return [f"{what} {name} is declared twice" for name in dict.fromkeys(names) if names.count(name) > 1]
