"""What a database may refuse, as one line for the operator: which database, what it said, and what to do."""

import contextlib
import errno
import logging
import os
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote, urlsplit

from tortoise.exceptions import BaseORMException

from terrapod_shared.errors import Unavailable
from terrapod_shared.operator_errors import OperatorError

#: When a client may ask again after an answer that the database was the reason of.
_AGAIN_S = 2


class DatabaseError(OperatorError):
    """The database cannot be worked with."""


def place_of(url: str) -> str:
    """The database as a person may read it: never with the password."""
    if url.startswith("sqlite:"):
        return f"the database {url.removeprefix('sqlite://')}"
    parts = urlsplit(url)
    more = dict(parse_qsl(parts.query))
    host = more.get("host") or parts.hostname or "localhost"
    port = parts.port or more.get("port", "5432")
    return f"the database {_name_of(url)!r} at {host}:{port}"


def role_of(url: str) -> str:
    return unquote(urlsplit(url).username or "")


@contextlib.contextmanager
def explained(url: str, *, is_connecting: bool = False) -> Iterator[None]:
    """Raises DatabaseError for what the operator can mend; what is a fault of a statement goes on as it is.

    `is_connecting`: nothing but the database is talked to, so that errors of the network are about it.
    """
    try:
        yield
    except Exception as error:
        text = explain(error, url, is_connecting=is_connecting)
        if text is None:
            raise
        raise DatabaseError(text) from None


def explain(error: BaseException, url: str, *, is_connecting: bool = False) -> str | None:
    """The line for an error of the driver, or of the ORM around it; None where it is not the operator's to mend."""
    cause = _cause(error)
    if url.startswith("sqlite:"):
        return _of_sqlite(cause, url)
    return _of_postgres(cause, url) or (_of_network(cause, url) if is_connecting else None)


def said(error: BaseException) -> str:
    """What the driver says of a statement, in one line; empty where the error is none of the driver's."""
    cause = _cause(error)
    is_drivers = isinstance(cause, sqlite3.Error) or type(cause).__module__.startswith("asyncpg.")
    return _in_one_line(cause) if is_drivers else ""


def is_reason(error: BaseException, url: str) -> bool:
    """Whether something failed because the database cannot be used now; it may be tried again."""
    return _reason_of(error, url) is not None


def _reason_of(error: BaseException, url: str) -> str | None:
    return explain(error, url, is_connecting=_is_connecting(error))


def log_failure(to: logging.Logger, what: str, error: BaseException, url: str) -> bool:
    """Logs that something failed: with one line where the database was the reason and its operator can mend it, else with
    the stack trace of a fault. Whether the database was.
    """
    why = _reason_of(error, url)
    if why is None:
        to.error("%s failed", what, exc_info=error)
    else:
        to.error("%s failed: %s", what, why)
    return why is not None


def unavailable() -> Unavailable:
    """What a client is told whose request needed a database that cannot be used now: to ask again."""
    error = Unavailable("the server's database cannot be used now; try again")
    error.headers["Retry-After"] = str(_AGAIN_S)
    return error


def _is_connecting(error: BaseException) -> bool:
    """Whether it comes of a connection to PostgreSQL that was to be opened, and not of another part of the network."""
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_globals.get("__name__") == "asyncpg.connect_utils":
            return True
        place = place.tb_next
    return False


def _cause(error: BaseException) -> BaseException:
    """The driver's error, which the ORM may have wrapped."""
    while isinstance(error, BaseORMException) and isinstance(found := _inner(error), BaseException):
        error = found
    return error


def _inner(error: BaseORMException) -> object:
    return error.args[0] if error.args and isinstance(error.args[0], BaseException) else error.__cause__


_SQLITE = {
    "unable to open": "let the server's user make and write files in its folder (`data` or `database_url`)",
    "readonly": "let the server's user write to it and to its folder",
    "locked": "another program holds it: end that one",
    "full": "free some space",
    "not a database": "this file is something else: name another one, or restore a copy",
    "malformed": "restore a copy",
    "disk i/o": "look at the disk, and restore a copy where it is damaged",
}


def _of_sqlite(error: BaseException, url: str) -> str | None:
    if not isinstance(error, sqlite3.Error):
        return None
    said = str(error)
    advice = next((advice for words, advice in _SQLITE.items() if words in said.lower()), None)
    return None if advice is None else f"cannot use {place_of(url)}: {said}: {advice}"


def _of_postgres(error: BaseException, url: str) -> str | None:
    import asyncpg  # noqa: PLC0415  3 MiB that a server on SQLite does without

    role, name = role_of(url), _name_of(url)
    # in this order: some are kinds of others
    known: tuple[tuple[type[Exception], str], ...] = (
        (asyncpg.InvalidPasswordError, "correct the password in database_url"),
        (
            asyncpg.InvalidAuthorizationSpecificationError,
            f"make the role (CREATE ROLE {role} LOGIN), let pg_hba.conf admit it, or correct database_url",
        ),
        (asyncpg.InvalidCatalogNameError, f"make it (CREATE DATABASE {name} OWNER {role}), or correct database_url"),
        (
            asyncpg.InsufficientPrivilegeError,
            f"let the role own the database and all in it (ALTER DATABASE {name} OWNER TO {role})",
        ),
        (
            asyncpg.InvalidSchemaNameError,
            f"let the role create in a schema of its search_path (GRANT ALL ON SCHEMA public TO {role})",
        ),
        (asyncpg.ReadOnlySQLTransactionError, "name the primary in database_url: this one takes no writes"),
        (asyncpg.TooManyConnectionsError, "raise its max_connections, or lower database_pool"),
        (asyncpg.CannotConnectNowError, "wait until it is up"),
        (asyncpg.OperatorInterventionError, "look into its log"),
        (asyncpg.PostgresConnectionError, "look into its log"),
        (asyncpg.InsufficientResourcesError, "look at its disk and memory"),
        (asyncpg.ClientConfigurationError, "correct database_url"),
    )
    advice = next((advice for kind, advice in known if isinstance(error, kind)), None)
    if advice is None and _is_of_lost_connection(error):
        advice = "look into its log"
    return None if advice is None else f"cannot use {place_of(url)}: {_in_one_line(error)}: {advice}"


def _is_of_lost_connection(error: BaseException) -> bool:
    """Whether the driver says that it has lost the connection by a word about its own state."""
    import asyncpg  # noqa: PLC0415  as above

    if isinstance(error, asyncpg.InterfaceError):
        return "clos" in str(error)  # closed, closing
    return isinstance(error, asyncpg.InternalClientError) and "cannot switch to state" in str(error)


def _of_network(error: BaseException, url: str) -> str | None:
    where = place_of(url)
    if isinstance(error, ssl.SSLError) or "SSL upgrade" in str(error):
        return f"cannot use {where}: {_in_one_line(error)}: correct sslmode in database_url, or the server's TLS"
    if isinstance(error, TimeoutError):
        return f"cannot reach {where}: it does not answer: start it, or correct database_url"
    if isinstance(error, OSError):
        return f"cannot reach {where}: {_reason(error)}: start it, or correct database_url"
    if isinstance(error, ValueError):
        return f"cannot use {where}: {_in_one_line(error)}: correct database_url"
    return None


def _reason(error: OSError) -> str:
    """What the system said, without the addresses that an event loop writes before it."""
    if error.errno is not None and error.errno in errno.errorcode and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return _in_one_line(error.strerror or error)


def _in_one_line(error: object) -> str:
    return " ".join(str(error).split())


def _name_of(url: str) -> str:
    return unquote(urlsplit(url).path.lstrip("/"))
