"""Periodic work: jobs outside of transactions, and rows that servers claim from each other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from terrapod_server import app
from terrapod_server.kit.db import database
from terrapod_server.kit.db.database import postgres_dsn
from terrapod_server.kit.work import claims
from terrapod_server.kit.work.periodic import Job, Periodic

TABLE = "CREATE TABLE checked (id integer PRIMARY KEY, due_at float NOT NULL, leased_until float NOT NULL DEFAULT 0)"


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[None]:
    await database.open_(url, app.MODELS)
    try:
        yield
    finally:
        await database.close()


async def wrote(number: int) -> None:
    await database.query("WITH one AS (SELECT 1) INSERT INTO written VALUES ($1) RETURNING number", [number])


async def job_that_waits(url: str, wait: Callable[[Any], Awaitable[None]]) -> list[int]:
    """What is left of two rows that a job writes; `wait` lasts between them and has a connection of its own."""
    other = await asyncpg.connect(postgres_dsn(url))
    await other.execute("CREATE TABLE written (number integer)")
    ended = asyncio.Event()

    async def work(_: None) -> None:
        await wrote(1)
        await wait(other)
        await wrote(2)

    periodic = Periodic([Job("waiting", 3600, work)], None, lambda _: ended.set(), url)
    async with opened(url):
        periodic.start()
        try:
            await asyncio.wait_for(ended.wait(), 60)
        finally:
            await periodic.stop()
    rows = await other.fetch("SELECT number FROM written ORDER BY number")
    await other.close()
    return [row["number"] for row in rows]


async def test_a_job_that_waits_has_written_what_it_wrote(postgres_url: str) -> None:
    """It stands in no transaction, which the database would end: what it wrote is there for others at once."""

    async def look(other: Any) -> None:
        assert await other.fetchval("SELECT count(*) FROM written") == 1
        idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in %'"
        assert await other.fetchval(idle) == 0

    assert await job_that_waits(postgres_url, look) == [1, 2]


@pytest.mark.long
async def test_a_job_that_waits_17_s_between_two_writes_keeps_both(postgres_url: str) -> None:
    async def wait(_: Any) -> None:
        await asyncio.sleep(17)

    assert await job_that_waits(postgres_url, wait) == [1, 2]


async def test_a_row_is_claimed_once_and_comes_back(database_url: str) -> None:
    async with opened(database_url):
        await database.query(TABLE)
        at = f"SELECT {claims.now_sql()} AS now"
        now = float((await database.query(at))[0]["now"])
        for number in range(60):
            later = 3600 if number % 3 == 0 else -number
            await database.query(
                "WITH one AS (SELECT 1) INSERT INTO checked (id, due_at) VALUES ($1, $2) RETURNING id",
                [number, now + later],
            )
        assert sorted(await claims.due("checked", 300, 2)) == [58, 59], "the longest due"
        found = await asyncio.gather(*(claims.due("checked", 300, 7) for _ in range(12)))
        claimed = sorted(row for part in found for row in part)
        assert claimed == [n for n in range(58) if n % 3], "each once, by whoever asks at the same time"
        assert await claims.due("checked", 300, 100) == []

        await claims.again("checked", 1, 0)
        await claims.again("checked", 2, 3600)
        assert await claims.due("checked", 300, 100) == [1]
        await database.query("WITH one AS (SELECT 1) UPDATE checked SET leased_until = 1 WHERE id = 4 RETURNING id")
        assert await claims.due("checked", 300, 100) == [4], "its process ended, and the lease is over"


async def test_a_name_that_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="brake; DROP"):
        claims.named("brake; DROP TABLE brake")
