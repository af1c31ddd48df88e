"""Rows whose time has come, claimed by one server process: how servers share work without a leader.

A table that is claimed has the columns `id`, `due_at` and `leased_until`; times are unix seconds of the database's clock.
A claim is one statement that commits at once. Whoever holds it works outside of any transaction, and says with `again`
when the row is due next. A row whose process ended is claimed by another when the lease is over, so work may be done
twice.

    for row_id in await claims.due("drift_check", lease_s=300, most=10):
        ...
        await claims.again("drift_check", row_id, after_s=3600)
"""

import re
from collections.abc import Sequence
from typing import Any

from terrapod_server.kit.db import database

_NAME = re.compile(r"[a-z_]{1,63}")


def now_sql() -> str:
    """The time by the database's clock in unix seconds, the same in all of a statement."""
    if database.is_postgres():
        return "extract(epoch FROM statement_timestamp())::float8"
    return "((julianday('now') - 2440587.5) * 86400.0)"


async def due(table: str, lease_s: float, most: int) -> list[Any]:
    """Ids of at most so many rows that are due, those that are due longest, leased to this process alone."""
    rows = await claim(table, "$1", "$2", [lease_s, most], order="t.due_at, t.id")
    return [row["id"] for row in rows]


async def again(table: str, row_id: Any, after_s: float) -> None:
    """Ends the claim on a row; it is due again after so many seconds."""
    await database.query(
        f"""
        WITH one AS (SELECT 1)
        UPDATE {named(table)} SET due_at = {now_sql()} + $2, leased_until = 0 WHERE id = $1 RETURNING id
        """,  # noqa: S608  a name of ours
        [row_id, after_s],
    )


async def claim(
    table: str,
    lease: str,
    most: str,
    values: Sequence[Any],
    *,
    order: str,
    where: str = "",
    also: str = "",
    gives: str = "",
) -> list[dict[str, Any]]:
    """The statement behind `due`, for tables with rules of their own. The row is `t`; `values` are those of all marks.

    `lease` and `most` are expressions, `where` is a further condition, `also` are further columns to set, `gives` further
    ones to give back. No index is asked for `leased_until`, which nearly all rows meet.
    """
    lock = "FOR UPDATE OF t SKIP LOCKED" if database.is_postgres() else ""
    now = now_sql()
    return await database.query(
        f"""
        WITH chosen AS (
            SELECT t.id FROM {named(table)} t WHERE t.due_at <= {now} AND t.leased_until + 0 <= {now} {where}
            ORDER BY {order} LIMIT {most} {lock}
        )
        UPDATE {named(table)} SET leased_until = {now} + {lease} {also}
        WHERE id IN (SELECT id FROM chosen) AND leased_until <= {now} RETURNING id {gives}
        """,  # noqa: S608  names and marks of ours
        values,
    )


def named(table: str) -> str:
    """The table's name, to be put into a statement. Raises ValueError for what is none."""
    if not _NAME.fullmatch(table):
        raise ValueError(table)
    return table
