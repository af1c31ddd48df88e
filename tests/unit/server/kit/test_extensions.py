"""What an extension adds is rendered with the row, and asked for the rows of an answer at once."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
from starlette.requests import Request

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Extension, Many, One, Resource
from terrapod_server.kit.api.render import Registry
from terrapod_server.kit.paging import Rows
from terrapod_server.kit.room import Composition, Room

Facts = Mapping[str, Any]


def row(name: str, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(id=name, name=name, **more)


async def owners(ids: Sequence[str]) -> Sequence[Any]:
    return [row(each) for each in ids]


OWNER = Resource("owners", attributes=(Attr("name", str, "its name"),), load=owners)
THING = Resource("things", attributes=(Attr("name", str, "its name"),))


class Asked:
    """Facts, and of which rows they were asked for."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.calls: list[list[str]] = []

    async def __call__(self, ids: Sequence[str], _call: Call) -> Facts:
        self.calls.append(list(ids))
        return self.facts


def registry(*extensions: Extension) -> Registry:
    composition = Composition((Room(name="low", resources=(THING, OWNER)), Room(name="high", extends=extensions)))
    assert composition.check() == []
    return Registry(composition.resources)


def call(query: str = "") -> Call:
    scope = {"type": "http", "headers": [], "query_string": query.encode(), "path": "/", "scheme": "http"}
    services: Any = SimpleNamespace(config=SimpleNamespace(public_url="http://a", url="http://a"))
    return Call(request=Request(scope), services=services, path={})


async def shown(found: Registry, rows: Sequence[Any], query: str = "") -> Any:
    return msgspec.json.decode(msgspec.json.encode(await found.many(THING, Rows(rows), call(query))))


async def test_facts_are_asked_for_once_for_all_rows() -> None:
    asked = Asked({"a": {"size": 3}, "b": SimpleNamespace(size=4)})
    found = registry(Extension("things", (Attr("size", int, "how large"),), load=asked))
    document = await shown(found, [row("a"), row("b"), row("c")])
    assert [each["attributes"] for each in document["data"]] == [
        {"name": "a", "size": 3}, {"name": "b", "size": 4}, {"name": "c", "size": None},
    ]  # fmt: skip
    assert asked.calls == [["a", "b", "c"]]


async def test_rows_without_facts_are_not_asked_for() -> None:
    asked = Asked({"a": {"size": 3}})
    size = Attr("size", int, "how large", value=lambda added, _: added.fact["size"] if added.fact else added.row.first)
    found = registry(Extension("things", (size,), load=asked, is_loaded=lambda each: each.first is None))
    document = await shown(found, [row("a", first=None), row("b", first=7)])
    assert [each["attributes"]["size"] for each in document["data"]] == [3, 7]
    await shown(found, [row("b", first=7)])
    assert asked.calls == [["a"]], "nothing is asked where it concerns no row"


async def test_relations_are_shown_and_followed() -> None:
    asked = Asked({"a": {"owner_id": "ann"}})
    relations = (
        One("owner", "owners"),
        Many("friends", "owners", keys=lambda added, _: ["bob"] if added.fact else [], link=lambda *_: "/friends"),
    )
    found = registry(
        Extension("things", relations=relations, load=asked), Extension("things", (Attr("more", int, "x"),))
    )
    document = await shown(found, [row("a"), row("b")], "include=owner,friends,nobody")
    first, second = (each["relationships"] for each in document["data"])
    assert first["owner"]["data"] == {"type": "owners", "id": "ann"}
    assert first["friends"] == {"data": [{"type": "owners", "id": "bob"}], "links": {"related": "/friends"}}
    assert (second["owner"]["data"], second["friends"]["data"]) == (None, [])
    assert [each["id"] for each in document["included"]] == ["ann", "bob"]
