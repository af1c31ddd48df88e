"""Request documents -> checked values. Pure; every mistake is an `Invalid` with a JSON pointer."""

import json
import re
from collections.abc import Mapping, Sized
from datetime import UTC, datetime
from typing import Any

import msgspec

from terrapod_server.kit.api import jsonscan
from terrapod_server.kit.api.identifiers import Linked
from terrapod_server.kit.api.resources import Accepts, Attr, Many, One, Resource
from terrapod_shared.errors import BadRequest, Invalid

_KINDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    datetime: "an RFC 3339 time",
}

#: Of a list or an object in one request.
MEMBERS_MOST = 1000
#: Of a body that is larger than the second number: small text can make many objects in memory.
_BOUNDS, _SCANNED = jsonscan.Bounds(depth=100, number=400, values=100_000), 64 << 10
#: An escaped NUL; not the six letters of one, which follow an escaped backslash.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def decode(raw: bytes) -> Any:
    """The JSON value of a body, or None for an empty one. Raises BadRequest, or Invalid for a NUL."""
    if not raw.strip():
        return None
    try:
        if len(raw) > _SCANNED:
            jsonscan.check(raw, _BOUNDS)
        value = msgspec.json.decode(raw)
    except jsonscan.Beyond as error:
        message = f"the body has {error}"
        raise BadRequest(message) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
        message = f"the body is not JSON: {error}"
        raise BadRequest(message) from None
    if b"\\u0000" in raw and _NUL.search(raw):  # PostgreSQL keeps no NUL in text
        message = "text may not contain a NUL character"
        raise Invalid(message)
    return value


def check_count(members: Sized, name: str, pointer: str) -> None:
    """Raises Invalid for more members than one request may have: each may cost a statement's parameter, or a statement."""
    if len(members) > MEMBERS_MOST:
        message = (
            f"{name} may have {MEMBERS_MOST} members at most, and has {len(members)}: send them in several requests"
        )
        raise Invalid(message, pointer=pointer)


def resource_object(document: Any, *, required: bool) -> Mapping[str, Any]:
    """`data` of a document; an empty one where it may be absent."""
    if document is None and not required:
        return {}
    if not isinstance(document, Mapping):
        message = "the body must be a JSON object with a member data"
        raise Invalid(message, pointer="")
    data = document.get("data")
    if data is None and not required:
        return {}
    if not isinstance(data, Mapping):
        message = "data must be a resource object"
        raise Invalid(message, pointer="/data")
    return data


def check_type(data: Mapping[str, Any], resource: Resource, pointer: str = "/data") -> None:
    """An absent or empty type is accepted (terraform sends `""` with a lock); a wrong one is not."""
    sent = data.get("type")
    if sent in (None, "", resource.type) or sent in resource.accepts:
        return
    message = f"the type must be {resource.type}, not {str(sent)[:60]!r}"
    raise Invalid(message, pointer=f"{pointer}/type")


def attributes(data: Mapping[str, Any], resource: Resource, pointer: str = "/data") -> dict[str, Any]:
    """The writable attributes that were sent, by column name; unknown and read-only ones are left out."""
    sent = data.get("attributes")
    if sent is None:
        return {}
    if not isinstance(sent, Mapping):
        message = "attributes must be an object"
        raise Invalid(message, pointer=f"{pointer}/attributes")
    _check_unsupported(sent, resource, f"{pointer}/attributes", related=False)
    found: dict[str, Any] = {}
    for attr in resource.attributes:
        if not attr.write or attr.name not in sent:
            continue
        value = sent[attr.name]
        where = f"{pointer}/attributes/{attr.name}"
        if value is None:
            if attr.nullable:
                found[attr.column] = None
            continue  # clients send null for what they leave alone
        value = _checked(attr, value, where)
        if isinstance(value, list | dict):
            check_count(value, attr.name, where)
        if attr.parse is not None:
            try:
                value = attr.parse(value)
            except ValueError as error:
                raise Invalid(f"{attr.name}: {error}", pointer=where) from None
        found[attr.column] = value
    return found


def _check_unsupported(sent: Mapping[str, Any], resource: Resource, pointer: str, *, related: bool) -> None:
    """Raises Invalid where a member that nothing here implements asks for anything."""
    for member in resource.unsupported:
        value = sent.get(member.name)
        if member.related is not related or _asks_for_nothing(member, value):
            continue
        only = "".join(f" or {json.dumps(each)}" for each in member.values)
        message = f"{member.name} is not supported ({member.doc}): it may be null{only}"
        raise Invalid(message, pointer=f"{pointer}/{member.name}")


