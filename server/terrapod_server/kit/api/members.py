"""Declarations -> the page that says what becomes of each member that clients send (`docs/request-attributes.md`)."""

import json
from collections.abc import Iterable, Iterator

from terrapod_server.kit.api.declare import Accepts, Attr, Endpoint, Many, One, Resource, Route

_HEAD = """\
# What becomes of what clients send

Written by `make docs` from the declarations that the server is made of; do not edit.

Every member that go-tfe, pytfe, terrasnek, the tfe provider or the terraform CLI can send is done, kept, or refused:
nothing that would change what happens is dropped. A member of the wrong type or out of its range is 422 with a pointer
to it. Members that are read-only, and those that no client defines, are ignored; null leaves an attribute as it is
where it cannot be null.

- **done**: it acts.
- **kept**: it is kept and shown; what would act by it is not there yet.
- **refused**: nothing here implements it. It is taken where it asks for what happens anyway, which is named; any other
  value is 422.
"""
_METHODS = frozenset({"POST", "PATCH", "PUT"})


def page(endpoints: Iterable[Route]) -> str:
    """The document, in Markdown: a table for each resource that is sent."""
    sent: dict[str, tuple[Resource, list[str]]] = {}
    for endpoint in endpoints:
        if not isinstance(endpoint, Endpoint) or not endpoint.body or endpoint.method not in _METHODS:
            continue
        resource = endpoint.takes or endpoint.resource
        if resource is not None and any(_rows(resource)):
            sent.setdefault(resource.type, (resource, []))[1].append(f"`{endpoint.method} {endpoint.path}`")
    return _HEAD + "".join(_table(*sent[name]) for name in sorted(sent))


def _table(resource: Resource, places: list[str]) -> str:
    lines = "".join(f"| {' | '.join(row)} |\n" for row in _rows(resource))
    head = "| Member | What it is | What becomes of it |\n|---|---|---|\n"
    return f"\n## {resource.type}\n\n{', '.join(sorted(places))}\n\n{head}{lines}"


def _rows(resource: Resource) -> Iterator[tuple[str, str, str]]:
    for member in (*resource.attributes, *resource.relations):
        if member.write:
            yield f"`{member.name}`{_kind(member)}", member.doc, _fate(member)
    for missing in resource.unsupported:
        allowed = ["null", *(f"`{json.dumps(value)}`" for value in missing.values)]
        yield f"`{missing.name}`{_kind(missing)}", missing.doc, f"refused, but {' or '.join(allowed)}"


def _kind(member: Attr | One | Many | Accepts) -> str:
    is_related = isinstance(member, One | Many) or (isinstance(member, Accepts) and member.related)
    return " (relationship)" if is_related else ""


def _fate(member: Attr | One | Many) -> str:
    return "kept" if isinstance(member, Attr) and member.kept else "done"
