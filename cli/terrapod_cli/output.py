"""Rows as a rich table or as JSON; the same rows for both, without secrets and without terminal escapes."""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from terrapod_cli import terminal
from terrapod_shared.client import Resource
from terrapod_shared.errors import TerrapodError

Row = dict[str, Any]
#: A header, and the member of a row that stands below it, or a function of the row.
Columns = Sequence[tuple[str, str | Callable[[Row], Any]]]

#: Attributes that are a right in themselves: never shown, but a new token, once.
_SECRET = frozenset(
    {
        "token",
        "log-read-url",
        "upload-url",
        "hosted-state-download-url",
        "hosted-state-upload-url",
        "hosted-json-state-download-url",
        "hosted-json-state-upload-url",
    }
)
_PIPE_WIDTH = 10_000
#: Columns whose words are of use only if they can be copied.
_WHOLE = frozenset({"ID", "NAME", "EMAIL"})
_FRACTION = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d+Z")
_STYLES = {
    "applied": "green", "planned_and_finished": "green", "online": "green", "uploaded": "green",
    "errored": "red", "canceled": "red", "discarded": "red", "offline": "red", "revoked": "red",
    "planned": "yellow", "planned_and_saved": "yellow", "draining": "yellow",
    "planning": "cyan", "applying": "cyan",
}  # fmt: skip


def flat(resource: Resource, *, reveal: bool = False) -> Row:
    """`id`, the attributes, and for each relation the id or ids at its other side; `reveal` keeps a new token."""
    row: Row = {"id": resource["id"]}
    for name, value in resource.get("attributes", {}).items():
        if name not in _SECRET or (reveal and name == "token" and value):
            row[name] = value
    for name, relation in resource.get("relationships", {}).items():
        data = relation.get("data") if isinstance(relation, Mapping) else None
        if isinstance(data, list):
            row.setdefault(name, [item["id"] for item in data])
        elif isinstance(data, Mapping) or "data" in relation:
            row.setdefault(name, data["id"] if data else None)
    return row


def words(value: Any) -> str:
    """A value as a table shows it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={word}" if word else str(key) for key, word in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(words(item) for item in value) or "-"
    return _FRACTION.sub(r"\1Z", terminal.plain(str(value)))


class Output:
    """Where a command's answer goes: stdout. What is said beside it goes to stderr."""

    def __init__(self, *, as_json: bool = False, colour: bool = True) -> None:
        self.as_json = as_json
        self._said = ""
        self.colour = colour and sys.stdout.isatty() and "NO_COLOR" not in os.environ and not as_json
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self._console = Console(no_color=not self.colour, width=width, highlight=False, markup=False)
        self.side = Console(stderr=True, no_color=not colour or None, highlight=False, markup=False)

    def rows(self, rows: Sequence[Row], columns: Columns, total: int | None = None) -> None:
        """A list; `total` is how many there are, where not all were asked for."""
        if self.as_json:
            self._json(rows)
            return
        table = Table(box=None, header_style="bold", pad_edge=False)
        for header, _ in columns:
            table.add_column(header, overflow="fold", no_wrap=header in _WHOLE)
        for row in rows:
            table.add_row(*(_cell(row, key) for _, key in columns))
        self._console.print(table)
        if total is not None and total > len(rows):
            self.say(f"{len(rows)} of {total}; --limit shows more")

    def row(self, row: Row, fields: Columns) -> None:
        """One thing, a line for each field."""
        if self.as_json:
            self._json(row)
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for header, key in fields:
            table.add_row(header, _cell(row, key))
        self._console.print(table)

    def done(self, row: Row, sentence: str) -> None:
        """What was changed: the thing itself, or a sentence."""
        if self.as_json:
            self._json(row)
        else:
            self._console.print(Text(terminal.plain(sentence)), soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Says something beside the answer, a line or more."""
        shown = "\n".join(map(terminal.plain, text.split("\n")))
        self.side.print(Text(shown, style=style), soft_wrap=True)

    def told(self, error: TerrapodError) -> None:
        """Says why a call is made again, once until another reason comes."""
        if error.detail != self._said:
            self._said = error.detail
            self.say(f"{error.detail}; trying again", "dim")

    def error(self, error: TerrapodError, code: int) -> None:
        if self.as_json:
            entry = {"code": code, "title": error.title, "detail": error.detail, "pointer": error.pointer}
            sys.stderr.write(json.dumps({"error": entry}) + "\n")
            return
        where = f" ({error.pointer})" if error.pointer else ""
        self.say(f"error: {error.detail}{where}", "red")

    def _json(self, value: Any) -> None:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _cell(row: Row, key: str | Callable[[Row], Any]) -> Text:
    value = row.get(key) if isinstance(key, str) else key(row)
    text = words(value)
    return Text(text, style=_STYLES.get(text, ""))
