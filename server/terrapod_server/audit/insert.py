"""Many entries into the table at once, each only once however often it is tried."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from terrapod_server.audit.rules import Entry
from terrapod_server.kit.db.database import in_transaction, is_postgres

_WIDTH = len(Entry._fields)
#: Rows of one statement on SQLite. Its driver gives way to other threads at every statement: with one a row, the
#: writing thread and the event loop kept each other waiting for longer than the rows took.
_AT_ONCE = (256, 32, 4, 1)


async def insert(rows: Sequence[Entry]) -> None:
    """All or none."""
    async with in_transaction() as connection:
        if is_postgres():
            marks = ", ".join(f"${number}" for number in range(1, _WIDTH + 1))
            await connection.execute_many(_sql(f"({marks})"), [list(row) for row in rows])
            return
        at = 0
        for count in _AT_ONCE:
            while len(rows) - at >= count:
                values: list[Any] = list(itertools.chain.from_iterable(rows[at : at + count]))
                await connection.execute_query(_sql_of(count), values)
                at += count


def _sql(values: str) -> str:
    columns = ", ".join(Entry._fields)
    return f"INSERT INTO audit_entry ({columns}) VALUES {values} ON CONFLICT (id) DO NOTHING"  # noqa: S608


@functools.cache
def _sql_of(count: int) -> str:
    one = f"({', '.join('?' * _WIDTH)})"
    return _sql(", ".join([one] * count))
