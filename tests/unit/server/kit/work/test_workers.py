"""Processes that read documents: what happens to one of them is an error of its document alone."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from kit.serving import until
from kit.worker_jobs import MEMORY
from terrapod_server.kit.work.workers import Died, Workers

HERE = "kit.worker_jobs:"


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    pool = Workers(2, MEMORY, cpu_s=2, idle_s=0.2)
    yield pool
    await pool.close()


async def result(pool: Workers, work: str, *documents: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in pool.run(HERE + work, *documents)])


async def test_documents_are_read_in_order(workers: Workers) -> None:
    large = os.urandom(3 << 20)
    got = await result(workers, "echoed", chunks(b"a", b"", b"b"), chunks(), chunks(large, large))
    assert got == b"<ab><><" + large + large + b">"
    assert await result(workers, "echoed", chunks(b"next")) == b"<next>"


@pytest.mark.parametrize(
    ("work", "why"),
    [
        ("killed", "ended its process .SIGKILL"), ("spinning", "2 s of processor time"), ("hungry", "more memory"),
        ("raising", "failed .KeyError.$"), ("exiting", "exit code 3"), ("absent", "AttributeError"),
    ],
)  # fmt: skip
@pytest.mark.slow
async def test_a_process_that_dies_is_an_error_of_its_document(workers: Workers, work: str, why: str) -> None:
    beside = asyncio.create_task(result(workers, "echoed", chunks(b"beside")))
    with pytest.raises(Died, match=why):
        await result(workers, work, chunks(b"x" * (2 << 20)))
    assert await beside == b"<beside>"
    assert await result(workers, "echoed", chunks(b"after")) == b"<after>"


async def test_a_process_that_is_killed_while_it_is_fed(workers: Workers) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        os.kill(workers.pids[0], signal.SIGKILL)
        while True:
            yield b"x" * (1 << 20)

    with pytest.raises(Died, match="SIGKILL"):
        await result(workers, "echoed", slow())
    assert await result(workers, "echoed", chunks(b"after")) == b"<after>"


async def test_what_a_document_raises_is_raised(workers: Workers) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        await result(workers, "echoed", broken())
    assert await result(workers, "echoed", chunks(b"after")) == b"<after>"


async def test_a_caller_that_is_cancelled_frees_its_place(workers: Workers) -> None:
    for _ in range(3):
        task = asyncio.create_task(result(workers, "spinning", chunks(b"")))
        await until(lambda: _has_some(workers))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await result(workers, "echoed", chunks(b"after")) == b"<after>"


async def _has_some(workers: Workers) -> bool:
    return bool(workers.pids)


async def test_idle_processes_end_and_more_work_than_places_waits(workers: Workers) -> None:
    got = await asyncio.gather(*(result(workers, "echoed", chunks(b"%d" % number)) for number in range(9)))
    assert got == [b"<%d>" % number for number in range(9)]
    assert len(workers.pids) <= 2

    async def none() -> bool:
        return not workers.pids

    await until(none)


async def test_a_process_is_small_and_limited(workers: Workers) -> None:
    loaded = set((await result(workers, "modules", chunks(b""))).decode().split())
    assert not loaded & {"tortoise", "starlette", "asyncio", "ssl", "httpx", "cryptography"}
    parser = [chunk async for chunk in workers.run("terrapod_server.states.parse:summarised", chunks(b"{}"))]
    assert b"unreadable" in b"".join(parser)
    loaded = set((await result(workers, "modules", chunks(b""))).decode().split())
    assert not loaded & {"tortoise", "starlette", "asyncio", "ssl", "httpx", "cryptography"}
    assert (await result(workers, "limits", chunks(b""))).decode() == repr(((MEMORY, MEMORY), "800\n"))


async def test_signals_to_all_leave_what_is_being_read(workers: Workers) -> None:
    async def signalled() -> AsyncIterator[bytes]:
        yield b"a"
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(workers.pids[0], number)
        yield b"b"

    assert await result(workers, "echoed", chunks(b"is up")) == b"<is up>"
    assert await result(workers, "echoed", signalled()) == b"<ab>"


async def test_closing_ends_all(workers: Workers) -> None:
    task = asyncio.create_task(result(workers, "spinning", chunks(b"")))
    await until(lambda: _has_some(workers))
    await workers.close()
    with pytest.raises(Died):
        await task
    assert not workers.pids
