"""Declarations -> an OpenAPI 3.1 document. Pure."""

import inspect
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from terrapod_server.kit.jsonapi import Accepts, Access, Attr, Endpoint, Level, Many, One, Raw, Resource

_MEDIA = "application/vnd.api+json"
_KINDS: dict[type, dict[str, Any]] = {
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


def document(endpoints: Iterable[Endpoint | Raw], version: str = "0.1.0") -> dict[str, Any]:
    """The whole API, one operation an endpoint, one schema a resource."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"errors": _ERROR}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
        if isinstance(endpoint, Endpoint):
            for resource in filter(None, (endpoint.resource, endpoint.takes)):
                schemas.setdefault(resource.type, _schema(resource))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Terrapod",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "listener": {"type": "apiKey", "in": "header", "name": "Signature", "description": "RFC 9421"},
            },
        },
    }


def summary(endpoint: Endpoint | Raw) -> str:
    """What it does, in a line: its own words, or the first of its handler's."""
    return endpoint.doc or (inspect.getdoc(endpoint.do) or "").partition("\n")[0]


def _operation(endpoint: Endpoint | Raw) -> dict[str, Any]:
    needs = endpoint.needs
    operation: dict[str, Any] = {
        "summary": summary(endpoint),
        "operationId": _identifier(endpoint),
        "x-needs": needs.name.lower() if isinstance(needs, Level) else needs.value,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", endpoint.path)
        ],
        "responses": {
            "default": {"description": "an error", "content": {"application/json": {"schema": _ref("errors")}}}
        },
    }
    if needs is Access.LISTENER:
        operation["security"] = [{"listener": []}]
    elif needs not in (Access.PUBLIC, Access.CAPABILITY):
        operation["security"] = [{"bearer": []}]
    if isinstance(endpoint, Raw):
        operation["responses"]["200"] = {"description": "success"}
        return operation
    operation["parameters"] += [_query(name) for name in endpoint.filters]
    if endpoint.method == "GET" and endpoint.resource and endpoint.resource.relations:
        operation["parameters"].append(_query("include"))
    if endpoint.many:
        operation["parameters"] += [_query("page[number]"), _query("page[size]")]
    taken = endpoint.takes or endpoint.resource
    if endpoint.method in {"POST", "PATCH", "PUT"} and endpoint.body and taken:
        data: dict[str, Any] = _ref(taken.type)
        if endpoint.body_many:
            data = {"type": "array", "items": data}
        operation["requestBody"] = {"content": {_MEDIA: {"schema": _data(data)}}}
    success: dict[str, Any] = {"description": "success"}
    if endpoint.resource and _status(endpoint) != "204":
        one = _ref(endpoint.resource.type)
        shown = {"type": "array", "items": one} if endpoint.many else one
        success["content"] = {endpoint.media: {"schema": _data(shown)}}
    operation["responses"][_status(endpoint)] = success
    return operation


def _status(endpoint: Endpoint) -> str:
    gives_nothing = inspect.signature(endpoint.do).return_annotation is None
    return "204" if gives_nothing and endpoint.status == 200 else str(endpoint.status)  # noqa: PLR2004


def _identifier(endpoint: Endpoint | Raw) -> str:
    words = re.sub(r"[^a-zA-Z0-9]+", "-", endpoint.path.removeprefix("/api/v2/")).strip("-")
    return f"{endpoint.method.lower()}-{words}"


def _query(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "string"}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _data(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": ["data"], "properties": {"data": schema}}


def _schema(resource: Resource) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type"],
        "properties": {
            "id": {"type": "string", "readOnly": True},
            "type": {"const": resource.type},
            "attributes": {
                "type": "object",
                "properties": {
                    **{each.name: _unsupported(each) for each in resource.unsupported if not each.related},
                    **{attr.name: _attribute(attr) for attr in resource.attributes},
                },
            },
            "relationships": {
                "type": "object",
                "properties": {
                    **{each.name: {"description": _not_here(each)} for each in resource.unsupported if each.related},
                    **{relation.name: _relation(relation) for relation in resource.relations},
                },
            },
        },
    }


def _unsupported(member: Accepts) -> dict[str, Any]:
    return {"description": _not_here(member), "enum": [None, *member.values], "writeOnly": True}


def _not_here(member: Accepts) -> str:
    return f"{member.doc}; not supported"


def _attribute(attr: Attr) -> dict[str, Any]:
    schema = {**_KINDS[attr.kind], "description": attr.doc}
    if attr.choices:
        schema["enum"] = list(attr.choices)
    if attr.kind is list and attr.items:
        schema["items"] = _KINDS[attr.items]
    if not attr.write:
        schema["readOnly"] = True
    if "type" in schema and (attr.nullable or not attr.write):  # what is worked out may be absent yet
        schema["type"] = [schema["type"], "null"]
    return schema


def _relation(relation: One | Many) -> dict[str, Any]:
    kind: dict[str, Any] = {"const": relation.type} if isinstance(relation.type, str) else {"type": "string"}
    one: dict[str, Any] = {"type": "object", "properties": {"id": {"type": "string"}, "type": kind}}
    if isinstance(relation, One):
        one["type"] = ["object", "null"]
    return {
        "type": "object",
        "properties": {"data": {"type": "array", "items": one} if isinstance(relation, Many) else one},
    }
