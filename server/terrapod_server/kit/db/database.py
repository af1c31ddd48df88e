"""Opening, migrating and asking the database: SQLite in WAL mode, or PostgreSQL."""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tortoise import Tortoise, connections
from tortoise.backends.base.client import TransactionalDBClient
from tortoise.backends.base.executor import EXECUTOR_CACHE
from tortoise.context import TortoiseContext
from tortoise.migrations.executor import MigrationExecutor, MigrationTarget
from tortoise.models import Model
from tortoise.transactions import in_transaction as begun

from terrapod_server.kit.db import database_errors, filelock, row_versions, schema_version
from terrapod_server.kit.db.sqlite import Readers

__all__ = [
    "clock",
    "close",
    "dialect",
    "in_transaction",
    "insert",
    "is_postgres",
    "lock_number",
    "migrate",
    "model_tables",
    "one_at_a_time",
    "only_server",
    "open_",
    "place",
    "query",
    "rows",
    "tables",
    "version",
]

_MARK = re.compile(r"\$(\d+)")
MIGRATIONS = "terrapod_server.migrations"
LATEST = "__latest__"
#: Where the open PostgreSQL is, for connections that no pool lends.
_opened: dict[str, str] = {}
#: How a SQLite that is open is read; made when it is first needed.
_readers: dict[str, Readers] = {}
#: What `open_` made; kept, since the task that closes need not be the one that opened.
_contexts: list[TortoiseContext] = []
#: PostgreSQL ends a transaction whose process has said nothing for so long: one that is paused would keep its rows
#: locked, and with them whoever sweeps its leases. No transaction here waits for more than the database and the store.
_IDLE_MS = 15_000
#: A database that has not answered after so long is not there.
_CONNECT_S = 10.0
#: SQLite knows one writer; a second process waits so long for it.
_BUSY_MS = 10_000


def settings(url: str, modules: Sequence[str], pool: int) -> dict[str, Any]:
    """Tortoise's configuration; also read by the migration commands."""
    parts = urlsplit(url)
    connection: Any
    if parts.scheme == "sqlite":
        connection = {
            "engine": "tortoise.backends.sqlite",
            "credentials": {
                "file_path": url.removeprefix("sqlite://"),
                "journal_mode": "WAL",
                "synchronous": "FULL",
                "busy_timeout": _BUSY_MS,
                "foreign_keys": "ON",
            },
        }
    else:
        connection = {
            "engine": "tortoise.backends.asyncpg",
            "credentials": {
                **_credentials(url),
                "minsize": 1,
                "maxsize": pool,
                "server_settings": {"idle_in_transaction_session_timeout": str(_IDLE_MS)},
                "reset": _leave_session,
            },
        }
    return {
        "connections": {"default": connection},
        "apps": {
            "terrapod": {
                "models": list(modules),
                "default_connection": "default",
                "migrations": MIGRATIONS,
            }
        },
        "use_tz": True,
        "timezone": "UTC",
    }


async def _leave_session(_connection: Any) -> None:
    """What the pool does to a connection that it gets back, after it has rolled back an open transaction: nothing.

    Its own way asks PostgreSQL once more after each statement to forget what a session may keep. Nothing here keeps
    anything in a session of the pool: settings and locks end with their transaction, and who listens has a connection
    of its own.
    """


def _credentials(url: str) -> dict[str, Any]:
    """The URL's parts as the ORM wants them; `host=` and `sslmode=` of its query as libpq reads them."""
    parts = urlsplit(postgres_dsn(url))
    more = dict(parse_qsl(parts.query))
    found: dict[str, Any] = {
        "host": more.get("host") or parts.hostname or "localhost",
        "port": parts.port or int(more.get("port", "5432")),
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or "") or None,
        "database": unquote(parts.path.lstrip("/")),
    }
    if "sslmode" in more:
        found["ssl"] = more["sslmode"]
    return found


def postgres_dsn(url: str) -> str:
    """The URL in the one spelling of its scheme that asyncpg takes."""
    return "postgresql://" + url.partition("://")[2]


async def open_(url: str, modules: Sequence[str], pool: int = 10) -> None:
    """Raises database_errors.DatabaseError where it cannot be used."""
    with database_errors.explained(url, is_connecting=True):
        await _try_connection(url)
    _opened.update(dsn=postgres_dsn(url), dialect="sqlite" if url.startswith("sqlite:") else "postgres")
    _opened["file"] = _file(url)
    _contexts.append(await Tortoise.init(config=settings(url, modules, pool), _enable_global_fallback=True))


