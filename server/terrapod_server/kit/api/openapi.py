"""Declarations -> an OpenAPI 3.1 document.

A resource has up to three schemas, since what is shown, what may be sent and
what must be sent differ: `runs` is an answer's, `runs-sent` a request's, and
`runs-new` a request's that has required members.
"""

import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from terrapod_server.kit.api.declare import Accepts, Attr, Endpoint, Many, One, Page, Query, Raw, Resource, Route
from terrapod_server.kit.caller import Access, Level

Schema = dict[str, Any]
_MEDIA = "application/vnd.api+json"
_JSON = "application/json"
_FORM = "application/x-www-form-urlencoded"
_KINDS: dict[type, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    dict: {"type": "object"},
    list: {"type": "array"},
    datetime: {"type": "string", "format": "date-time"},
    object: {},
}
_ERROR = {
    "type": "object",
    "required": ["errors"],
    "properties": {
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["status", "title", "detail"],
                "properties": {
                    "status": {"type": "string"},
                    "title": {"type": "string"},
                    "detail": {"type": "string"},
                    "source": {"type": "object", "properties": {"pointer": {"type": "string"}}},
                    "meta": {"type": "object"},
                },
            },
        }
    },
}
_NUMBERS = ("current-page", "prev-page", "next-page", "total-pages", "total-count")
_MAYBE = frozenset({"prev-page", "next-page"})
_PAGINATION = {
    "type": "object",
    "required": list(_NUMBERS),
    "properties": {name: {"type": ["integer", "null"] if name in _MAYBE else "integer"} for name in _NUMBERS},
}
#: Any resource and any link to one, where the type is not known.
_LINK = {
    "type": "object",
    "required": ["type", "id"],
    "properties": {"type": {"type": "string"}, "id": {"type": "string"}},
}
_PAGE = (
    Query("page[number]", int, "which page; the first is 1"),
    Query("page[size]", int, "how many a page has: 20 if it is not said, 100 at most"),
)
_INCLUDE = Query("include", str, "relationships whose resources the answer is to carry, separated by commas")
#: A tag's name and what it is about, by room.
Tags = Mapping[str, tuple[str, str]]


def document(endpoints: Iterable[Route], tags: Tags | None = None, version: str = "0.1.0") -> Schema:
    """The whole API, one operation an endpoint. `tags` names what the endpoints of a room are about."""
    endpoints, named = tuple(endpoints), tags or {}
    paths: dict[str, Schema] = {}
    schemas: Schema = {"errors": _ERROR, "pagination": _PAGINATION, **_messages(endpoints)}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, named)
        if isinstance(endpoint, Endpoint):
            for name, schema in _schemas(endpoint):
                if schemas.setdefault(name, schema) != schema:
                    raise ValueError(f"two endpoints give {name} different shapes")
    abouts = dict(named[room] for room in named if room in {room_of(endpoint) for endpoint in endpoints})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Terrapod",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "the server that gave this document"}],
        "tags": [{"name": name, "description": about} for name, about in abouts.items()],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": "__Host-terrapod",
                    "description": "of browsers, for pages alone",
                },
                "listener": {"type": "apiKey", "in": "header", "name": "Signature", "description": "RFC 9421"},
            },
        },
    }


def summary(endpoint: Route) -> str:
    """What it does, in a line: its own words, or the first of its handler's."""
    return endpoint.doc or (inspect.getdoc(endpoint.do) or "").partition("\n")[0]


def room_of(endpoint: Route) -> str:
    """The room whose endpoint it is."""
    return endpoint.do.__module__.split(".")[1]


def statuses(endpoint: Route) -> tuple[int, ...]:
    """Those with which it succeeds."""
    if isinstance(endpoint, Page):  # everybody may be led to sign in
        return tuple(dict.fromkeys((*endpoint.answers, 303)))
    if isinstance(endpoint, Raw):
        return endpoint.answers
    gives_nothing = inspect.signature(endpoint.do).return_annotation is None
    return (204,) if gives_nothing and endpoint.status == 200 else (endpoint.status,)  # noqa: PLR2004


def _operation(endpoint: Route, tags: Tags) -> Schema:
    needs, room = endpoint.needs, room_of(endpoint)
    operation: Schema = {
        "summary": summary(endpoint),
        "operationId": _identifier(endpoint),
        "x-needs": needs.name.lower() if isinstance(needs, Level) else needs.value,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _KINDS[str]}
            for name in re.findall(r"\{(\w+)\}", endpoint.path)
        ]
        + [_parameter(each) for each in _queries(endpoint)],
        "responses": {
            "default": {"description": "an error", "content": {_JSON: {"schema": _ref("errors")}}},
            **{str(status): _success(endpoint, status) for status in statuses(endpoint)},
        },
    }
    if room in tags:
        operation["tags"] = [tags[room][0]]
    if needs is Access.LISTENER:
        operation["security"] = [{"listener": []}]
    elif needs not in (Access.PUBLIC, Access.CAPABILITY):
        operation["security"] = [{"session" if isinstance(endpoint, Page) else "bearer": []}]
    if isinstance(endpoint, Page):
        body = _form(endpoint)
    else:
        body = _raw_body(endpoint.takes) if isinstance(endpoint, Raw) else _body(endpoint)
    if body:
        operation["requestBody"] = {"required": _needs_body(endpoint), "content": body}
    return operation


