"""Locks by files: one at a time, and gone with the process."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from terrapod_server.kit.db import filelock

HOLDS = """
import sys
from pathlib import Path
from terrapod_server.kit.db import filelock
with filelock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


async def test_one_has_it_and_the_others_wait(tmp_path: Path) -> None:
    inside, most, done = 0, 0, []

    async def work(number: int) -> None:
        nonlocal inside, most
        async with filelock.waited_for(tmp_path / "lock"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            done.append(number)

    await asyncio.gather(*(work(number) for number in range(5)))
    assert (most, sorted(done)) == (1, [0, 1, 2, 3, 4])


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    with pytest.raises(filelock.Held) as caught, filelock.held(lock):
        pass
    assert caught.value.pid == str(other.pid)
    other.kill()
    other.communicate()
    with filelock.held(lock):
        assert lock.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), filelock.held(tmp_path / "nothing" / "lock"):
        pass
