"""Threads that read SQLite, and what is kept of rendered rows."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from terrapod_server.kit.api.render import Remembered
from terrapod_server.kit.db.sqlite import Readers

#: Counts to a number: seconds for millions.
_SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) SELECT count(*) FROM n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY)")
    connection.commit()
    connection.close()
    return path


@pytest.fixture
async def readers(file: Path) -> AsyncIterator[Readers]:
    made = Readers(str(file), 1000)
    yield made
    await made.close()


async def test_each_asker_gets_its_own_answer(readers: Readers) -> None:
    asked = [asyncio.create_task(readers.rows("SELECT ?1", [number])) for number in range(200)]
    wrong = asyncio.create_task(readers.rows("SELECT nothing", []))
    writing = asyncio.create_task(readers.rows("INSERT INTO thing VALUES (1)", []))
    gone = asyncio.create_task(readers.rows("SELECT 7", []))
    await asyncio.sleep(0)
    gone.cancel()
    assert [await task for task in asked] == [[(number,)] for number in range(200)]
    with pytest.raises(sqlite3.OperationalError, match="nothing"):
        await wrong
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await writing
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert await readers.rows("SELECT count(*) FROM thing", []) == [(0,)]


async def test_a_slow_read_holds_up_neither_the_loop_nor_later_reads(readers: Readers) -> None:
    def begin(sql: str, value: int) -> asyncio.Task[Any]:
        return asyncio.create_task(readers.rows(sql, [value]))

    before, slow, behind = begin("SELECT ?1", 1), begin(_SLOW, 3_000_000), begin("SELECT ?1", 2)
    assert await before == [(1,)]
    assert await behind == [(2,)]
    for number in range(20):
        assert await readers.rows("SELECT ?1", [number]) == [(number,)]
    assert not slow.done()
    assert await slow == [(3_000_000,)]


async def test_a_read_sees_what_was_committed_before_it(readers: Readers, file: Path) -> None:
    writer = sqlite3.connect(file, isolation_level=None)
    for number in range(1, 50):
        writer.execute("INSERT INTO thing VALUES (?1)", [number])
        assert await readers.rows("SELECT count(*) FROM thing", []) == [(number,)]
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM thing")
    assert await readers.rows("SELECT count(*) FROM thing", []) == [(49,)]
    writer.execute("COMMIT")
    assert await readers.rows("SELECT count(*) FROM thing", []) == [(0,)]
    writer.close()


async def test_what_waits_at_the_end_is_answered(file: Path) -> None:
    readers = Readers(str(file), 1000)
    asked = [asyncio.create_task(readers.rows("SELECT ?1", [number])) for number in range(5)]
    await asyncio.sleep(0)
    await readers.close()
    assert [await task for task in asked] == [[(number,)] for number in range(5)]


def test_rendered_rows_are_bounded_by_number_and_by_size() -> None:
    few = Remembered(most=3)
    few.put("level", "row", msgspec.Raw(b"{}"))
    assert few.of("level")["row"] == msgspec.Raw(b"{}")
    for number in range(5):
        few.put("level" if number % 2 else "other", number, msgspec.Raw(b"{}"))
    assert list(few.of("other")) == [2, 4]
    assert list(few.of("level")) == [3]
    assert list(few.of("unknown")) == []
    small = Remembered(most_bytes=10)
    for number in range(5):
        small.put("level", number, msgspec.Raw(b"1234"))
        small.put("level", number, msgspec.Raw(b"1234"))
    assert list(small.of("level")) == [3, 4]
    small.put("level", 9, msgspec.Raw(b"12345678901"))
    assert list(small.of("level")) == []