def _identifier(endpoint: Route) -> str:
    words = re.sub(r"[^a-zA-Z0-9]+", "-", endpoint.path.removeprefix("/api/v2/")).strip("-")
    return f"{endpoint.method.lower()}-{words or 'root'}"


def _queries(endpoint: Route) -> Iterator[Query]:
    yield from (each if isinstance(each, Query) else Query(each) for each in endpoint.filters)
    if isinstance(endpoint, Endpoint):
        if endpoint.method == "GET" and endpoint.resource and endpoint.resource.relations:
            yield _INCLUDE
        if endpoint.many:
            yield from _PAGE


def _parameter(query: Query) -> Schema:
    schema = dict(_KINDS[query.kind])
    if query.kind is int:
        schema["minimum"] = 1 if query in _PAGE else 0
    found: Schema = {"name": query.name, "in": "query", "schema": schema}
    if query.doc:
        found["description"] = query.doc
    if query.required:
        found["required"] = True
    return found


def _success(endpoint: Route, status: int) -> Schema:
    found: Schema = {"description": "success"}
    if status in (204, 302, 303):
        found["description"] = "nothing more is said" if status == 204 else "the header Location says where"  # noqa: PLR2004
    elif isinstance(endpoint, Raw | Page):
        if isinstance(endpoint.gives, str):
            found["content"] = {endpoint.gives: {"schema": _KINDS[str] if "text/" in endpoint.gives else _binary()}}
        elif endpoint.gives is not None:
            found["content"] = {_JSON: {"schema": _message(endpoint.gives)}}
    elif endpoint.resource is not None:
        name = f"{endpoint.resource.type}-{'list' if endpoint.many else 'document'}"
        found["content"] = {endpoint.media: {"schema": _ref(name)}}
    else:
        returned = typing.get_type_hints(endpoint.do).get("return")
        if returned not in (None, type(None)):
            found["content"] = {endpoint.media: {"schema": _message(returned)}}
    return found


def _binary() -> Schema:
    return {"type": "string", "format": "binary"}


def _raw_body(takes: Any) -> Schema:
    if takes is None:
        return {}
    if isinstance(takes, str):
        return {takes: {"schema": _binary()}}
    if isinstance(takes, tuple):
        return {_FORM: {"schema": _texts(takes)}}
    return {_JSON: {"schema": _message(takes)}}


def _form(page: Page) -> Schema:
    if page.method != "POST":
        return {}
    names = page.form if page.is_cross_site else ("csrf", *page.form)
    return {"multipart/form-data" if page.has_files else _FORM: {"schema": _texts(names)}}


def _texts(names: Sequence[str]) -> Schema:
    return {"type": "object", "properties": dict.fromkeys(names, _KINDS[str])}


def _body(endpoint: Endpoint) -> Schema:
    if endpoint.notes:
        return {_JSON: {"schema": _texts(endpoint.notes)}}
    if endpoint.method == "GET" or not endpoint.body:
        return {}
    taken = endpoint.takes or endpoint.resource
    if taken is None:
        data: Schema = _LINK
    elif endpoint.method == "DELETE" and not endpoint.body_many:
        return {}
    else:
        data = _ref(_sent_name(taken, endpoint.requires))
    return {_MEDIA: {"schema": _data({"type": "array", "items": data} if endpoint.body_many else data)}}


def _needs_body(endpoint: Route) -> bool:
    """Whether nothing comes of a request without a body."""
    if isinstance(endpoint, Raw | Page):
        return True
    return bool(endpoint.requires) or endpoint.body_many or endpoint.method == "PATCH"


def _sent_name(resource: Resource, requires: Sequence[str]) -> str:
    return f"{resource.type}-{'new' if requires else 'sent'}"


def _schemas(endpoint: Endpoint) -> Iterator[tuple[str, Schema]]:
    """What its operation refers to."""
    if resource := endpoint.resource:
        yield resource.type, _shown(resource)
        one = _ref(resource.type)
        yield f"{resource.type}-document", _answer(one, resource)
        yield f"{resource.type}-list", _answer({"type": "array", "items": one}, resource, is_list=True)
    taken = endpoint.takes or endpoint.resource
    if taken and _body(endpoint) and not endpoint.notes:
        yield _sent_name(taken, endpoint.requires), _sent(taken, endpoint.requires)


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _data(schema: Schema) -> Schema:
    return {"type": "object", "required": ["data"], "properties": {"data": schema}}


