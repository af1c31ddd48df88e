"""Writes the document of all settings from their declarations to standard output: `make docs`."""

import inspect
import re
import sys
from typing import Any, get_args, get_origin

import msgspec

from terrapod_server.config.settings import Config, Section

HEAD = """\
# Settings of the server

Written by `make docs` from `server/terrapod_server/config/settings.py`; do not edit.

`terrapod-server serve --config FILE` reads a TOML file, and then the environment, which wins. `terrapod-server check`
reports every mistake in both at once, and with `--connect` tries what they name. `up` needs neither: it takes `DIR/server.toml` where there is one.
"""
_FIELD = re.compile(r"^    (\w+): .*?#: (.*)$", re.MULTILINE)


def _shown(value: Any) -> str:
    text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _section(struct: type[Section], at: str, path: tuple[str, ...], *, many: bool = False) -> list[str]:
    """`many`: it is one table of a list, which no variable can set."""
    documented: dict[str, str] = {}
    for part in struct.__mro__:
        if _is_section(part) and part is not Section:
            documented = dict(_FIELD.findall(inspect.getsource(part))) | documented
    lines = ["", f"## {at or 'Top level'}", "", str(struct.__doc__), ""]
    heads = ("Setting", "Default", "What it is") if many else ("Setting", "Variable", "Default", "What it is")
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    below = []
    for field in msgspec.structs.fields(struct):
        here = (*path, field.name)
        if _is_section(field.type):
            below += _section(field.type, f"[{'.'.join(here)}]", here)
            continue
        one = next(iter(get_args(field.type)), None) if get_origin(field.type) is tuple else None
        if one is not None and _is_section(one):
            below += _section(one, f"[[{'.'.join(here)}]]", here, many=True)
            continue
        if isinstance(field.default, tuple):
            default = " ".join(f"`{value}`" for value in field.default)
        else:
            default = "needed" if field.default is msgspec.NODEFAULT else _shown(field.default)
        variable = () if many else ("`TERRAPOD_" + "__".join(here).upper() + "`",)
        lines.append(f"| {' | '.join((f'`{field.name}`', *variable, default, documented[field.name]))} |")
    return lines + below


sys.stdout.write(HEAD + "\n".join(_section(Config, "", ())) + "\n")