async def _try_connection(url: str) -> None:
    """Connects once, past the ORM: it hides why a connection failed, and on SQLite waits for ever after that."""
    if url.startswith("sqlite:"):
        await asyncio.to_thread(_try_sqlite, url.removeprefix("sqlite://"))
        return
    import asyncpg  # noqa: PLC0415  3 MiB that a server on SQLite does without

    connection = await asyncpg.connect(postgres_dsn(url), timeout=_CONNECT_S)
    await connection.close()


def _try_sqlite(path: str) -> None:
    with contextlib.suppress(
        OSError
    ):  # SQLite itself makes a file that everybody may read; what is wrong, it says below
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_MS / 1000, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def drop_descriptions() -> None:
    """Takes docstrings and comments out of the open models: they are no part of the schema.

    The ORM would write them into SQL comments, where SQLite's editor splits
    the statement at a `;`, and would migrate a table when its comment changes.
    """
    apps = _contexts[-1].apps
    for model in apps.get_models_iterable() if apps else ():
        model._meta.table_description = ""  # noqa: SLF001  the ORM has no public word for it
        for field in model._meta.fields_map.values():  # noqa: SLF001
            if not hasattr(field, "enum_type"):  # of an enum the ORM makes one itself, always the same
                field.description = None


async def migrate(last: str = LATEST) -> None:
    """Brings the schema to this release's, or up to a migration; forward only, one process at a time on PostgreSQL.

    A schema of a later release is left as it is. Raises DatabaseError where
    this program is too old for it, or something has changed its tables, and
    what else the database raises. Each migration is one transaction, so none is
    half done.
    """
    try:
        await _migrate(last)
    except Exception as error:
        if not (said := database_errors.said(error)) or database_errors.is_reason(error, _url()):
            raise
        raise database_errors.DatabaseError(
            f"{place()} cannot be brought to schema {schema_version.own().number}: {said}: something has changed its "
            "tables: restore a copy"
        ) from error


async def _migrate(last: str) -> None:
    client = connections.get("default")
    executor = MigrationExecutor(client, {"terrapod": {"migrations": MIGRATIONS, "models": []}})
    async with one_at_a_time("migrate"):
        found = await version()
        if found is not None and last == LATEST:
            found.check(place())
            if found.is_newer:
                return
        is_new = last == LATEST and not await executor.recorder.applied_migrations()
        if is_new:
            await _create()
        await executor.migrate([MigrationTarget("terrapod", last)], fake=is_new, direction="forward")
        apps = _contexts[-1].apps
        if last == LATEST:
            async with in_transaction() as connection:
                await row_versions.install(connection, apps.get_models_iterable() if apps else ())
                await _note_version(found)


async def version() -> schema_version.SchemaVersion | None:
    """What the database says of its schema; None for one that is new, or of a release that wrote nothing down.

    Raises DatabaseError where it says nothing that a release has written.
    """
    if schema_version.TABLE not in await tables():
        return None
    try:
        found = await rows(schema_version.READ)
    except Exception as error:
        if not database_errors.said(error) or database_errors.is_reason(error, _url()):
            raise
        found = [()]
    return schema_version.of_row(found[0], place()) if found else None


async def _note_version(found: schema_version.SchemaVersion | None) -> None:
    """`oldest` never falls: what was removed for it does not come back."""
    own = schema_version.own()
    oldest = max(own.oldest, found.oldest if found else 0)
    if found != (now := dataclasses.replace(own, oldest=oldest)):
        await query(schema_version.WRITE, dataclasses.astuple(now))


def place() -> str:
    """The open database, as a message names it."""
    return database_errors.place_of(_url())


def _url() -> str:
    return _opened["dsn"] if is_postgres() else f"sqlite://{_opened['file']}"


async def _create() -> None:
    """All tables at once, where there are none yet: the same schema as all migrations lead to, in a thirtieth of the time.

    One that was cut off is simply done again: what is there is left, and no
    migration is noted before all of it is.
    """
    drop_descriptions()
    await Tortoise.generate_schemas(safe=True)


@contextlib.asynccontextmanager
async def one_at_a_time(name: str) -> AsyncIterator[None]:
    """Holds the database's lock of that name: PostgreSQL's on a connection of its own, or a file beside SQLite's."""
    if not is_postgres():
        async with filelock.waited_for(Path(f"{_opened['file']}-lock")):
            yield
        return
    import asyncpg  # noqa: PLC0415  3 MiB that a server on SQLite does without

    connection = await asyncpg.connect(_opened["dsn"])
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", lock_number(name))
        yield
    finally:
        await connection.close()


@contextlib.contextmanager
def only_server(url: str) -> Iterator[None]:
    """Keeps all other servers from the SQLite file of the URL: wake-ups and leases are inside of one. PostgreSQL takes many.

    Raises filelock.Held. Where no lock can be made nothing is raised: to open the database says better why.
    """
    with contextlib.ExitStack() as stack:
        if url.startswith("sqlite:"):
            with contextlib.suppress(OSError):
                stack.enter_context(filelock.held(Path(f"{_file(url)}-server")))
        yield


