"""The clock that judges leases: the database's own on PostgreSQL, this process's monotonic one on SQLite."""

import time

from terrapod_server.kit.db import database


def clock_sql() -> str:
    """The time in seconds, as an SQL expression."""
    return "extract(epoch FROM clock_timestamp())" if database.is_postgres() else repr(time.monotonic())