def _answer(data: Schema, resource: Resource, *, is_list: bool = False) -> Schema:
    found = _data(data)
    if resource.relations:
        found["properties"]["included"] = {"type": "array", "items": _LINK}
    if is_list:
        found["required"].append("meta")
        found["properties"]["meta"] = {
            "type": "object",
            "required": ["pagination"],
            "properties": {"pagination": _ref("pagination")},
        }
    return found


def _shown(resource: Resource) -> Schema:
    properties: Schema = {
        "id": _KINDS[str],
        "type": {"const": resource.type},
        "attributes": {
            "type": "object",
            "required": [attr.name for attr in resource.attributes if attr.only_in is None],
            "properties": {attr.name: _shown_attribute(attr) for attr in resource.attributes},
        },
    }
    required = ["id", "type", "attributes"]
    if resource.relations:
        properties["relationships"] = {
            "type": "object",
            "properties": {relation.name: _relation(relation) for relation in resource.relations},
        }
        required.append("relationships")
    if resource.links:
        properties["links"] = {"type": "object", "properties": dict.fromkeys(resource.links, _KINDS[str])}
        required.append("links")
    return {"type": "object", "required": required, "properties": properties}


def _sent(resource: Resource, requires: Sequence[str]) -> Schema:
    """What a request may carry of a resource: unknown and read-only members are ignored, and so not named."""
    attributes: Schema = {
        "type": "object",
        "properties": {
            **{each.name: _unsupported(each) for each in resource.unsupported if not each.related},
            **{attr.name: _attribute(attr) for attr in resource.attributes if attr.write},
        },
    }
    relationships: Schema = {
        "type": "object",
        "properties": {
            **{each.name: {"description": _not_here(each)} for each in resource.unsupported if each.related},
            **{relation.name: _relation(relation) for relation in resource.relations if relation.write},
        },
    }
    found: Schema = {
        "type": "object",
        "properties": {"id": _KINDS[str], "type": {"const": resource.type}, "attributes": attributes},
    }
    if relationships["properties"]:
        found["properties"]["relationships"] = relationships
    for name, members in (("attributes", attributes), ("relationships", relationships)):
        if needed := [each for each in requires if each in members["properties"]]:
            members["required"] = needed
            found.setdefault("required", []).append(name)
    return found


def _unsupported(member: Accepts) -> Schema:
    """Null, or one of the values that ask for nothing."""
    return {"description": _not_here(member), "anyOf": [{"type": "null"}, *(_exactly(each) for each in member.values)]}


def _exactly(value: Any) -> Schema:
    if isinstance(value, list):
        return {"type": "array", "items": {}, "maxItems": 0}
    if isinstance(value, dict):
        return {"type": "object", "maxProperties": 0}
    return {"const": value}


def _not_here(member: Accepts) -> str:
    return f"{member.doc}; not supported"


def _shown_attribute(attr: Attr) -> Schema:
    schema = _attribute(attr)
    if not attr.write:  # what is worked out may be absent yet
        _allow_null(schema)
    return schema


def _attribute(attr: Attr) -> Schema:
    schema: Schema = {**_KINDS[attr.kind], "description": attr.doc}
    if attr.choices:
        schema["enum"] = list(attr.choices)
    if attr.kind is list:
        schema["items"] = _KINDS[attr.items] if attr.items else {}
    if attr.nullable:
        _allow_null(schema)
    return schema


def _allow_null(schema: Schema) -> None:
    if isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]


def _relation(relation: One | Many) -> Schema:
    kind: Schema = {"const": relation.type} if isinstance(relation.type, str) else {"type": "string"}
    one: Schema = {"type": "object", "properties": {"id": {"type": "string"}, "type": kind}}
    if isinstance(relation, One):
        one["type"] = ["object", "null"]
    return {
        "type": "object",
        "properties": {"data": {"type": "array", "items": one} if isinstance(relation, Many) else one},
    }


def _message(kind: Any) -> Schema:
    """The schema of a JSON message, which is a `Struct`, or made of some."""
    (schema,), _ = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    return schema


def _messages(endpoints: Iterable[Route]) -> Schema:
    """The schemas of all messages, by name."""
    kinds = []
    for endpoint in endpoints:
        if isinstance(endpoint, Raw):
            kinds += [
                each
                for each in (endpoint.takes, endpoint.gives)
                if each is not None and not isinstance(each, str | tuple)
            ]
        elif isinstance(endpoint, Endpoint) and endpoint.resource is None:
            kinds += [typing.get_type_hints(endpoint.do).get("return")]
    _, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return found
