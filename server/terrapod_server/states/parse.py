"""Reads a state of any size as a stream of JSON events; holds outputs and counts, never the document.

Source of the form: terraform's state format 4. OpenTofu may send an encrypted
envelope instead (`serial`, `lineage`, `encrypted_data`), of which only the head
can be read.
"""

import json
import queue
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ijson

#: An output's value larger than this is kept in the state only.
OUTPUT_MOST = 1 << 20
OUTPUTS_MOST = 10_000
RESOURCES_LISTED = 1_000
DEPTH_MOST = 200


class Unreadable(Exception):
    """Why the bytes are no state."""


@dataclass
class Output:
    """One root output. `type` is terraform's type expression as JSON: `"string"` or `["list", "string"]`."""

    name: str
    value: Any = None
    type: Any = None
    sensitive: bool = False


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


class Pipe:
    """Bytes from the event loop's side to the parser's thread, with a bound on what waits between."""

    def __init__(self, most: int = 4) -> None:
        self._queue: queue.Queue[bytes] = queue.Queue(most)
        self._rest = b""
        self._over = False

    def put(self, chunk: bytes) -> None:
        """Blocks while the parser is behind: to be called in a thread."""
        self._queue.put(chunk)

    def close(self) -> None:
        self._queue.put(b"")

    def read(self, size: int = -1) -> bytes:
        """What ijson calls; an empty answer is the end."""
        if not self._rest and not self._over:
            self._rest = self._queue.get()
            self._over = not self._rest
        if size == 0:
            return b""
        part, self._rest = (self._rest, b"") if size < 0 else (self._rest[:size], self._rest[size:])
        return part

    def drain(self) -> None:
        """Takes the rest away, so that a writer does not wait for a parser that gave up."""
        while not self._over:
            self._over = not self._queue.get()


def summarise(source: Any) -> Summary:
    """Reads a state from a file-like object. Raises Unreadable."""
    summary = Summary()
    try:
        _read(_bounded(ijson.parse(source, use_float=True)), summary)
    except (ijson.JSONError, UnicodeDecodeError, ValueError, OverflowError) as error:
        message = f"the state is not JSON: {str(error)[:200]}"
        raise Unreadable(message) from None
    if summary.serial < 0:
        message = "the state has no serial"
        raise Unreadable(message)
    return summary


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
            message = f"the state has {value[:60]!r} twice"
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
        if event != "number" or isinstance(value, float) or not 0 <= value < 1 << 63:
            message = "the state's serial is no whole number"
            raise Unreadable(message)
        summary.serial = value
    elif name in ("lineage", "terraform_version") and event == "string":
        setattr(summary, name, value[:255])
    elif name == "version" and event == "number":
        summary.version = int(value)


def _skip(events: Iterator[tuple[str, str, Any]]) -> None:
    depth = 1
    while depth:
        event = next(events)[1]
        depth += (event in ("start_map", "start_array")) - (event in ("end_map", "end_array"))


def _value(events: Iterator[tuple[str, str, Any]], most: int) -> tuple[Any, bool]:
    """The next value, and whether it was small enough to be kept."""
    builder = ijson.ObjectBuilder()
    size, depth, kept = 0, 0, True
    while True:
        _, event, value = next(events)
        depth += (event in ("start_map", "start_array")) - (event in ("end_map", "end_array"))
        size += 8 + (len(value) if isinstance(value, str) else 0)
        if kept and size > most:
            kept, builder = False, ijson.ObjectBuilder()
        if kept:
            builder.event(event, value)
        if depth == 0:
            return (builder.value if kept else None), kept


def _outputs(events: Iterator[tuple[str, str, Any]], summary: Summary) -> None:  # noqa: C901  one loop over one grammar
    if not _starts(events, "start_map"):
        return
    for _, event, name in events:
        if event == "end_map":
            return
        output = Output(name[:255])
        kept = True
        if _starts(events, "start_map"):
            for _, inner, member in events:
                if inner == "end_map":
                    break
                found, small = _value(events, OUTPUT_MOST)
                if member == "value":
                    output.value, kept = found, small
                elif member == "type":
                    output.type = found
                elif member == "sensitive":
                    output.sensitive = bool(found)
        if kept and len(summary.outputs) < OUTPUTS_MOST:
            summary.outputs.append(output)


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
        kind, module = str(head.get("type", "")), str(head.get("module", "root"))
        provider = str(head.get("provider", ""))
        summary.resource_count += count
        providers.setdefault(provider, Counter())[kind] += count
        modules.setdefault(module, Counter())[kind] += count
        if len(summary.resources) < RESOURCES_LISTED:
            summary.resources.append(
                {"name": head.get("name", ""), "type": kind, "count": count, "module": module, "provider": provider}
            )
    summary.providers = {name: dict(counts) for name, counts in providers.items()}
    summary.modules = {name: dict(counts) for name, counts in modules.items()}


def _resource(events: Iterator[tuple[str, str, Any]]) -> tuple[dict[str, Any], int]:
    head: dict[str, Any] = {}
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
            head[member] = value
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
    return {str: "string", bool: "boolean", int: "number", float: "number", list: "array"}.get(type(value), "object")


def encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
