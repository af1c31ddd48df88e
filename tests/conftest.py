"""Index of fixtures.

database_url  a fresh database, once SQLite and once PostgreSQL (`postgres_url`: PostgreSQL alone), with this release's schema
empty_url     the same without anything in it, for the tests of migrations
server        a real server on a port of its own (Hypercorn, the database above); see kit.serving.Running
pg_server     the same on PostgreSQL alone, for what races
terraform     the real Terraform 1.15.5 of the development set, as a program
site          `terrapod-server up` as processes: server over TLS and a listener; see kit.site.Site. On SQLite, and
              once more on PostgreSQL where a test is parametrised with `both` of kit.site
"""

import asyncio
import concurrent.futures
import itertools
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "packaging" / "demo"))

from kit.postgres import Postgres
from kit.serving import Running, running
from kit.site import Site
from kit.site import terraform_program as make_terraform
from terrapod_server import app
from terrapod_server.kit.db import database

_numbers = itertools.count(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job ignores it, and so would all programs
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what is slow, and what needs PostgreSQL")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is imported, since its own settings are made of these."""
    examples = 20 if config.getoption("--quick") else 100
    hurried = [hypothesis.HealthCheck.too_slow]  # on a busy host every example is
    hypothesis.settings.register_profile("ours", max_examples=examples, deadline=None, suppress_health_check=hurried)
    hypothesis.settings.load_profile("ours")


def _is_quick(item: pytest.Item) -> bool:
    """Whether a test is answered soon, on SQLite alone."""
    if item.get_closest_marker("slow") or not isinstance(item, pytest.Function):
        return False
    is_parametrised = hasattr(item, "callspec") and "postgres" in item.callspec.params.values()
    return not is_parametrised and not {"postgres", "postgres_url", "pg_server"} & set(item.fixturenames)


def _is_wanted(item: pytest.Item) -> bool:
    """False for the PostgreSQL of a test that says that the database does not matter to it."""
    database = item.callspec.params.get("database_url") if hasattr(item, "callspec") else None
    return database != "postgres" or not item.get_closest_marker("sqlite_alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each worker gets a block of the list, and begins with its share of the slow ones."""
    wanted = [item for item in items if _is_wanted(item) and (not config.getoption("--quick") or _is_quick(item))]
    kept = set(wanted)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = wanted
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    slow = [item for item in items if item.get_closest_marker("slow")]
    rest = [item for item in items if item not in slow]
    size = -(-len(items) // workers)
    items.clear()
    for worker in range(workers):
        first = slow[worker::workers]
        items += first + rest[: size - len(first)]
        del rest[: size - len(first)]


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.getbasetemp() / "postgres.log") as started:
        yield started


def _run(work: Coroutine[Any, Any, None]) -> None:
    """In a thread of its own, since a test's loop may be running here."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


async def _migrate(url: str) -> None:
    await database.open_(url, app.MODELS)
    try:
        await database.migrate()
    finally:
        await database.close()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that was migrated once, to be copied: that is what tests would wait for longest."""
    file = tmp_path_factory.mktemp("migrated") / "terrapod.sqlite3"
    _run(_migrate(f"sqlite://{file}"))
    return file


@pytest.fixture(scope="session")
def migrated_postgres(postgres: Postgres) -> str:
    """The same, as a database to be copied."""
    _run(_made(postgres))
    return "migrated"


async def _made(postgres: Postgres) -> None:
    await _migrate(await postgres.fresh("migrated"))


@pytest.fixture
async def postgres_url(postgres: Postgres, migrated_postgres: str) -> AsyncIterator[str]:
    name = f"t{next(_numbers)}"
    yield await postgres.fresh(name, migrated_postgres)
    postgres.done(name)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return url
    file = tmp_path / "terrapod.sqlite3"
    shutil.copyfile(request.getfixturevalue("migrated_sqlite"), file)
    return f"sqlite://{file}"


@pytest.fixture(params=["sqlite", "postgres"])
async def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path / 'empty.sqlite3'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return await postgres.fresh(f"t{next(_numbers)}")


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", database_url) as started:
        yield started


@pytest.fixture
async def pg_server(postgres_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "data", postgres_url) as started:
        yield started


@pytest.fixture(scope="session")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_terraform(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="session")
def sqlite_site(tmp_path_factory: pytest.TempPathFactory, terraform: Path) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site"), terraform) as started:
        yield started


@pytest.fixture(scope="session")
def postgres_site(tmp_path_factory: pytest.TempPathFactory, terraform: Path, postgres: Postgres) -> Iterator[Site]:
    url = asyncio.run(postgres.fresh("site"))
    with Site(tmp_path_factory.mktemp("pg-site"), terraform, TERRAPOD_DATABASE_URL=url) as started:
        yield started
        assert not (started.data / "terrapod.sqlite3").exists()


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_site")
    return found
