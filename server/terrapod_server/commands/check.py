"""`terrapod-server check`: what a start would meet, tried before it and told all at once.

Nothing is left behind: what is tried in the database is rolled back, and an
object that is written to the store is deleted again.
"""

import asyncio
import contextlib
import os
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from terrapod_server import app, migrations
from terrapod_server.commands import keys, options
from terrapod_server.config.settings import Config
from terrapod_server.identity.signin.oidc import Oidc
from terrapod_server.kit.db import database
from terrapod_server.kit.db.database_errors import explained, place_of, role_of
from terrapod_server.kit.http.certificates import end_of
from terrapod_server.store.port import Store, once
from terrapod_server.store.select import open_store
from terrapod_shared import services
from terrapod_shared.errors import TerrapodError
from terrapod_shared.operator_errors import OperatorError, explain_os_error, user_name

_POSTGRES_LEAST = 110000
#: Signatures, tokens and leases stand that much.
_SKEW_MOST_S, _SKEW_WARN_S = 30.0, 3.0
_ENDS_SOON_S = 14 * 86400.0
_DAY_S = 86400.0
_PROBE = b"written by terrapod-server check"
_TRIAL = (
    "CREATE TABLE terrapod_check (id INT PRIMARY KEY, word TEXT)",
    "INSERT INTO terrapod_check VALUES (1, 'a')",
    "UPDATE terrapod_check SET word = 'b'",
    "ALTER TABLE terrapod_check ADD COLUMN added TEXT",
)
_TRIAL_TRIGGER = {
    "postgres": (
        "CREATE FUNCTION terrapod_check() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
        "CREATE TRIGGER terrapod_check BEFORE UPDATE ON terrapod_check FOR EACH ROW EXECUTE FUNCTION terrapod_check()",
    ),
    "sqlite": ("CREATE TRIGGER terrapod_check AFTER UPDATE ON terrapod_check BEGIN SELECT 1; END",),
}
_TRIAL_END = ("DELETE FROM terrapod_check",)
_S3_ADVICE = {
    "NoSuchBucket": "make the bucket, or correct storage.bucket",
    "AccessDenied": "let its credentials do s3:PutObject, s3:GetObject, s3:DeleteObject and s3:ListBucket there",
    "InvalidAccessKeyId": "correct the credentials (AWS_ACCESS_KEY_ID)",
    "SignatureDoesNotMatch": "correct the credentials (AWS_SECRET_ACCESS_KEY)",
    "NoCredentialsError": "give it credentials, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or the host's role",
    "PartialCredentialsError": "give it both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "EndpointConnectionError": "start it, or correct storage.endpoint",
}

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What was found, a line for the operator."""

    level: Level
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}: {self.text}"


def of_settings(config: Config, at: float) -> Iterator[Finding]:
    """What is allowed, and yet not what most operators want, at a unix time; asks nobody."""
    if config.url.startswith("http://"):
        said = f"clients are told {config.url}, and terraform speaks https only"
        loopback = "" if config.public_url else ", unless you only try things out on this host"
        advice = "set public_url to the https:// address of the proxy, or [tls] of the server"
        yield Finding("warning", "public_url", f"{said}: {advice}{loopback}")
    if config.tls.certificate:
        left_s = end_of(Path(config.tls.certificate).read_bytes()) - at
        if left_s < _ENDS_SOON_S:
            when = "has ended" if left_s < 0 else f"ends in {left_s / _DAY_S:.1f} days"
            yield Finding("error" if left_s < 0 else "warning", "tls.certificate", f"{when}: renew it")


async def of_keys(config: Config) -> Finding:
    """Whether the key file has all keys that the database names."""
    try:
        services.check_owner(config.folder)
        await keys.check(config)
    except app.Unusable as error:
        return Finding("error", "keys", str(error))
    except OperatorError as error:
        return Finding("warning", "keys", f"they are not checked: {error}")
    return Finding(
        "ok", "keys", str(config.keys) if config.keys.exists() else f"{config.keys} is made at the first start"
    )


async def of_connections(config: Config) -> AsyncIterator[Finding]:
    """Tries all that the settings name: database, store, sign-in providers, and how the clocks agree."""
    skews: dict[str, float] = {}
    async for each in _database(config, skews):
        yield each
    yield await _store(config)
    for settings in config.auth.oidc:
        provider = Oidc(settings)
        try:
            await provider.check()
            yield Finding("ok", f"auth.oidc {settings.name}", f"{settings.issuer} answers, and has keys")
        except TerrapodError as error:
            yield Finding("error", f"auth.oidc {settings.name}", f"{settings.issuer}: {_words(error)}")
        except OSError as error:
            yield Finding("error", f"auth.oidc {settings.name}", explain_os_error(error))
        finally:
            await provider.close()
        if provider.skew_s is not None:
            skews[settings.issuer] = provider.skew_s
    yield _clock(skews)


def _words(error: TerrapodError) -> str:
    """What was wrong, and what lay below it."""
    below = " ".join(str(error.__cause__ or "").split())
    return f"{error.detail} ({below})" if below else error.detail


def _clock(skews: dict[str, float]) -> Finding:
    if not skews:
        return Finding("ok", "clock", "nobody is there to compare it with: neither PostgreSQL nor an OIDC provider")
    who, worst_s = max(skews.items(), key=lambda item: abs(item[1]))
    said = f"this host's is {abs(worst_s):.0f} s {'behind' if worst_s > 0 else 'ahead of'} that of {who}"
    if abs(worst_s) > _SKEW_WARN_S:
        level: Level = "error" if abs(worst_s) > _SKEW_MOST_S else "warning"
        return Finding(level, "clock", f"{said}: let NTP set it (timedatectl set-ntp true)")
    return Finding("ok", "clock", f"agrees with {', '.join(skews)}")


async def _database(config: Config, skews: dict[str, float]) -> AsyncIterator[Finding]:
    url = config.database
    if not config.has_database:
        yield _to_be_made("database", Path(url.removeprefix("sqlite://")), "database_url")
        return
    try:
        if url.startswith("sqlite:"):
            services.check_owner(Path(url.removeprefix("sqlite://")))
        await database.open_(url, app.MODELS, config.database_pool)
    except OperatorError as error:
        yield Finding("error", "database", str(error))
        return
    try:
        with explained(url):
            if database.is_postgres():
                skews[place_of(url)] = await _database_skew()
                async for each in _postgres(config):
                    yield each
            await _try_rights()
            yield Finding(
                "ok", "database", f"{place_of(url)}: {await _product()}; its tables may be made, read and changed"
            )
            yield await _schema()
    except OperatorError as error:
        yield Finding("error", "database", str(error))
    finally:
        await database.close()


async def _product() -> str:
    asked = "SHOW server_version" if database.is_postgres() else "SELECT 'SQLite ' || sqlite_version()"
    found = str((await database.rows(asked))[0][0])
    return f"PostgreSQL {found}" if database.is_postgres() else found


async def _database_skew() -> float:
    """How far the database's clock is ahead of this host's."""
    before = time.time()
    there = await database.clock()
    return there - (before + time.time()) / 2


async def _postgres(config: Config) -> AsyncIterator[Finding]:
    """What can be wrong with a PostgreSQL that answers. Raises OperatorError for what makes it useless."""
    where, role = place_of(config.database), role_of(config.database)
    found = await database.rows(
        "SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('server_encoding'), "
        "current_setting('max_connections')::int"
    )
    version, is_standby, encoding, most = found[0]
    if version < _POSTGRES_LEAST:
        raise OperatorError(f"{where} is {await _product()}: {_POSTGRES_LEAST // 10000} or newer is needed")
    if is_standby:
        raise OperatorError(f"{where} is a standby, which takes no writes: name the primary in database_url")
    if encoding != "UTF8":
        raise OperatorError(f"{where} has the encoding {encoding}: make it with ENCODING 'UTF8'")
    if config.database_pool >= most:
        text = f"{where} takes {most} connections, and database_pool is {config.database_pool}: lower that"
        yield Finding("warning", "database", text)
    names = ", ".join(f"'{name}'" for name in sorted(database.model_tables()))
    foreign = await database.rows(
        "SELECT tablename, tableowner FROM pg_tables WHERE schemaname = ANY (current_schemas(false)) "  # noqa: S608  our own names
        f"AND tablename IN ({names}) AND NOT pg_has_role(tableowner, 'MEMBER') ORDER BY 1"
    )
    if foreign:
        table, owner = foreign[0]
        raise OperatorError(
            f"{where}: {len(foreign)} tables, such as {table}, belong to {owner}, so that {role} cannot migrate them: "
            f"REASSIGN OWNED BY {owner} TO {role}, or use that role"
        )


class _RolledBack(Exception):
    """Ends the transaction of a trial."""


async def _try_rights() -> None:
    """Does what migrations and requests do, and takes it back."""
    with contextlib.suppress(_RolledBack):
        async with database.in_transaction() as connection:
            for statement in (*_TRIAL, *_TRIAL_TRIGGER[database.dialect()], *_TRIAL_END):
                await connection.execute_query(statement)
            raise _RolledBack


async def _schema() -> Finding:
    version = await database.version()
    if version is None:
        is_new = "tortoise_migrations" not in await database.tables()
        text = f"the next start brings it to {migrations.NUMBER}"
        return Finding("ok", "schema", f"empty: {text}" if is_new else f"of an earlier release: {text}")
    try:
        version.check(database.place())
    except OperatorError as error:
        return Finding("error", "schema", str(error))
    if version.number >= migrations.NUMBER and (lacks := sorted(database.model_tables() - await database.tables())):
        return Finding("error", "schema", f"{version.number}, and lacks {', '.join(lacks)}: restore a copy")
    if version.is_newer:
        text = f"{version.number}, of terrapod {version.program}; this program is older, and may use it"
    elif version.number < migrations.NUMBER:
        text = f"{version.number}: the next start brings it to {migrations.NUMBER}"
    else:
        text = str(version.number)
    return Finding("ok", "schema", text)


def _to_be_made(what: str, path: Path, setting: str) -> Finding:
    """Whether something that is not there yet can be made."""
    above = next(folder for folder in path.parents if folder.exists())
    try:
        Path(tempfile.mkdtemp(prefix=".terrapod-check-", dir=above)).rmdir()
    except OSError as error:
        why = f"cannot be made for {user_name(os.geteuid())} in {above}: {error.strerror}"
        return Finding("error", what, f"{path} {why}: correct {setting} or `data`, or make it for that user")
    return Finding("ok", what, f"{path} is made at the first start")


async def _store(config: Config) -> Finding:
    storage = config.storage
    root = Path(storage.path) if storage.path else config.folder / "store"
    where = str(root)
    if storage.kind == "s3":
        where = f"bucket {storage.bucket}" + (f" at {storage.endpoint}" if storage.endpoint else "")
    elif not root.exists():
        return _to_be_made("storage", root, "storage.path")
    try:
        if storage.kind == "files":
            services.check_owner(root)
        store = open_store(config)
    except OperatorError as error:
        return Finding("error", "storage", str(error))
    try:
        failed = await try_store(store)
    finally:
        await store.close()
    if failed:
        return Finding("error", "storage", f"{where}: {failed}")
    return Finding("ok", "storage", f"{where}: an object was written, read and deleted")


async def try_store(store: Store) -> str:
    """Writes, reads and deletes an object; what failed, empty where nothing did."""
    key, step = f"check-{secrets.token_hex(8)}", "written"
    try:
        await store.put(key, once(_PROBE))
        step = "read"
        if await store.whole(key, len(_PROBE)) != _PROBE:
            return "an object was read as something else than was written: look at what is in front of it"
        step = "deleted"
        await store.delete(key)
        return f"an object is there after it was deleted ({key})" if await store.exists(key) else ""
    except (TerrapodError, OSError, ValueError) as error:
        why = (
            _words(error)
            if isinstance(error, TerrapodError)
            else explain_os_error(error)
            if isinstance(error, OSError)
            else str(error)
        )
        advice = next((advice for code, advice in _S3_ADVICE.items() if code in why), "")
        return f"an object cannot be {step}: {why}" + (f": {advice}" if advice else "")


@click.command(name="check")
@click.option("--connect", is_flag=True, help="Try what the settings name: database, store, OIDC providers, the clock.")
@options.CONFIG
def command(connect: bool, file: Path | None) -> None:
    """Check the settings, and report every mistake at once.

    Looks also whether the key file has all keys that the database names, and changes nothing. With --connect it says
    what a start would meet, and leaves nothing behind. Exit code 2 for mistakes in the settings, 1 for what failed.
    """
    config = options.read(file)

    async def look() -> bool:
        is_good = _tell(of_settings(config, time.time()))
        if connect:
            async for each in of_connections(config):
                is_good = _tell([each]) and is_good
        found = await of_keys(config)
        return (_tell([found]) if connect or found.level != "ok" else True) and is_good

    if not asyncio.run(look()):
        sys.exit(1)
    click.echo(f"the settings are good: {config.url}, data in {config.data}")


def _tell(findings: Iterable[Finding]) -> bool:
    """Says what was found; whether none of it keeps the server from its work."""
    is_good = True
    for each in findings:
        click.echo(each, err=each.level != "ok")
        is_good = is_good and each.level != "error"
    return is_good
