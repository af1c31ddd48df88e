"""Writes the document of all settings from their declarations to standard output: `make docs`."""

import inspect
import re
import sys
from typing import Any

import msgspec

from terrapod_server.config import Config, Section

HEAD = """\
# Settings of the server

Written by `make docs` from `server/terrapod_server/config.py`; do not edit.

`terrapod-server serve --config FILE` reads a TOML file, and then the environment, which wins. `terrapod-server check`
reports every mistake in both at once. `up` needs neither: it takes `DIR/server.toml` where there is one.
"""
_FIELD = re.compile(r"^    (\w+): .*?#: (.*)$", re.MULTILINE)


def _shown(value: Any) -> str:
    text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


def _section(struct: type[Section], at: str, path: tuple[str, ...]) -> list[str]:
    documented = dict(_FIELD.findall(inspect.getsource(struct)))
    lines = ["", f"## {at or 'Top level'}", "", str(struct.__doc__), ""]
    lines += ["| Setting | Variable | Default | What it is |", "|---|---|---|---|"]
    below = []
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            below += _section(field.type, f"[{'.'.join([*path, field.name])}]", (*path, field.name))
            continue
        variable = "TERRAPOD_" + "__".join([*path, field.name]).upper()
        lines.append(f"| `{field.name}` | `{variable}` | {_shown(field.default)} | {documented[field.name]} |")
    return lines + below


sys.stdout.write(HEAD + "\n".join(_section(Config, "", ())) + "\n")
