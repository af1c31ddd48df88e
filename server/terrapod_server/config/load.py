"""Settings are read once, from a TOML file and the environment.

`TERRAPOD_…` variables win over the file; `__` goes one level down, so that
`TERRAPOD_STORAGE__BUCKET` is `bucket` of the table `[storage]`. Every mistake
is reported at once, unknown names included.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from terrapod_server.config import check
from terrapod_server.config.settings import Config
from terrapod_shared import settings
from terrapod_shared.operator_errors import explain_os_error

#: Variables of ours that are no settings: where the file is, and the command line's.
_NOT_SETTINGS = frozenset({"TERRAPOD_CONFIG", "TERRAPOD_TOKEN", "TERRAPOD_ADDRESS"})


def own_file(data: Path) -> Path | None:
    """Settings in a data folder, if it has any. A link that leads nowhere is there: its settings are not to be left out."""
    file = data / "server.toml"
    return file if file.exists() or file.is_symlink() else None


class Mistakes(Exception):
    """What is wrong with the settings, a line each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def _from_environment(environ: Mapping[str, str], mistakes: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith("TERRAPOD_") or name.startswith(("TERRAPOD_LISTENER_", "TERRAPOD_TEST_")):
            continue
        if name in _NOT_SETTINGS:
            continue
        path = name.removeprefix("TERRAPOD_").lower().split("__")
        kind: Any = Config
        for part in path:
            kind = msgspec.structs.fields(kind) if settings.is_table(kind) else ()
            kind = next((field.type for field in kind if field.name == part), None)
        if kind is None or settings.is_table(kind):
            mistakes.append(f"{name}: {settings.unknown(name, _variables(Config))}")
            continue
        try:
            value = settings.from_text(text, kind)
        except ValueError as error:
            mistakes.append(f"{name}: {error}")
            continue
        table = found
        for part in path[:-1]:
            table = table.setdefault(part, {})
        table[path[-1]] = value
    return found


def _variables(table: type[msgspec.Struct], at: str = "TERRAPOD_") -> Iterator[str]:
    """The names of all variables that set something."""
    for field in msgspec.structs.fields(table):
        name = f"{at}{field.name.upper()}"
        if settings.is_table(field.type):
            yield from _variables(field.type, f"{name}__")
        elif settings.table_of_list(field.type) is None:
            yield name


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def load(
    environ: Mapping[str, str], file: Path | None = None, *, makes_certificate: bool = False, **over: Any
) -> Config:
    """Settings from `file`, then the environment, then `over`; raises `Mistakes` with all of them.

    `makes_certificate`: the caller makes one once the database is open, so none has to be there yet.
    """
    mistakes: list[str] = []
    table: dict[str, Any] = {}
    if file is not None:
        try:
            table = settings.read(file)
        except OSError as error:
            mistakes.append(explain_os_error(error))
        except ValueError as error:
            mistakes.append(str(error))
    table = settings.checked(table, Config, "", mistakes)
    table = _merge(table, _from_environment(environ, mistakes))
    table = _merge(table, settings.checked(over, Config, "", mistakes))
    config = msgspec.convert(table, Config)
    mistakes += [] if makes_certificate else check.tls(config)
    mistakes += check.contradictions(config)
    if mistakes:
        raise Mistakes(mistakes)
    return config