def _asks_for_nothing(member: Accepts, value: Any) -> bool:
    if member.related and isinstance(value, Mapping):
        value = value.get("data")
    return value is None or any(type(value) is type(each) and value == each for each in member.values)


def _checked(attr: Attr, value: Any, where: str) -> Any:
    kind = attr.kind
    if kind is datetime:
        return _time(attr, value, where)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is not object and (not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool))):
        message = f"{attr.name} must be {_KINDS[kind]}"
        raise Invalid(message, pointer=where)
    if attr.choices and value not in attr.choices:
        message = f"{attr.name} must be one of {', '.join(attr.choices)}, not {str(value)[:60]!r}"
        raise Invalid(message, pointer=where)
    if attr.items is not None and not all(isinstance(item, attr.items) for item in value):
        message = f"each item of {attr.name} must be {_KINDS[attr.items]}"
        raise Invalid(message, pointer=where)
    size = len(value) if isinstance(value, str | list | dict) else value
    if attr.minimum is not None and size < attr.minimum:
        message = f"{attr.name} must be at least {attr.minimum}"
        raise Invalid(message, pointer=where)
    if attr.maximum is not None and size > attr.maximum:
        message = f"{attr.name} must be at most {attr.maximum}"
        raise Invalid(message, pointer=where)
    if kind is int and not -(1 << 63) <= value < 1 << 63:
        message = f"{attr.name} is out of range"
        raise Invalid(message, pointer=where)
    return value


def _time(attr: Attr, value: Any, where: str) -> datetime:
    message = f"{attr.name} must be {_KINDS[datetime]}, such as 2026-01-31T12:00:00Z"
    if not isinstance(value, str):
        raise Invalid(message, pointer=where)
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise Invalid(message, pointer=where) from None
    if at.tzinfo is None:
        raise Invalid(message, pointer=where)
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise Invalid(message, pointer=where) from None


def relations(data: Mapping[str, Any], resource: Resource) -> dict[str, list[Linked] | Linked | None]:
    """The writable relationships that were sent, by name."""
    sent = data.get("relationships")
    if sent is None:
        return {}
    if not isinstance(sent, Mapping):
        message = "relationships must be an object"
        raise Invalid(message, pointer="/data/relationships")
    _check_unsupported(sent, resource, "/data/relationships", related=True)
    found: dict[str, list[Linked] | Linked | None] = {}
    for relation in resource.relations:
        if not relation.write or relation.name not in sent:
            continue
        where = f"/data/relationships/{relation.name}"
        member = sent[relation.name]
        if member is None:
            found[relation.name] = None
            continue
        if not isinstance(member, Mapping):
            message = f"{relation.name} must be an object with a member data"
            raise Invalid(message, pointer=where)
        found[relation.name] = _linkage(relation, member.get("data"), f"{where}/data")
    return found


def _linkage(relation: One | Many, data: Any, where: str) -> list[Linked] | Linked | None:
    if isinstance(relation, Many):
        if not isinstance(data, list):
            message = f"{relation.name} must be a list of resource identifiers"
            raise Invalid(message, pointer=where)
        check_count(data, relation.name, where)
        return [linked(item, f"{where}/{index}", relation.type) for index, item in enumerate(data)]
    if data is None:
        return None
    expected = relation.type if isinstance(relation.type, str) else None
    one = linked(data, where, expected)
    if not one.id:
        message = f"{relation.name} must name an id"
        raise Invalid(message, pointer=f"{where}/id")
    return one


def linked(item: Any, where: str, expected: str | None = None) -> Linked:
    """One resource identifier, which may carry attributes in place of an id."""
    if not isinstance(item, Mapping):
        message = "must be a resource identifier object"
        raise Invalid(message, pointer=where)
    kind, identity, carried = item.get("type"), item.get("id"), item.get("attributes")
    if expected and kind not in (None, "", expected):
        message = f"the type must be {expected}, not {str(kind)[:60]!r}"
        raise Invalid(message, pointer=f"{where}/type")
    if identity is not None and not isinstance(identity, str):
        message = "an id must be a string"
        raise Invalid(message, pointer=f"{where}/id")
    if carried is not None and not isinstance(carried, Mapping):
        message = "attributes must be an object"
        raise Invalid(message, pointer=f"{where}/attributes")
    return Linked(str(kind or ""), identity or None, carried or {})
