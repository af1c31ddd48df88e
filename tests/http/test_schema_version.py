"""The two numbers of the database's schema: which it is, and the oldest program that may use it."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kit.postgres import free_port
from kit.serving import running
from terrapod_server import app, migrations
from terrapod_server.__main__ import main
from terrapod_server.commands import check
from terrapod_server.config.load import load
from terrapod_server.kit.db import database, schema_version
from terrapod_server.kit.db.database_errors import DatabaseError
from terrapod_server.kit.db.schema_version import SchemaVersion


async def migrated(url: str, *statements: str) -> SchemaVersion | None:
    """What the database says of itself after a start of this program, and after some statements."""
    await database.open_(url, app.MODELS)
    try:
        await database.migrate()
        for statement in statements:
            await database.query(statement)
        return await database.version()
    finally:
        await database.close()


def as_later(number: int, oldest: int) -> str:
    return f"UPDATE schema_version SET number = {number}, oldest = {oldest}, program = '9.1.0'"


async def test_a_start_writes_down_what_it_has_made(empty_url: str) -> None:
    assert await migrated(empty_url) == schema_version.own()
    assert await migrated(empty_url, "DELETE FROM schema_version") is None  # as a release before the numbers left it
    assert await migrated(empty_url) == schema_version.own()
    assert migrations.OLDEST <= migrations.NUMBER
    # what a later release has removed does not come back by an earlier number
    assert await migrated(empty_url, as_later(migrations.NUMBER - 1, migrations.NUMBER)) is not None
    found = await migrated(empty_url)
    assert found is not None
    assert (found.number, found.oldest) == (migrations.NUMBER, migrations.NUMBER)


async def test_a_program_of_the_release_before_uses_a_later_schema_as_it_is(database_url: str, tmp_path: Path) -> None:
    later = SchemaVersion(migrations.NUMBER + 1, migrations.NUMBER, "9.1.0")
    await migrated(
        database_url,
        "ALTER TABLE workspace ADD COLUMN added_later VARCHAR(20) DEFAULT 'x'",
        "CREATE TABLE made_later (id INT)",
        as_later(later.number, later.oldest),
    )
    async with running(tmp_path / "data", database_url) as server:
        workspace = await server.workspace("side-by-side")
        assert (await server.api.get(f"/workspaces/{workspace['id']}")).status_code == 200
        assert await database.version() == later
        assert "made_later" in await database.tables()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["DROP TABLE schema_version", "CREATE TABLE schema_version (x INT)"], "is not as a release has written it"),
        (["DROP TABLE schema_version", "CREATE TABLE schema_version (id INT, number INT, oldest INT, program TEXT)",
          "INSERT INTO schema_version VALUES (1, NULL, NULL, NULL)"], "is not as a release has written it"),
        (["DROP TABLE schema_version"], "cannot be brought to schema"),
        (["DROP TABLE workspace"], "cannot be brought to schema"),
    ],
)  # fmt: skip
async def test_tables_that_something_has_changed_are_told_in_a_line(
    empty_url: str, tmp_path: Path, changes: list[str], said: str
) -> None:
    await migrated(empty_url)
    await database.open_(empty_url, app.MODELS)
    for each in changes:
        await database.query(each)
    await database.close()
    config = load({}, None, data=str(tmp_path), database_url=empty_url)
    found = [each async for each in check.of_connections(config)]
    if changes != ["DROP TABLE schema_version"]:  # which a release before the numbers had not
        assert [each for each in found if each.level == "error"], found
    with pytest.raises(DatabaseError, match=said) as caught:
        await migrated(empty_url)
    assert "restore a copy" in str(caught.value)
    assert "\n" not in str(caught.value)
    await database.close()


def make_user(url: str, data: Path) -> Result:
    settings = {"TERRAPOD_DATABASE_URL": url, "TERRAPOD_DATA": str(data), "TERRAPOD_PORT": str(free_port())}
    argv = ["users", "create", "--email", "ann@example.org", "--password-stdin"]
    return CliRunner(env=settings).invoke(main, argv, input="a good password 123\n")


async def test_a_program_that_is_too_old_does_not_start(database_url: str, tmp_path: Path) -> None:
    number = migrations.NUMBER
    await migrated(database_url, as_later(number + 5, number + 2))
    done = await asyncio.to_thread(make_user, database_url, tmp_path / "data")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"has schema {number + 5} of terrapod 9.1.0, for programs of schema {number + 2} and newer" in done.stderr
    assert "install terrapod 9.1.0, or restore the copy of the database" in done.stderr
    assert not (tmp_path / "data" / "keys").exists()
    with pytest.raises(DatabaseError):
        async with running(tmp_path / "data", database_url):
            pass


def test_numbers_of_migrations_are_used_once() -> None:
    folder = Path(migrations.__path__[0])
    numbers = [int(file.name[:4]) for file in folder.glob("[0-9]*.py")]
    twice = {number for number in numbers if numbers.count(number) > 1}
    assert twice == {12, 13}, "a program is told from another by this number"
