"""Reads a state of any size as a stream of JSON events; holds outputs and counts, never the document.

Source of the form: terraform's state format 4. OpenTofu may send an encrypted
envelope instead (`serial`, `lineage`, `encrypted_data`), of which only the head
can be read.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import ijson
import msgspec

#: A larger value of an output is in the state only, and so are those that come when the second number is used up.
OUTPUT_MOST = 1 << 20
OUTPUTS_TOTAL = 8 << 20
OUTPUTS_MOST = 10_000
RESOURCES_LISTED = 1_000
DEPTH_MOST = 200
_TEXT_MOST = 255
#: Numbers stay the ones that were written: whole ones of any size, others with all their digits.
_ENCODER = msgspec.json.Encoder(decimal_format="number")


class Unreadable(Exception):
    """Why the bytes are no state."""


@dataclass
class Output:
    """One root output. `type` is terraform's type expression as JSON: `"string"` or `["list", "string"]`.

    Where not `kept`, value and type are in the state only. A list that lacks a
    type makes the CLI read the state (terraform-cli.md 6.6).
    """

    name: str
    value: Any = None
    type: Any = None
    sensitive: bool = False
    kept: bool = True


@dataclass
class Summary:
    """What is kept of a state beside its bytes."""

    serial: int = -1
    lineage: str = ""
    terraform_version: str = ""
    version: int = 0
    is_encrypted: bool = False
    outputs: list[Output] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    resource_count: int = 0
    providers: dict[str, dict[str, int]] = field(default_factory=dict)
    modules: dict[str, dict[str, int]] = field(default_factory=dict)


def summarise(source: Any) -> Summary:
    """Reads a state from a file-like object. Raises Unreadable, which never quotes what was sent: it may be secret."""
    summary = Summary()
    try:
        _read(_bounded(ijson.parse(source)), summary)
    except (ijson.JSONError, ValueError, ArithmeticError):
        message = "the state is not JSON"
        raise Unreadable(message) from None
    if summary.serial < 0:
        message = "the state has no serial"
        raise Unreadable(message)
    return summary


def check_text(value: Any, what: str) -> None:
    """Raises Unreadable for a NUL anywhere in it: PostgreSQL has no place for one."""
    if isinstance(value, str):
        if "\0" in value:
            message = f"{what} holds a NUL"
            raise Unreadable(message)
    elif isinstance(value, list):
        for member in value:
            check_text(member, what)
    elif isinstance(value, dict):
        for name, member in value.items():
            check_text(name, what)
            check_text(member, what)


def _plain(value: Any, what: str) -> str:
    """Text of a bounded length that any database takes."""
    found = str(value)[:_TEXT_MOST]
    check_text(found, what)
    return found


def _bounded(events: Iterator[tuple[str, str, Any]]) -> Iterator[tuple[str, str, Any]]:
    depth = 0
    for event in events:
        if event[1] in ("start_map", "start_array"):
            depth += 1
            if depth > DEPTH_MOST:
                message = f"the state is nested deeper than {DEPTH_MOST}"
                raise Unreadable(message)
        elif event[1] in ("end_map", "end_array"):
            depth -= 1
        yield event


def _read(events: Iterator[tuple[str, str, Any]], summary: Summary) -> None:
    first = next(events, None)
    if first is None or first[1] != "start_map":
        message = "the state is not a JSON object"
        raise Unreadable(message)
    seen: set[str] = set()
    for prefix, event, value in events:
        if event != "map_key" or prefix:
            continue
        if value in seen:
            message = "the state has a member twice"
            raise Unreadable(message)
        seen.add(value)
        if value == "outputs":
            _outputs(events, summary)
        elif value == "resources":
            _resources(events, summary)
        else:
            _head(value, events, summary)


def _head(name: str, events: Iterator[tuple[str, str, Any]], summary: Summary) -> None:
    _, event, value = next(events)
    if name == "encrypted_data":
        summary.is_encrypted = True
    if event in ("start_map", "start_array"):
        _skip(events)
    elif name == "serial":
        if event != "number" or not isinstance(value, int) or not 0 <= value < 1 << 63:
            message = "the state's serial is no whole number"
            raise Unreadable(message)
        summary.serial = value
    elif name in ("lineage", "terraform_version") and event == "string":
        setattr(summary, name, _plain(value, f"the state's {name}"))
    elif name == "version" and isinstance(value, int):
        summary.version = value


def _skip(events: Iterator[tuple[str, str, Any]]) -> None:
    depth = 1
    while depth:
        event = next(events)[1]
        depth += (event in ("start_map", "start_array")) - (event in ("end_map", "end_array"))


def _value(events: Iterator[tuple[str, str, Any]], most: int) -> tuple[Any, int | None]:
    """The next value and about its size; None for both where it is larger than `most`."""
    builder = ijson.ObjectBuilder()
    size, depth, kept = 0, 0, True
    while True:
        _, event, value = next(events)
        depth += (event in ("start_map", "start_array")) - (event in ("end_map", "end_array"))
        size += 8 + _length(value)
        if kept and size > most:
            kept, builder = False, ijson.ObjectBuilder()
        if kept:
            builder.event(event, value)
        if depth == 0:
            return (builder.value, size) if kept else (None, None)


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return len(str(value)) if isinstance(value, Decimal) else 0


def _outputs(events: Iterator[tuple[str, str, Any]], summary: Summary) -> None:
    if not _starts(events, "start_map"):
        return
    left = OUTPUTS_TOTAL
    for _, event, name in events:
        if event == "end_map":
            return
        output, size = _one_output(name, events, min(left, OUTPUT_MOST))
        left -= size
        if len(summary.outputs) < OUTPUTS_MOST:
            summary.outputs.append(output)
        else:  # so that the list is known to be not all
            _leave_out(summary.outputs[-1])


def _one_output(name: str, events: Iterator[tuple[str, str, Any]], most: int) -> tuple[Output, int]:
    output, total = Output(_plain(name, "an output's name")), 0
    fits = len(name) <= _TEXT_MOST
    if _starts(events, "start_map"):
        for _, event, member in events:
            if event == "end_map":
                break
            found, size = _value(events, most - total)
            if member == "sensitive":
                output.sensitive = found is not False
            elif member in ("value", "type"):
                fits = fits and size is not None
                total += size or 0
                setattr(output, member, found)
    check_text(output.type, "an output's type")
    if not fits:
        _leave_out(output)
    return output, total


def _leave_out(output: Output) -> None:
    output.value = output.type = None
    output.kept = False


def _starts(events: Iterator[tuple[str, str, Any]], wanted: str) -> bool:
    """Whether the next value is of that kind; another one is passed over."""
    event = next(events)[1]
    if event in ("start_map", "start_array") and event != wanted:
        _skip(events)
    return event == wanted


def _resources(events: Iterator[tuple[str, str, Any]], summary: Summary) -> None:
    if not _starts(events, "start_array"):
        return
    providers: dict[str, Counter[str]] = {}
    modules: dict[str, Counter[str]] = {}
    for _, event, _ in events:
        if event == "end_array":
            break
        if event != "start_map":
            continue
        head, count = _resource(events)
        if head.get("mode", "managed") != "managed":
            continue
        kind, module = head.get("type", ""), head.get("module", "root")
        provider = head.get("provider", "")
        summary.resource_count += count
        providers.setdefault(provider, Counter())[kind] += count
        modules.setdefault(module, Counter())[kind] += count
        if len(summary.resources) < RESOURCES_LISTED:
            summary.resources.append(
                {"name": head.get("name", ""), "type": kind, "count": count, "module": module, "provider": provider}
            )
    summary.providers = {name: dict(counts) for name, counts in providers.items()}
    summary.modules = {name: dict(counts) for name, counts in modules.items()}


def _resource(events: Iterator[tuple[str, str, Any]]) -> tuple[dict[str, str], int]:
    head: dict[str, str] = {}
    count = 0
    for _, event, member in events:
        if event == "end_map":
            break
        _, inner, value = next(events)
        if inner == "start_array" and member == "instances":
            depth = 1
            while depth:
                kind = next(events)[1]
                count += kind == "start_map" and depth == 1
                depth += (kind in ("start_map", "start_array")) - (kind in ("end_map", "end_array"))
        elif inner in ("start_map", "start_array"):
            _skip(events)
        else:
            head[member] = _plain(value, "a resource")
    return head, count


def type_name(detailed: Any, value: Any) -> str:
    """go-tfe's word for an output's type: string, number, boolean, array or object."""
    kind = detailed[0] if isinstance(detailed, list) and detailed else detailed
    names = {"string": "string", "number": "number", "bool": "boolean"}
    if kind in names:
        return names[kind]
    if kind in ("list", "set", "tuple"):
        return "array"
    if kind in ("map", "object"):
        return "object"
    return {str: "string", bool: "boolean", int: "number", Decimal: "number", list: "array"}.get(type(value), "object")


def encoded(value: Any) -> bytes:
    return _ENCODER.encode(value)
