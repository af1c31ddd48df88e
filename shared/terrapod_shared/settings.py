"""Settings of a program out of TOML and variables: what is wrong with a value, in words and with what is allowed."""

import difflib
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

#: As much of a wrong value as is shown.
_SHOWN = 60
#: More than this is no file of settings.
_FILE_MOST = 1 << 20
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


def read(file: Path) -> dict[str, Any]:
    """The table of a TOML file. Raises OSError, and ValueError that names the file."""
    with file.open("rb") as opened:
        raw = opened.read(_FILE_MOST + 1)
    if len(raw) > _FILE_MOST:
        raise ValueError(f"{file}: is larger than {_FILE_MOST >> 20} MiB, and so no file of settings")
    try:
        return tomllib.loads(raw.decode())
    except RecursionError:
        raise ValueError(f"{file}: is nested too deep") from None
    except ValueError as error:  # of TOML or UTF-8
        raise ValueError(f"{file}: {error}") from None


def is_table(kind: Any) -> bool:
    """Whether settings of that kind are a table of others."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def table_of_list(kind: Any) -> type[msgspec.Struct] | None:
    """The table that each entry of a list is, where they are tables."""
    if get_origin(kind) not in (tuple, list):
        return None
    entry = get_args(kind)[0]
    return entry if is_table(entry) else None


def unknown(name: str, known: Iterable[str]) -> str:
    """Says that there is no such setting, and which one may have been meant."""
    close = difflib.get_close_matches(name, list(known), 1)
    return "there is no such setting" + (f"; did you mean {close[0]}?" if close else "")


def checked(table: Mapping[str, Any], struct: type[msgspec.Struct], at: str, mistakes: list[str]) -> dict[str, Any]:
    """What of a table can be used, each member checked by itself, so that all mistakes are told at once."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    kept: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{at}{key}"
        if key not in fields:
            mistakes.append(f"{name}: {unknown(key, fields)}")
            continue
        kind = fields[key].type
        if is_table(kind):
            if isinstance(value, Mapping):
                kept[key] = checked(value, kind, f"{name}.", mistakes)
            else:
                mistakes.append(f"{name}: must be a table, [{name}]")
        elif (entry := table_of_list(kind)) is not None:
            kept[key] = _entries(value, entry, name, mistakes)
        else:
            try:
                kept[key] = msgspec.convert(value, kind)
            except msgspec.ValidationError:
                mistakes.append(f"{name}: must be {wanted(kind)}, and is {shown(value)}")
    return kept


def _entries(value: Any, entry: type[msgspec.Struct], name: str, mistakes: list[str]) -> list[Any]:
    """Tables of a list; one with a mistake is left out, since what else is checked needs whole ones."""
    if not isinstance(value, Sequence) or not all(isinstance(each, Mapping) for each in value):
        mistakes.append(f"{name}: must be tables [[{name}]] of the settings file")
        return []
    found = []
    for number, each in enumerate(value, 1):
        own: list[str] = []
        at = f"{name}[{number}]."
        kept = checked(each, entry, at, own)
        own += [
            f"{at}{field.encode_name}: is missing"
            for field in msgspec.structs.fields(entry)
            if field.required and field.encode_name not in each
        ]
        mistakes += own
        found += [] if own else [kept]
    return found


def wanted(kind: Any) -> str:
    """What values of that kind are, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _any_of([str(each) for each in arguments])
    if origin in (Union, types.UnionType):
        return " or ".join(wanted(each) for each in arguments if each is not type(None))
    if origin in (tuple, list):
        return "a list of texts" if arguments[0] is str else f"a list, each {wanted(arguments[0])}"
    if origin is dict:
        return "a table"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}.get(
        kind, "of another kind"
    )


def _any_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def shown(value: Any) -> str:
    """A wrong value as a message may hold it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def from_text(text: str, kind: Any) -> Any:
    """The value that a variable's text means. Raises ValueError that says what is wanted."""
    if kind is bool:
        lowered = text.strip().lower()
        if lowered in _TRUE | _FALSE:
            return lowered in _TRUE
    elif kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    elif get_origin(kind) is tuple and get_args(kind)[0] is str:
        return [part.strip() for part in text.split(",") if part.strip()]
    elif get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
    elif kind is str:
        return text
    else:
        raise ValueError("can only be set in the settings file")
    raise ValueError(f"must be {wanted(kind)}, and is {shown(text)}")
