"""Rooms that do not fit together are refused, each fault in one line."""

import sys
from pathlib import Path
from typing import Any, Protocol

import pytest
from starlette.responses import Response

from terrapod_server import app
from terrapod_server.config.load import load
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, Extension, Many, Raw, Resource
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.ports import MultiPort, Port, Providers
from terrapod_server.kit.room import Composition, InvalidComposition, Room


class Greets(Protocol):
    def greet(self) -> str: ...


class Polite:
    def greet(self) -> str:
        return "good day"


GREETS = Port[Greets]("low.ports.GREETS")
EVERYBODY = MultiPort[Greets]("low.ports.EVERYBODY")
THING = Resource("things", attributes=(Attr("name", str, "its name"),))


async def nothing(_call: Call) -> Response:
    return Response()


def low(**more: Any) -> Room:
    return Room(name="low", resources=(THING,), **more)


def high(**more: Any) -> Room:
    return Room(name="high", **more)


def test_the_rooms_of_the_server_fit() -> None:
    assert app.COMPOSITION.check() == []


def test_a_port_has_exactly_one_provider() -> None:
    needy = low(needs=(GREETS, EVERYBODY))
    assert Composition((needy, high(provides=(GREETS.by(Polite()),)))).check() == []
    assert Composition((needy, high())).check() == ["room low needs low.ports.GREETS, which no room provides"]
    twice = Composition(
        (needy, high(provides=(GREETS.by(Polite()),)), Room(name="top", provides=(GREETS.by(Polite()),)))
    )
    assert twice.check() == ["low.ports.GREETS is provided by 2 rooms: top, high"]
    undeclared = Composition((low(), high(provides=(GREETS.by(Polite()),))))
    assert undeclared.check() == [], "what a room provides may be needed by nobody"


def test_who_provides_a_port_is_asked() -> None:
    one, two = Polite(), Polite()
    composition = Composition((low(provides=(EVERYBODY.by(one),)), high(provides=(EVERYBODY.by(two), GREETS.by(one)))))
    providers = Providers(composition.provides)
    assert providers.ask(GREETS) is one
    assert list(providers.ask_all(EVERYBODY)) == [two, one], "higher rooms first"
    with pytest.raises(LookupError, match=r"low\.ports\.GREETS has 0 providers"):
        Providers(()).ask(GREETS)


def test_each_port_of_a_room_is_among_its_needs() -> None:
    """So a port that nobody provides is found at the start, and not by the first request that asks for it."""
    needed = {port for room in app.COMPOSITION.rooms for port in room.needs}
    assert {each.port for each in app.COMPOSITION.provides} | set(app.COMPOSITION.own) == needed
    declared = {
        value
        for name, module in list(sys.modules.items())
        if name.startswith("terrapod_server.")
        for value in vars(module).values()
        if isinstance(value, Port | MultiPort)
    }
    assert declared == needed


def test_what_is_declared_twice_is_refused() -> None:
    assert Composition((low(), Room(name="low"))).check() == ["room low is declared twice"]
    assert Composition((low(), high(resources=(THING,)))).check() == ["resource things is declared twice"]
    two = [Raw("GET", path, nothing, Access.USER) for path in ("/things/{thing}", "/things/{name}")]
    assert Composition((low(endpoints=two[:1]), high(endpoints=two[1:]))).check() == [
        "endpoint GET /things/{} is declared twice"
    ]
    services = Composition((low(discovery={"things.v1": "/"}), high(discovery={"things.v1": "/"})))
    assert services.check() == ["service things.v1 is declared twice"]


def test_an_endpoint_shows_a_resource_of_a_room() -> None:
    shows = Endpoint("GET", "/others", Resource("others"), nothing, Access.USER)
    assert Composition((low(), high(endpoints=(shows,)))).check() == [
        "GET /others shows others, which is in the resources of no room"
    ]
    assert Composition((low(), high(endpoints=(shows,), resources=(Resource("others"),)))).check() == []


def test_a_server_is_not_made_of_rooms_that_do_not_fit(tmp_path: Path) -> None:
    twice = Composition((*app.COMPOSITION.rooms, app.COMPOSITION.rooms[1]), own=app.COMPOSITION.own)
    with pytest.raises(InvalidComposition, match=r"^room encryption is declared twice"):
        app.build(load({}, None, data=str(tmp_path / "data")), twice)
    astray = Room(name="astray", endpoints=(Raw("GET", "/astray/{nobody}", nothing, Level.READ),))
    with pytest.raises(InvalidComposition, match=r"^GET /astray/{nobody}: no thing is declared for nobody$"):
        app.build(
            load({}, None, data=str(tmp_path / "data")),
            Composition((*app.COMPOSITION.rooms, astray), app.COMPOSITION.own),
        )
    assert not (tmp_path / "data").exists(), "nothing was made"


def test_an_extension_adds_to_a_resource() -> None:
    extension = Extension("things", (Attr("size", int, "how large"),), (Many("parts", "things", "of what"),))
    composition = Composition((low(), high(extends=(extension,))))
    assert composition.check() == []
    (merged,) = composition.resources
    assert [attr.name for attr in merged.attributes] == ["name", "size"]
    assert [relation.name for relation in merged.relations] == ["parts"]
    assert THING.attributes[-1].name == "name", "what the room has declared stays as it was"


@pytest.mark.parametrize(
    ("rooms", "problem"),
    [
        (
            (low(), high(extends=(Extension("things", (Attr("name", str, "another"),)),))),
            "things member name is declared twice",
        ),
        (
            (
                low(),
                high(extends=(Extension("things", (Attr("size", int, "one"),)),)),
                Room(name="top", extends=(Extension("things", (Attr("size", int, "two"),)),)),
            ),
            "things member size is declared twice",
        ),
        ((low(), high(extends=(Extension("nothing"),))), "room high extends nothing, which no room declares"),
        (
            (high(extends=(Extension("things"),)), low()),
            "room high extends things of the higher room low",
        ),
        (
            (low(), high(extends=(Extension("things", (Attr("size", int, "how large", write=True),)),))),
            "room high adds things.size, which only the room of things could let clients write",
        ),
    ],
)  # fmt: skip
def test_an_extension_that_does_not_fit_is_refused(rooms: tuple[Room, ...], problem: str) -> None:
    assert Composition(rooms).check() == [problem]
