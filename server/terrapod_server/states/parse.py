"""Reads a state of any size; gives its head, outputs and counts, never the document. Pure.

Source of the form: terraform's state format 4. OpenTofu may send an encrypted
envelope instead (`serial`, `lineage`, `encrypted_data`), of which only the head
can be read.

All bytes pass a scanner, which judges them before a C parser sees them. What
terraform has written is kept whatever it holds: a state that is over a bound,
or whose resources are none, has a summary without them, with the reason. Up to
`WHOLE_MOST` it is decoded in one piece by types that name what is wanted and
skip the rest; a larger one is so some resources at a time.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from terrapod_server.kit.api.jsonscan import Bounds, Malformed, Scanner, Slice, check
from terrapod_server.states.skeleton import EVERYTHING, Skeleton

#: A larger value of an output is in the state only, and so are those that come when the second number is used up.
OUTPUT_MOST = 1 << 20
OUTPUTS_TOTAL = 8 << 20
OUTPUTS_MOST = 10_000
#: No client reads longer numbers: a double ends at 309 digits.
OUTPUT_NUMBER_MOST = 320
RESOURCES_LISTED = 1_000
#: Pairs of module (or provider) and type that are counted; further ones are counted together.
KINDS_MOST = 5_000
OTHERS = "(others)"
DEPTH_MOST = 200
NUMBER_MOST = 1_000
WHOLE_MOST = 32 << 20
_BOUNDS = Bounds(DEPTH_MOST, NUMBER_MOST)
#: Texts of an output's value may be large, and are not looked into.
_OUTPUT_BOUNDS = Bounds(DEPTH_MOST, OUTPUT_NUMBER_MOST)
#: How much of outputs without their values, and of the outputs or one resource of a large state, may be kept.
_NAMES_MOST, _KEPT_MOST = 4 << 20, WHOLE_MOST
_OUTPUT_NAMES = {"outputs": 3}
_LARGE = {"outputs": EVERYTHING, "resources": EVERYTHING}
_BLOCK = 256 << 10
_TEXT_MOST = 255
_SERIAL_DIGITS = 19
_NOT_AS_WRITTEN = "its outputs or resources are not as terraform writes them"


class Unreadable(Exception):
    """Why the bytes are no state."""


@dataclass
class Output:
    """One root output. `value` is JSON text, `type` terraform's type expression: `"string"` or `["list", "string"]`.

    Where not `kept`, value and type are in the state only. A list that lacks a
    type makes the CLI read the state (terraform-cli.md 6.6).
    """

    name: str
    value: bytes = b"null"
    type: Any = None
    sensitive: bool = False
    kept: bool = True


@dataclass
class Summary:
    """What is kept of a state beside its bytes. `reason` says why its resources, and the values of its outputs, are not."""

    serial: int = -1
    lineage: str = ""
    terraform_version: str = ""
    version: int = 0
    is_encrypted: bool = False
    reason: str = ""
    outputs: list[Output] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    resource_count: int = 0
    providers: dict[str, dict[str, int]] = field(default_factory=dict)
    modules: dict[str, dict[str, int]] = field(default_factory=dict)


class _Output(msgspec.Struct):
    value: msgspec.Raw = msgspec.Raw(b"null")
    type: msgspec.Raw = msgspec.Raw(b"null")
    sensitive: msgspec.Raw = msgspec.Raw(b"false")


class _Instance(msgspec.Struct):
    pass


class _Resource(msgspec.Struct):
    mode: str = "managed"
    type: str = ""
    name: str = ""
    module: str = "root"
    provider: str = ""
    instances: list[_Instance] | None = None


class _State(msgspec.Struct):
    outputs: dict[str, _Output] | None = None
    resources: list[_Resource] | None = None


_STATE = msgspec.json.Decoder(_State)
_OUTPUTS = msgspec.json.Decoder(dict[str, _Output])
_RESOURCES = msgspec.json.Decoder(list[_Resource])


class _Unfit(Exception):
    """Why there is no summary of the resources; the state itself may be one."""


def summarise(source: Any) -> Summary:
    """Reads a state from a file-like object. Raises Unreadable, which never quotes what was sent: it may be secret."""
    return _Reading().read(source)


def head(source: Any, reason: str) -> Summary:
    """The same without any parser but that of a few small texts: for a state that no reader could summarise."""
    return _Reading(reason).read(source)


class _Reading:
    """Of one state."""

    def __init__(self, reason: str = "") -> None:
        self._counts = _Counts()
        self._whole: bytearray | None = bytearray()  #: all of it, while it is small enough
        self._names = Skeleton(_OUTPUT_NAMES, _NAMES_MOST)
        self._large: Skeleton | None = None
        self._scanner = Scanner(_BOUNDS, self._watch)
        self._reason = reason

    def read(self, source: Any) -> Summary:
        try:
            while chunk := source.read(_BLOCK):
                self._scanner.feed(chunk)
                self._take(chunk)
            self._scanner.end()
        except Malformed as error:
            raise Unreadable(f"the state is not JSON: {error}") from None
        summary = _head(bytes(self._names.head))
        try:
            if self._reason:
                raise _Unfit(self._reason)
            self._parse(summary)
            self._counts.into(summary)
        except _Unfit as error:
            summary.reason = str(error)
            summary.outputs = self._only_names()
        return summary

    def _take(self, chunk: bytes) -> None:
        """Keeps what is parsed at the end."""
        self._reason = self._reason or (f"the state has {self._scanner.beyond}" if self._scanner.beyond else "")
        if self._reason:
            self._whole = self._large = None
        elif self._whole is not None:
            self._whole += chunk
            if len(self._whole) > WHOLE_MOST:
                large = Skeleton(_LARGE, _KEPT_MOST, "resources", self._batch)
                Scanner(_BOUNDS, large.watch).feed(bytes(self._whole))
                self._whole, self._large = None, large

    def _watch(self, part: Slice) -> None:
        self._names.watch(part)
        if self._large is not None:
            self._large.watch(part)

    def _batch(self, raw: bytes) -> None:
        if not self._reason and not self._scanner.beyond:
            try:
                self._counts.add(_decoded(_RESOURCES, raw))
            except _Unfit as error:
                self._reason = str(error)

    def _parse(self, summary: Summary) -> None:
        if self._large is not None:
            if self._large.cut:
                raise _Unfit(f"the state has {' and '.join(sorted(self._large.cut))} of more than {_KEPT_MOST} bytes")
            parts = self._large.members
            outputs = _decoded(_OUTPUTS, bytes(parts.get("outputs", b"{}")))
            self._counts.add(_decoded(_RESOURCES, b"[" + bytes(parts.get("resources", b"[]")).lstrip(b"[ \n\r\t,")))
        else:
            found = _decoded(_STATE, self._whole)
            outputs = found.outputs or {}
            self._counts.add(found.resources or [])
        summary.outputs = _outputs(outputs)

    def _only_names(self) -> list[Output]:
        """Of outputs whose values are not read."""
        raw = self._names.members.get("outputs", b"{}")
        try:
            found = _decoded(_OUTPUTS, bytes(raw))
            return [_left_out(name, sent) for name, sent in list(found.items())[:OUTPUTS_MOST]]
        except (_Unfit, Unreadable):
            return []


def _decoded(decoder: Any, raw: Any) -> Any:
    """Raises Unreadable for what is no JSON, _Unfit for what is none of the form."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError:
        raise _Unfit(_NOT_AS_WRITTEN) from None
    except RecursionError:
        raise _Unfit("the state is nested too deep") from None
    except MemoryError:
        raise _Unfit("reading the state takes more memory than is given for it") from None
    except (msgspec.DecodeError, ValueError):
        raise Unreadable("the state is not JSON") from None


