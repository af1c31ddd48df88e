"""Rows as a table or as JSON; the same rows for both, without secrets and without terminal escapes."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from terrapod_shared import clock, terminal
from terrapod_shared.client import Resource
from terrapod_shared.errors import TerrapodError

Row = dict[str, Any]


class Time(str):
    """A time of RFC 3339 that is shown to people."""

    __slots__ = ()


class Named(NamedTuple):
    """A relation whose other side is shown by name; by its id where the name is not known."""

    relation: str


#: The member of a row that is shown, a function of the row, or a relation.
Value = str | Named | Callable[[Row], Any]
#: One thing: what stands before each value.
Fields = Sequence[tuple[str, Value]]


class Keep(Enum):
    """How much of a column is shown where the terminal is narrow."""

    ALL = "ids that commands take: of use only if they can be copied"
    LONG = "names: shortened last"
    SHORT = "shortened first"
    EXTRA = "left out"


class Column(NamedTuple):
    """A column of a list. `only_ids`: shown only where ids are asked for."""

    header: str
    value: Value
    keep: Keep = Keep.SHORT
    only_ids: bool = False


Columns = Sequence[Column]
#: Letters that columns are shortened to, in this order.
_SHORTEN = tuple(zip(itertools.cycle((Keep.SHORT, Keep.LONG)), (20, 20, 12, 14, 9, 12, 4, 8), strict=False))
#: Where not all columns can have so many letters, some are left out.
_READABLE = 12
_GAP = 2

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
#: What is said while a question is open: so many texts are kept for later.
_HELD_MOST = 20
#: The clocks of server and client may differ by so much.
_NOW_S = 10
#: Spans of time: up to so many seconds, counted in so many, and their letter.
_SPANS = ((60, 1, "s"), (3600, 60, "m"), (48 * 3600, 3600, "h"), (100 * 86400, 86400, "d"))
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


def relative(text: str, now: datetime) -> str:
    """`now`, `5m ago`, `in 3h`; the day of what is months away. Text that is no time stays as it is."""
    try:
        at = datetime.fromisoformat(text)
        day, seconds = at.astimezone(UTC).date().isoformat(), (now - at).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return text
    if abs(seconds) < _NOW_S:
        return "now"
    for most, unit, letter in _SPANS:
        if abs(seconds) < most:
            count = int(abs(seconds) // unit)
            return f"{count}{letter} ago" if seconds >= 0 else f"in {count}{letter}"
    return day


def fitted(columns: Sequence[tuple[int, Keep]], width: int) -> dict[int, int]:
    """Widths of those columns that are shown, by place, such that they fit where that can be.

    `columns`: the longest text of each, and how much of it is to be kept.
    """

    def room() -> int:
        return width - _GAP * (len(found) - 1)

    found = {place: longest for place, (longest, _) in enumerate(columns)}
    for place in reversed(range(len(columns))):
        readable = sum(columns[p][0] if columns[p][1] is Keep.ALL else min(columns[p][0], _READABLE) for p in found)
        if columns[place][1] is Keep.EXTRA and readable > room():
            del found[place]
    for keep, least in _SHORTEN:
        kinds = {Keep.SHORT, Keep.EXTRA} if keep is Keep.SHORT else {keep}
        places = [place for place in found if columns[place][1] in kinds]
        for place in places:
            found[place] = min(found[place], max(width, 1))
        while sum(found.values()) > room() and (widest := max(places, key=found.__getitem__, default=None)) is not None:
            if found[widest] <= least:
                break
            found[widest] -= 1
    return found


def _is_time(value: Value) -> bool:
    return isinstance(value, str) and value.endswith(("-at", "timestamp"))


class Output:
    """Where a command's answer goes: stdout. What is said beside it goes to stderr.

    On a terminal lists fit its width and times are relative; elsewhere nothing is cut.
    """

    def __init__(self, *, as_json: bool = False, colour: bool = True, ids: bool = False) -> None:
        self.as_json, self._ids = as_json, ids
        self._said = ""
        self._free = asyncio.Event()
        self._free.set()
        self._held: list[tuple[str, str]] = []
        self.is_terminal = sys.stdout.isatty()
        self.colour = colour and self.is_terminal and "NO_COLOR" not in os.environ and not as_json
        width = None if self.is_terminal else _PIPE_WIDTH
        self._console = Console(no_color=not self.colour, width=width, highlight=False, markup=False)
        self.side = Console(stderr=True, no_color=not colour or None, highlight=False, markup=False)

    def rows(self, rows: Sequence[Row], columns: Columns, total: int | None = None) -> None:
        """A list; `total` is how many there are, where not all were asked for."""
        if self.as_json:
            self._json(rows)
            return
        for line in self._table(rows, [column for column in columns if self._ids or not column.only_ids]):
            self._console.print(line, soft_wrap=True)
        if total is not None and total > len(rows):
            self.say(f"{len(rows)} of {total}; --limit shows more")

    def _table(self, rows: Sequence[Row], columns: Columns) -> Iterator[Text]:
        """A line for the headers and one for each row."""
        texts = [[self._text(row, column.value, now=clock.now()) for column in columns] for row in rows]
        natural = [
            max(cell_len(column.header), *(cell_len(cells[place]) for cells in texts), 0)
            for place, column in enumerate(columns)
        ]
        widths = dict(enumerate(natural))
        if self.is_terminal and sum(natural) + _GAP * (len(natural) - 1) > self._console.width:
            keeps = [self._keep(column, [cells[place] for cells in texts]) for place, column in enumerate(columns)]
            widths = fitted(list(zip(natural, keeps, strict=True)), self._console.width)
        headers = [Text(column.header, "bold") for column in columns]
        for cells in (headers, *([Text(text, _STYLES.get(text, "")) for text in each] for each in texts)):
            line = Text()
            for place in widths:
                is_last = place == max(widths)
                cells[place].truncate(widths[place], overflow="ellipsis", pad=not is_last)
                line.append_text(cells[place]).append("" if is_last else " " * _GAP)
            yield line

    def _keep(self, column: Column, texts: Sequence[str]) -> Keep:
        if all(text == "-" for text in texts):
            return Keep.EXTRA
        if self._ids and isinstance(column.value, Named):
            return Keep.ALL
        return Keep.ALL if _is_time(column.value) and column.keep is Keep.SHORT else column.keep

    def _text(self, row: Row, value: Value, *, now: datetime | None = None) -> str:
        """A value as text. `now`: in a list, which has no room for a name and an id, or a whole time."""
        if isinstance(value, Named):
            return self._name(row, value.relation, in_list=now is not None)
        found = row.get(value) if isinstance(value, str) else value(row)
        is_time = isinstance(found, Time) or _is_time(value)
        text = words(found)
        if not (is_time and found and self.is_terminal):
            return text
        return relative(text, now) if now else f"{text} ({relative(text, clock.now())})"

    def _name(self, row: Row, relation: str, *, in_list: bool) -> str:
        ids, names = row.get(relation), row.get(f"{relation}-name")
        if not names or (self._ids and in_list):
            return words(ids)
        return f"{words(names)} ({words(ids)})" if self._ids else words(names)

    def row(self, row: Row, fields: Fields) -> None:
        """One thing, a line for each field."""
        if self.as_json:
            self._json(row)
            return
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for header, key in fields:
            text = self._text(row, key)
            table.add_row(header, Text(text, style=_STYLES.get(text, "")))
        self._console.print(table)

    def done(self, row: Row, sentence: str) -> None:
        """What was changed: the thing itself, or a sentence."""
        if self.as_json:
            self._json(row)
        else:
            self._console.print(Text(terminal.plain(sentence)), soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Says something beside the answer, a line or more; once a question that is open has been answered."""
        if not self._free.is_set():
            if (text, style) not in self._held:
                self._held = [*self._held, (text, style)][-_HELD_MOST:]
            return
        shown = "\n".join(map(terminal.plain, text.split("\n")))
        self.side.print(Text(shown, style=style), soft_wrap=True)

    @contextlib.contextmanager
    def question(self) -> Iterator[None]:
        """Nothing is written over a question: within, what is said is kept for later, and logs wait (`free`)."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()
            held, self._held = self._held, []
            for text, style in held:
                self.say(text, style)

    async def free(self) -> None:
        """Waits until no question is open."""
        await self._free.wait()

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
