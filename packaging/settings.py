"""Writes the document of all settings of a program from their declarations to standard output: `make docs`.

python packaging/settings.py server|listener
"""

import inspect
import re
import sys
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import msgspec

from terrapod_listener.config import Config as ListenerConfig
from terrapod_server.config.settings import Config as ServerConfig

SERVER = """\
# Settings of the server

Written by `make docs` from `server/terrapod_server/config/settings.py`; do not edit.

`terrapod-server serve --config FILE` reads a TOML file, and then the environment, which wins. `terrapod-server check`
reports every mistake in both at once, and with `--connect` tries what they name. `up` needs neither: it takes `DIR/server.toml` where there is one.
"""
LISTENER = """\
# Settings of the listener

Written by `make docs` from `listener/terrapod_listener/config.py`; do not edit.

`terrapod-listener run` reads `HOME/listener.toml` where there is one, and then the environment, which wins. A variable
holds a JSON value, or plain text where the setting is text; `TERRAPOD_LISTENER_ENGINES`, `…_ACCEPT` and `…_HOOKS` hold a
whole section. Every mistake in both is reported at once, and the listener does not start. [listener.md](listener.md)
explains which work is accepted, hooks and isolation.
"""
_FIELD = re.compile(r"^    (\w+): .*?#: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """Of one program. `nested`: variables reach settings in sections too, by `__`."""

    head: str
    config: type[msgspec.Struct]
    prefix: str
    nested: bool


PAGES = {
    "server": Page(SERVER, ServerConfig, "TERRAPOD_", nested=True),
    "listener": Page(LISTENER, ListenerConfig, "TERRAPOD_LISTENER_", nested=False),
}


def _shown(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if isinstance(value, tuple):
        return " ".join(f"`{each}`" for each in value)
    if value is msgspec.NODEFAULT:
        return "needed" if field.required else ""
    text = str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
    return f"`{text}`" if text else ""


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _documented(struct: type[msgspec.Struct]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in reversed(struct.__mro__):
        if part.__module__.startswith("terrapod_"):
            found |= _FIELD.findall(inspect.getsource(part))
    return found


def _section(
    page: Page, struct: type[msgspec.Struct], at: str, path: tuple[str, ...], *, many: bool = False
) -> list[str]:
    """`many`: it is one table of a list, which no variable can set."""
    documented, has_variable = _documented(struct), not many and (page.nested or not path)
    lines = ["", f"## {at or 'Top level'}", "", inspect.getdoc(struct) or "", ""]
    heads = ("Setting", "Variable", "Default", "What it is") if has_variable else ("Setting", "Default", "What it is")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    below = []
    for field in msgspec.structs.fields(struct):
        here = (*path, field.name)
        if section := _struct(field.type):
            below += _section(page, section, f"[{'.'.join(here)}]", here)
            continue
        one = next(iter(get_args(field.type)), None) if get_origin(field.type) in (tuple, list) else None
        if section := _struct(one):
            below += _section(page, section, f"[[{'.'.join(here)}]]", here, many=True)
            continue
        variable = (f"`{page.prefix}{'__'.join(here).upper()}`",) if has_variable else ()
        lines.append(f"| {' | '.join((f'`{field.name}`', *variable, _shown(field), documented[field.name]))} |")
    return lines + below


page = PAGES[sys.argv[1]]
sys.stdout.write(page.head + "\n".join(_section(page, page.config, "", ())) + "\n")
