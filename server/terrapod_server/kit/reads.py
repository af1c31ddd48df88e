"""Rows as the database gives them: the short way of reading for answers that are asked for all the time.

Building the statement and making a model's object of a wide row takes the ORM
most of such a request's time. Here a statement is text, a row stays a tuple,
and it becomes an object only where somebody looks into it. The tuple also
stands for all that an answer shows of the row, so `documents` remembers what
it once rendered of it: a changed row is another tuple.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from tortoise.fields import JSONField
from tortoise.models import Model

from terrapod_server.kit import database
from terrapod_server.kit.call import Call
from terrapod_server.kit.jsonapi import Level, Page

M = TypeVar("M", bound=Model)


class Record(Generic[M]):
    """A row. `level` is the caller's level on it, where a list holds rows of different levels."""

    __slots__ = ("_row", "level", "model", "raw")

    def __init__(self, model: type[M], raw: tuple[Any, ...], level: Level | None = None) -> None:
        self.model, self.raw, self.level = model, raw, level
        self._row: M | None = None

    def __getattr__(self, name: str) -> Any:
        """A column, without making the model's object."""
        place, is_json = _places(self.model).get(name, (-1, False))
        if place < 0:
            raise AttributeError(name)
        value = self.raw[place]
        return msgspec.json.decode(value) if is_json and isinstance(value, str) else value

    @property
    def row(self) -> M:
        """The row as the model's object."""
        if self._row is None:
            columns = self.model._meta.fields_db_projection.values()  # noqa: SLF001  the ORM has no public word for it
            self._row = self.model._init_from_db(**dict(zip(columns, self.raw, strict=True)))  # noqa: SLF001
            if self.level is not None:
                self._row.level = self.level
        return self._row


@functools.cache
def _places(model: type[Model]) -> dict[str, tuple[int, bool]]:
    """Where a field's column stands in a row, and whether it is JSON."""
    fields = model._meta.fields_map  # noqa: SLF001
    return {
        name: (place, isinstance(fields[name], JSONField))
        for place, name in enumerate(model._meta.fields_db_projection)  # noqa: SLF001
    }


@dataclass(frozen=True)
class Where:
    """A condition in SQL about the table `t`, with `$1`, `$2` … for its values."""

    sql: str = ""
    values: tuple[Any, ...] = ()

    def __and__(self, other: "Where") -> "Where":
        """Both; the other's marks are counted on."""
        if not self.sql or not other.sql:
            return self if self.sql else other
        return Where(f"({self.sql}) AND ({database.shifted(other.sql, len(self.values))})", self.values + other.values)


def like(column: str, text: str, *, is_whole: bool = False) -> Where:
    """Rows in whose column the text is found (or is all), whatever the case; `*` in it stands for anything."""
    pattern = re.sub(r"[\\%_]", lambda found: "\\" + found[0], text).replace("*", "%")
    return Where(f"upper({column}) LIKE upper($1) ESCAPE '\\'", (pattern if is_whole else f"%{pattern}%",))


class Reader(Generic[M]):
    """Reads rows of one model."""

    def __init__(self, model: type[M]) -> None:
        self.model = model
        columns = model._meta.fields_db_projection.values()  # noqa: SLF001
        self._columns = ", ".join(f't."{column}"' for column in columns)
        self._table = f'"{model._meta.db_table}" t'  # noqa: SLF001
        self._width = len(columns)

    async def one(self, where: str, *values: Any, joined: str = "") -> Record[M] | None:
        """The only row, or None. `joined` are further tables, with their conditions."""
        sql = f"SELECT {self._columns} FROM {self._table} {joined} WHERE {where}"  # noqa: S608  our own words
        rows = await database.rows(sql, values)
        return Record(self.model, tuple(rows[0])) if rows else None

    async def page(self, call: Call, where: Where, order: str) -> Page:
        """The page that the client asked for, and the count of all, in one statement."""
        page = call.page
        condition = f"WHERE {where.sql}" if where.sql else ""
        count = f"SELECT count(*) FROM {self._table} {condition}"  # noqa: S608
        sql = (
            f"SELECT {self._columns}, ({count}) FROM {self._table} {condition} "  # noqa: S608
            f"ORDER BY {order} LIMIT {page.size} OFFSET {page.offset}"
        )
        found = await database.rows(sql, where.values)
        if not found and page.offset:  # past the end, where no row carries the count
            return Page([], int((await database.rows(count, where.values))[0][0]))
        return Page(self._stored(found), int(found[0][self._width]) if found else 0)

    def _stored(self, found: Sequence[Any]) -> list[Record[M]]:
        return [Record(self.model, tuple(row)[: self._width]) for row in found]


__all__ = ["Reader", "Record", "Where", "like"]