def _file(url: str) -> str:
    return url.removeprefix("sqlite://")


async def close() -> None:
    while _readers:
        await _readers.popitem()[1].close()
    while _contexts:
        await _contexts.pop().close_connections()
    EXECUTOR_CACHE.clear()  # it keeps statements by the connection's name, of whatever dialect they were


def dialect() -> str:
    """`postgres` or `sqlite`."""
    return _opened["dialect"]


def is_postgres() -> bool:
    return dialect() == "postgres"


async def query(sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Rows of a hand-written statement with `$1` marks; for those that the ORM cannot say.

    A statement that changes rows must begin with WITH, or asyncpg's client
    does not give its RETURNING back. SQLite takes `$1` for a name, and
    numbers names by their first place in the text: it gets `?1`.
    """
    sql, values = _spoken(sql, values)
    return list(await connections.get("default").execute_query_dict(sql, values))


async def rows(sql: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
    """The same for a SELECT, with the rows as the driver gives them: values by place, not converted.

    Outside a transaction SQLite is asked by threads that read and do nothing else.
    """
    sql, values = _spoken(sql, values)
    client = connections.get("default")
    if is_postgres() or is_in_transaction():
        found: Sequence[Sequence[Any]] = (await client.execute_query(sql, values))[1]
        return found
    if not _readers:
        _readers["default"] = Readers(_opened["file"], _BUSY_MS)
    return await _readers["default"].rows(sql, values)


async def insert(new: Sequence[Model]) -> None:
    """Writes new rows of one model by one statement. Raises what the ORM raises of a value that fits no column."""
    client, model = connections.get("default"), type(new[0])
    executor = client.executor_class(model=model, db=client)
    encoders = [(name, model._meta.fields_map[name].to_db_value) for name in executor.regular_columns_all]  # noqa: SLF001
    values = [encode(getattr(row, name), row) for row in new for name, encode in encoders]
    mark, width = "$" if is_postgres() else "?", len(encoders)
    tuples = (f"({', '.join(f'{mark}{row * width + place + 1}' for place in range(width))})" for row in range(len(new)))
    await client.execute_query(
        f"{executor.insert_query_all.partition(' VALUES ')[0]} VALUES {', '.join(tuples)}", values
    )
    for row in new:
        row._saved_in_db = True  # noqa: SLF001  as the ORM's own way leaves it


async def tables() -> set[str]:
    """Names of the tables that there are; none in a database that is new."""
    if is_postgres():
        found = await rows("SELECT tablename FROM pg_tables WHERE schemaname = ANY (current_schemas(false))")
    else:
        found = await rows("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {str(row[0]) for row in found}


def model_tables() -> set[str]:
    """Names of the tables that the models ask for."""
    apps = _contexts[-1].apps
    return {model._meta.db_table for model in (apps.get_models_iterable() if apps else ())}  # noqa: SLF001


@contextlib.asynccontextmanager
async def in_transaction() -> AsyncIterator[Any]:
    """A transaction of the database, or a savepoint of the one that is open; the connection is given.

    Where the connection is lost, the ORM's own leaves it to the task, whose
    transactions would all fail from then on, and keeps it from the pool.
    """
    before = connections.get("default")
    transaction = begun()
    try:
        connection = await transaction.__aenter__()
    except BaseException as error:
        if connections.get("default") is not before:
            with contextlib.suppress(Exception):
                await transaction.__aexit__(type(error), error, error.__traceback__)
            connections.set("default", before)
        raise
    try:
        yield connection
    except BaseException as error:
        await _ended(transaction, before, error)
        raise
    await _ended(transaction, before, None)


async def _ended(transaction: Any, before: Any, error: BaseException | None) -> None:
    try:
        await transaction.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)
    finally:
        if connections.get("default") is not before:
            connections.set("default", before)


def is_in_transaction() -> bool:
    """Whether whoever asks is inside a transaction of its own."""
    return isinstance(connections.get("default"), TransactionalDBClient)


def _spoken(sql: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    if is_postgres():
        return sql, list(values)
    return _marked(sql), [value.isoformat(" ") if isinstance(value, datetime) else value for value in values]


@functools.lru_cache(1024)
def _marked(sql: str) -> str:
    return _MARK.sub(r"?\1", sql)


async def clock() -> float:
    """Seconds by the clock that judges leases: the database's, or on SQLite this process's monotonic one."""
    if not is_postgres():
        return time.monotonic()
    rows = await query("SELECT extract(epoch FROM clock_timestamp())::float8 AS now")
    return float(rows[0]["now"])


def lock_number(name: str) -> int:
    """The number of the advisory lock of that name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
