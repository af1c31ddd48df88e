"""A database that is restarted under a task that lives for years, as periodic work does; in a process of its own."""

import subprocess
import sys

import pytest

#: Connections are ended by another process while the loop stands still, so that the pool gives out what it thinks is alive.
PROGRAM = """
import asyncio, subprocess, sys

from terrapod_server import app
from terrapod_server.kit.db import database

POOL = 2
END = (
    "import asyncio, asyncpg, sys\\n"
    "async def main():\\n"
    "    other = await asyncpg.connect(sys.argv[1])\\n"
    "    await other.fetch('SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity '\\n"
    "                      'WHERE datname = current_database() AND pid <> pg_backend_pid()')\\n"
    "    await other.close()\\n"
    "asyncio.run(main())\\n"
)


async def broken(url, place):
    if place == "begin":
        subprocess.run([sys.executable, "-c", END, url], check=True)
    try:
        async with database.in_transaction() as connection:
            if place == "within":
                subprocess.run([sys.executable, "-c", END, url], check=True)
            await connection.execute_query("SELECT 1")
    except Exception as error:
        return type(error).__name__
    return "nothing"


async def main(url, place):
    await database.open_(url, app.MODELS, pool=POOL)
    await database.query("SELECT 1")
    for turn in range(4):  # more often than there are connections
        assert await broken(url, place) != "nothing", turn
        assert not database.is_in_transaction(), turn
        for left in reversed(range(POOL)):  # each of the pool's other connections is dead too, and may be found so
            try:
                async with asyncio.timeout(10), database.in_transaction():
                    assert (await database.rows("SELECT 41 + 1"))[0][0] == 42
                break
            except Exception:
                assert not database.is_in_transaction(), turn
                if not left:
                    raise
    await asyncio.wait_for(database.close(), 10)
    print("whole")


asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("place", ["begin", "within"])
def test_a_task_whose_transaction_is_lost_goes_on_with_a_new_connection(postgres_url: str, place: str) -> None:
    argv = [sys.executable, "-c", PROGRAM, postgres_url, place]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr[-3000:]
