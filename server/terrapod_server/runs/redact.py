"""The plan as the terraform CLI may show it: `plans/{id}/json-output-redacted`. Pure.

Not `terraform show -json`, but the members that the CLI's renderer reads
(terraform-cli: `internal/cloud` and `jsonformat`), with sensitive values
replaced. Verified by running: every changed resource's provider and type must
be in `provider_schemas`, or the CLI dies.
"""

from typing import Any

import msgspec

_HIDDEN = "(sensitive value)"
_CHANGES = ("resource_changes", "resource_drift", "deferred_changes")


def compose(plan_json: bytes, schemas: bytes) -> bytes:
    """The redacted document, from `show -json` and `providers schema -json`."""
    plan = msgspec.json.decode(plan_json)
    known = msgspec.json.decode(schemas) if schemas else {}
    document: dict[str, Any] = {
        "plan_format_version": plan.get("format_version", "1.2"),
        "provider_format_version": known.get("format_version", "1.0"),
        "provider_schemas": known.get("provider_schemas", {}),
        "relevant_attributes": plan.get("relevant_attributes", []),
        "output_changes": {name: _change(change) for name, change in plan.get("output_changes", {}).items()},
    }
    for name in _CHANGES:
        if name in plan:
            document[name] = [_resource(entry) for entry in plan[name]]
    document.setdefault("resource_changes", [])
    document.setdefault("resource_drift", [])
    return msgspec.json.encode(document)


def _resource(entry: dict[str, Any]) -> dict[str, Any]:
    if "resource_change" in entry:  # a deferred change wraps one
        return {**entry, "resource_change": _resource(entry["resource_change"])}
    return {**entry, "change": _change(entry.get("change", {}))}


def _change(change: dict[str, Any]) -> dict[str, Any]:
    redacted = dict(change)
    for side in ("before", "after"):
        if side in change:
            redacted[side] = _hide(change[side], change.get(f"{side}_sensitive", False))
    return redacted


def _hide(value: Any, sensitive: Any) -> Any:
    """`sensitive` is true, or has the value's shape with true where it is to be hidden."""
    if value is None:
        return None
    if sensitive is True:
        return _HIDDEN
    if isinstance(value, dict) and isinstance(sensitive, dict):
        return {key: _hide(item, sensitive.get(key, False)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(sensitive, list):
        marks = [*sensitive, *([False] * len(value))]
        return [_hide(item, mark) for item, mark in zip(value, marks, strict=False)]
    return value
