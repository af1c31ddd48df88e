"""The plan as the terraform CLI may show it: `plans/{id}/json-output-redacted`. Pure.

Not `terraform show -json`, but the members that the CLI's renderer reads
(terraform-cli: `internal/cloud` and `jsonformat`), with sensitive values
replaced. Verified by running: every changed resource's provider and type must
be in `provider_schemas`, or the CLI dies.

Only what holds a sensitive value is taken apart, level by level; all else is
passed on as it was written, numbers with all their digits, and takes no more
memory than its text.
"""

from typing import Any

import msgspec

from terrapod_server.kit.api import jsonscan

Raw = msgspec.Raw
_HIDDEN = "(sensitive value)"
_NOTHING = Raw(b"{}")
#: Numbers are not read here, so they may be of any length.
_BOUNDS = jsonscan.Bounds(depth=300, number=jsonscan.UNBOUNDED)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_ARRAY = msgspec.json.Decoder(list[Raw])


class Unreadable(Exception):
    """Why the bytes are no plan that can be shown."""


class _Plan(msgspec.Struct):
    format_version: str = "1.2"
    relevant_attributes: Raw = Raw(b"[]")
    output_changes: dict[str, Raw] | None = None
    resource_changes: list[Raw] | None = None
    resource_drift: list[Raw] | None = None
    deferred_changes: list[Raw] | None = None


class _Schemas(msgspec.Struct):
    format_version: str = "1.0"
    provider_schemas: Raw = _NOTHING


def compose(plan_json: bytes, schemas: bytes) -> bytes:
    """The redacted document, from `show -json` and `providers schema -json`. Raises Unreadable."""
    try:
        for raw in (plan_json, schemas or b"{}"):
            jsonscan.check(raw, _BOUNDS)
        plan = msgspec.json.decode(plan_json, type=_Plan)
        known = msgspec.json.decode(schemas or b"{}", type=_Schemas)
        return msgspec.json.encode(_document(plan, known))
    except jsonscan.Beyond as error:
        raise Unreadable(f"it has {error}") from None
    except (jsonscan.Malformed, msgspec.DecodeError, RecursionError):
        raise Unreadable("it is not what terraform says of a plan") from None


def composed(plan_json: Any, schemas: Any) -> list[bytes]:
    """What a worker makes of both: a zero byte and the document, or a one and why there is none."""
    try:
        return [b"\0", compose(plan_json.read(), schemas.read())]
    except Unreadable as error:
        return [b"\1", str(error).encode()]


def _document(plan: _Plan, known: _Schemas) -> dict[str, Any]:
    document: dict[str, Any] = {
        "plan_format_version": plan.format_version,
        "provider_format_version": known.format_version,
        "provider_schemas": known.provider_schemas,
        "relevant_attributes": plan.relevant_attributes,
        "output_changes": {name: _change(change) for name, change in (plan.output_changes or {}).items()},
        "resource_changes": [_resource(entry) for entry in plan.resource_changes or ()],
        "resource_drift": [_resource(entry) for entry in plan.resource_drift or ()],
    }
    if plan.deferred_changes is not None:
        document["deferred_changes"] = [_resource(entry) for entry in plan.deferred_changes]
    return document


def _resource(entry: Raw) -> dict[str, Any]:
    found: dict[str, Any] = _OBJECT.decode(entry)
    if "resource_change" in found:  # a deferred change wraps one
        return {**found, "resource_change": _resource(found["resource_change"])}
    return {**found, "change": _change(found.get("change", _NOTHING))}


def _change(change: Raw) -> dict[str, Any]:
    redacted: dict[str, Any] = _OBJECT.decode(change)
    for side in ("before", "after"):
        marks = redacted.get(f"{side}_sensitive")
        if side in redacted and marks is not None:
            redacted[side] = _hide(redacted[side], marks)
    return redacted


def _hide(value: Raw, marks: Raw) -> Any:
    """`marks` is true, or has the value's shape with true where it is to be hidden."""
    marked = bytes(marks)
    first, kind = bytes(memoryview(value)[:1]), marked[:1]
    if first == b"n" or b"true" not in marked:
        return value
    if kind == b"t":
        return _HIDDEN
    if first == kind == b"{":
        inner = _OBJECT.decode(marks)
        return {name: _hide(one, inner[name]) if name in inner else one for name, one in _OBJECT.decode(value).items()}
    if first == kind == b"[":
        sides, found = _ARRAY.decode(marks), _ARRAY.decode(value)
        return [_hide(one, sides[at]) if at < len(sides) else one for at, one in enumerate(found)]
    return value