def _head(raw: bytes) -> Summary:
    """The state's own members. `raw` is small, and flat."""
    try:
        pairs = json.loads(raw, object_pairs_hook=_Pairs, parse_int=_whole, parse_float=_nothing)
    except (ValueError, RecursionError):
        raise Unreadable("the state is not JSON") from None
    if not isinstance(pairs, _Pairs):
        raise Unreadable("the state is not a JSON object")
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unreadable("the state has a member twice")
    serial, lineage, version = found.get("serial"), found.get("lineage", ""), found.get("version")
    if serial is None and "serial" not in found:
        raise Unreadable("the state has no serial")
    if not isinstance(serial, int) or isinstance(serial, bool) or not 0 <= serial < 1 << 63:
        raise Unreadable("the state's serial is no whole number below 2^63")
    if not isinstance(lineage, str) or len(lineage) > _TEXT_MOST or lineage != _storable(lineage):
        raise Unreadable(f"the state's lineage is no text of at most {_TEXT_MOST} characters")
    wrote = found.get("terraform_version")
    return Summary(
        serial=serial,
        lineage=lineage,
        terraform_version=_storable(wrote[:_TEXT_MOST]) if isinstance(wrote, str) else "",
        version=version if isinstance(version, int) else 0,
        is_encrypted="encrypted_data" in found,
    )


def _storable(text: str) -> str:
    """Without what no database takes: NULs, and halves of characters that stand alone."""
    return text.replace("\0", "").encode("utf-8", "ignore").decode()


class _Pairs(list[tuple[str, Any]]):
    """An object as it was written."""


def _whole(text: str) -> int | None:
    return int(text) if len(text) <= _SERIAL_DIGITS else None


def _nothing(_: str) -> None:
    """In place of a number that is not asked for: it may be of any size."""


