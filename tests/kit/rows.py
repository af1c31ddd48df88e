"""All rows of a database, read without the product's code: what an upgrade may not lose."""

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import asyncpg

from kit.postgres import Postgres

Row = dict[str, Any]
#: Counts changes for readers; a new start may raise it.
_COUNTED = "revision"


async def tables(url: str) -> dict[str, list[Row]]:
    """The rows of each table, by its name."""
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite://"))) as opened:
            opened.row_factory = sqlite3.Row
            found = [name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            named = [name for name in found if not name.startswith("sqlite_")]
            return {name: [dict(row) for row in opened.execute(f'SELECT * FROM "{name}"')] for name in named}
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name: [dict(row) for row in await connection.fetch(f'SELECT * FROM "{name}"')] for (name,) in rows}
    finally:
        await connection.close()


def missing(before: dict[str, list[Row]], after: dict[str, list[Row]]) -> list[str]:
    """What a migration lost or changed, a sentence each; columns and rows may have come."""
    found = []
    for table, rows in before.items():
        if table == "generation":
            continue
        for row in rows:
            kept = {name: value for name, value in row.items() if name != _COUNTED}
            if not any(kept.items() <= later.items() for later in after.get(table, [])):
                found.append(f"{table}: {kept}")
    return found


async def copy(url: str, postgres: Postgres | None, folder: Path) -> str:
    """The URL of a copy of a database that nobody has open."""
    if postgres is None:
        file = Path(url.removeprefix("sqlite://"))
        for each in file.parent.glob(f"{file.name}*"):  # its log of changes too, should there be one
            shutil.copyfile(each, folder / each.name.replace(file.name, "copy.sqlite3"))
        return f"sqlite://{folder / 'copy.sqlite3'}"
    name = url.rpartition("/")[2]
    return await postgres.fresh(f"{name}-copy", name)
