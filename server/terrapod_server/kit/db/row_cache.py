"""Rows as the database gives them: the short way of reading for answers that are asked for all the time.

Building the statement and making a model's object of a wide row takes the ORM
most of such a request's time. Here a statement is text, a row stays what came
of the database, and it becomes an object only where somebody looks into it.
What came also stands for all that an answer shows of the row, so `render`
remembers what it once rendered of it: a changed row is another key.

PostgreSQL gives a tuple; SQLite the row as the text of a JSON array, since
making forty values of each row would cost more than finding it. A long page
asks for ids and revisions first, and then for the rows that it has not seen.
"""

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from tortoise import fields
from tortoise.models import Model

from terrapod_server.kit.caller import Level
from terrapod_server.kit.db import database, row_versions
from terrapod_server.kit.db.conditions import Where
from terrapod_server.kit.paging import PageRequest, Rows

M = TypeVar("M", bound=Model)
#: How many conditions' counts are remembered by one reader.
_COUNTS = 4096
_PAGES = 1024
#: How many rows are remembered by one reader: about 1.5 KiB each.
_ROWS = 2048


class Record(Generic[M]):
    """A row. `level` is the caller's level on it, where a list holds rows of different levels."""

    __slots__ = ("_row", "_values", "as_read", "level", "model")

    def __init__(self, model: type[M], as_read: str | tuple[Any, ...], level: Level | None = None) -> None:
        self.model, self.as_read, self.level = model, as_read, level
        self._row: M | None = None
        self._values: Sequence[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        """A column, without making the model's object."""
        place, field = _places(self.model).get(name, (-1, None))
        if place < 0:
            raise AttributeError(name)
        if self._values is None:
            self._values = msgspec.json.decode(self.as_read) if isinstance(self.as_read, str) else self.as_read
        value = self._values[place]
        return msgspec.json.decode(value) if isinstance(field, fields.JSONField) and isinstance(value, str) else value

    @property
    def row(self) -> M:
        """The row as the model's object."""
        if self._row is None:
            columns = _columns(self.model)
            values = _values(columns, self.as_read) if isinstance(self.as_read, str) else self.as_read
            self._row = self.model._init_from_db(**dict(zip(columns, values, strict=True)))  # noqa: SLF001
            if self.level is not None:
                self._row.level = self.level
        return self._row


def _columns(model: type[Model]) -> Mapping[str, Any]:
    """The fields by their columns, in the order in which they are selected."""
    meta = model._meta  # noqa: SLF001  the ORM has no public word for it
    return {column: meta.fields_map[name] for name, column in meta.fields_db_projection.items()}


@functools.cache
def _places(model: type[Model]) -> dict[str, tuple[int, Any]]:
    """Where a field's column stands in a row."""
    return {field.model_field_name: (place, field) for place, field in enumerate(_columns(model).values())}


def _values(columns: Mapping[str, Any], raw: str) -> list[Any]:
    """What the driver would have given, of a row in JSON."""
    return [
        bytes.fromhex(value) if isinstance(field, fields.BinaryField) and value is not None else value
        for field, value in zip(columns.values(), msgspec.json.decode(raw), strict=True)
    ]


class Reader(Generic[M]):
    """Reads rows of one model."""

    def __init__(self, model: type[M]) -> None:
        self.model = model
        columns = _columns(model)
        if any(isinstance(field, fields.FloatField) for field in columns.values()):
            message = f"{model.__name__} has a float, which SQLite's JSON rounds"
            raise TypeError(message)
        self._table = f'"{model._meta.db_table}" t'  # noqa: SLF001
        self._width = len(columns)
        self._selected = ", ".join(f't."{column}"' for column in columns)
        shown = (
            f'hex(t."{column}")' if isinstance(field, fields.BinaryField) else f't."{column}"'
            for column, field in columns.items()
        )
        self._packed = f"json_array({', '.join(shown)})"
        #: By condition: the generation in which it was counted, and how many there were.
        self._counts: OrderedDict[Where, tuple[int, int]] = OrderedDict()
        #: By condition, order and place: the ids that were there in that generation.
        self._pages: dict[tuple[Where, str, int, int], tuple[str, ...]] = {}
        #: Rows as they were read, by id and revision; the oldest go first.
        self._seen: OrderedDict[str, str | tuple[Any, ...]] = OrderedDict()

    async def one(self, where: str, *values: Any) -> Record[M] | None:
        """The only row, or None."""
        found, _ = await self._records("", f"WHERE {where}", values)
        return found[0] if found else None

    async def page(self, page: PageRequest, where: Where, order: str) -> Rows:
        """The page that the client asked for, and the count of all that match.

        A count is remembered as long as nothing that it depends on was changed
        (see `row_versions`): the statement that reads the rows tells whether it
        still holds. Else the same statement counts anew. Where looking for the
        rows costs much, which rows they were is remembered with it.
        """
        condition = f"WHERE {where.sql}" if where.sql else ""
        rest = f"{condition} ORDER BY {order} LIMIT {page.size} OFFSET {page.offset}"
        if not self._may_remember(where):
            return await self._counted(where, page, rest)
        generation = row_versions.read(self.model, *(where.depends or ()))
        asked = (where, order, page.offset, page.size)
        if known := self._counts.get(where):
            ids = self._pages.get(asked, ())
            marks = ", ".join(f"${place}" for place in range(1, len(ids) + 1))
            again = f'WHERE t."id" IN ({marks}) ORDER BY {order} LIMIT {page.size}' if ids else rest
            found = await self._seen_before(generation, again, ids or where.values)
            if found and found[1] == known[0]:
                return Rows(found[0], known[1])
        count = f"{generation}, (SELECT count(*) FROM {self._table} {condition})"  # noqa: S608  our own words
        records, beside = await self._records(f", {count}", rest, where.values)
        if not records and page.offset:  # past the end, where no row carries the count
            return Rows([], int((await database.rows(f"SELECT {count}", where.values))[0][1]))
        if not records:
            return Rows([], 0)
        self._forget(where, beside[0])
        self._counts[where] = (beside[0], beside[1])
        self._remember(records)
        if "SELECT" in where.sql and self._may_remember(Where(order)):
            self._pages[asked] = tuple(record.id for record in records)
        return Rows(records, beside[1])

    async def _counted(self, where: Where, page: PageRequest, rest: str) -> Rows:
        """The same for a condition whose count nobody may remember."""
        condition = f"WHERE {where.sql}" if where.sql else ""
        count = f"(SELECT count(*) FROM {self._table} {condition})"  # noqa: S608  our own words
        records, beside = await self._records(f", {count}", rest, where.values)
        if not records and page.offset:
            return Rows([], int((await database.rows(f"SELECT {count}", where.values))[0][0]))
        return Rows(records, beside[0] if records else 0)

    def _may_remember(self, where: Where) -> bool:
        """Whether each change that the count depends on raises a generation which is read along."""
        counted = {*row_versions.counted(self.model), self.model._meta.db_pk_column}  # noqa: SLF001
        return where.depends is not None and counted.issuperset(where.columns)

    def _forget(self, where: Where, generation: int) -> None:
        """Lets go of the pages of an older generation, and of what is too much; to remember it again costs one read."""
        known = self._counts.pop(where, None)
        if known is not None and known[0] != generation:
            for asked in [asked for asked in self._pages if asked[0] == where]:
                del self._pages[asked]
        if len(self._counts) >= _COUNTS:
            self._counts.popitem(last=False)
        if len(self._pages) >= _PAGES:
            self._pages.clear()

    async def _seen_before(self, generation: str, rest: str, values: Any) -> tuple[list[Record[M]], int] | None:
        """The records and the generation, of which only changed rows are read; None where that cannot be said."""
        # one text, since each row that SQLite gives costs its thread a turn at the interpreter's lock
        seen = f"""SELECT t."id" || ':' || t."revision" AS k FROM {self._table} {rest}"""  # noqa: S608
        if database.is_postgres():
            keyed = f"SELECT array_to_string(ARRAY({seen}), ','), {generation}"
        else:  # it takes them in the order of the inner statement, which it may not drop where there is a LIMIT
            keyed = f"SELECT group_concat(k, ','), {generation} FROM ({seen})"  # noqa: S608
        text, number = (await database.rows(keyed, values))[0]
        if not text:
            return None
        keys = text.split(",")
        rows = [self._seen.get(key) for key in keys]
        if None in rows:
            missing = tuple(key.partition(":")[0] for key, row in zip(keys, rows, strict=True) if row is None)
            marks = ", ".join(f"${place}" for place in range(1, len(missing) + 1))
            changed, _ = await self._records("", f'WHERE t."id" IN ({marks})', missing)
            self._remember(changed)
            rows = [self._seen.get(key) for key in keys]
            if None in rows:  # changed or gone between the two statements
                return None
        return [Record(self.model, row) for row in rows if row is not None], number

    def _remember(self, records: Sequence[Record[M]]) -> None:
        """Not inside a transaction: what it wrote may never come to be, and another may give that revision again."""
        if database.is_in_transaction():
            return
        for record in records:
            self._seen[f"{record.id}:{record.revision}"] = record.as_read
        while len(self._seen) > _ROWS:
            self._seen.popitem(last=False)

    async def _records(self, more: str, rest: str, values: tuple[Any, ...]) -> tuple[list[Record[M]], tuple[Any, ...]]:
        """The records, and what is selected beside the first: the same beside each."""
        is_packed, model, width = not database.is_postgres(), self.model, self._width
        selected = self._packed if is_packed else self._selected
        found = await database.rows(f"SELECT {selected}{more} FROM {self._table} {rest}", values)  # noqa: S608
        if not found:
            return [], ()
        if is_packed:
            return [Record(model, row[0]) for row in found], tuple(found[0][1:])
        return [Record(model, tuple(row)[:width]) for row in found], tuple(found[0])[width:]


__all__ = ["Reader", "Record"]