def _outputs(sent: dict[str, _Output]) -> list[Output]:
    """As many as are kept. One that does not fit shows that the list is not all."""
    found: list[Output] = []
    left = OUTPUTS_TOTAL
    for name, one in sent.items():
        if len(found) == OUTPUTS_MOST:
            found[-1] = Output(found[-1].name, sensitive=found[-1].sensitive, kept=False)
            break
        output, size = _output(name, one, min(left, OUTPUT_MOST))
        left -= size
        found.append(output)
    return found


def _output(name: str, sent: _Output, most: int) -> tuple[Output, int]:
    """One output, and how much it takes of what is kept of all."""
    size = len(memoryview(sent.value)) + len(memoryview(sent.type))
    if size > 2 * most or len(name) > _TEXT_MOST:  # blanks are taken out of what is looked at
        return _left_out(name, sent), 0
    try:
        value, kind = _plain(sent.value), _plain(sent.type)
        size = len(value) + len(kind)
        if size > most or b"\\u0000" in kind:  # PostgreSQL has no place for a NUL in text
            return _left_out(name, sent), 0
        _check_numbers(value)
        _check_numbers(kind)
        kept = Output(_name(name), value, msgspec.json.decode(kind), _is_sensitive(sent))
    except (ValueError, RecursionError):
        return _left_out(name, sent), 0
    return kept, size


def _check_numbers(text: bytes) -> None:
    """Raises ValueError where one is longer than clients read."""
    if len(text) > OUTPUT_NUMBER_MOST:
        check(text, _OUTPUT_BOUNDS)


def _plain(raw: msgspec.Raw) -> bytes:
    """JSON without blanks; numbers stay as they were written."""
    return msgspec.json.format(bytes(raw), indent=-1)


def _left_out(name: str, sent: _Output) -> Output:
    return Output(_name(name), sensitive=_is_sensitive(sent), kept=False)


def _is_sensitive(sent: _Output) -> bool:
    return bytes(memoryview(sent.sensitive)[:8]).strip() != b"false"


def _name(text: str) -> str:
    """Text of a bounded length that any database takes. Raises _Unfit."""
    if "\0" in text:
        raise _Unfit("a name in the state holds a NUL")
    return text[:_TEXT_MOST]


class _Counts:
    """What is told of managed resources."""

    def __init__(self) -> None:
        self._count = 0
        self._listed: list[dict[str, Any]] = []
        self._providers: Counter[tuple[str, str]] = Counter()
        self._modules: Counter[tuple[str, str]] = Counter()

    def add(self, resources: list[_Resource]) -> None:
        for each in resources:
            if each.mode != "managed":
                continue
            count = len(each.instances or ())
            kind, module, provider = _name(each.type), _name(each.module), _name(each.provider)
            self._count += count
            _counted(self._providers, (provider, kind), count)
            _counted(self._modules, (module, kind), count)
            if len(self._listed) < RESOURCES_LISTED:
                name = _name(each.name)
                self._listed.append(
                    {"name": name, "type": kind, "count": count, "module": module, "provider": provider}
                )

    def into(self, summary: Summary) -> None:
        summary.resources, summary.resource_count = self._listed, self._count
        for pairs, found in ((self._providers, summary.providers), (self._modules, summary.modules)):
            for (name, kind), count in pairs.items():
                found.setdefault(name, {})[kind] = count


def _counted(pairs: Counter[tuple[str, str]], pair: tuple[str, str], count: int) -> None:
    pairs[pair if pair in pairs or len(pairs) < KINDS_MOST else (OTHERS, OTHERS)] += count


def type_name(detailed: Any, value: bytes) -> str:
    """go-tfe's word for an output's type: string, number, boolean, array or object. `value` is JSON."""
    kind = detailed[0] if isinstance(detailed, list) and detailed else detailed
    names = {"string": "string", "number": "number", "bool": "boolean"}
    if isinstance(kind, str) and kind in names:
        return names[kind]
    if kind in ("list", "set", "tuple"):
        return "array"
    if kind in ("map", "object"):
        return "object"
    first = value[:1]
    return {b'"': "string", b"t": "boolean", b"f": "boolean", b"[": "array"}.get(
        first, "number" if first.isdigit() or first == b"-" else "object"
    )


def summarised(source: Any) -> list[bytes]:
    """What a worker makes of a state: a summary, or why there is none. `read_summary` reads it."""
    try:
        return [msgspec.json.encode({"summary": summarise(source)})]
    except Unreadable as error:
        return [msgspec.json.encode({"unreadable": str(error)})]


class _Answer(msgspec.Struct):
    summary: Summary | None = None
    unreadable: str = ""


def read_summary(raw: bytes) -> Summary:
    """Raises Unreadable."""
    answer = msgspec.json.decode(raw, type=_Answer)
    if answer.summary is None:
        raise Unreadable(answer.unreadable)
    return answer.summary
