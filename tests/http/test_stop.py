"""SIGTERM to a real server process: long polls end at once, what is under way ends, what was handed out is not forgotten."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from kit.process import Process, in_flight
from kit.release_site import ReleaseSite, release_site
from kit.serving import Running, tar, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_shared import errors, wire


@pytest.fixture
def process(database_url: str, tmp_path: Path) -> Process:
    folder = tmp_path / "data"
    folder.mkdir()
    return Process(folder, database_url)


async def test_long_polls_end_at_once_and_with_nothing(process: Process, tmp_path: Path) -> None:
    async with process.prepared() as server:
        await process.start()
        listener = await server.listener(tmp_path / "home")
        workspace = (await server.workspace())["id"]

        async def events() -> int:
            async with server.api.stream("GET", f"/workspaces/{workspace}/runs/events") as answer:
                async for _ in answer.aiter_bytes():
                    pass
                return answer.status_code

        local = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]
        polls = [
            asyncio.create_task(listener.next_work(50)),
            asyncio.create_task(listener.beat(wire.Beat(local_engines=local), wait_s=50)),
        ]
        stream = asyncio.create_task(events())

        async def all_wait() -> bool:
            return await in_flight(server) == 3

        await until(all_wait)
        assert not any(task.done() for task in (*polls, stream))
        process.terminate()
        work, pulse = await asyncio.wait_for(asyncio.gather(*polls), 3)
        assert work is None
        assert isinstance(pulse, wire.Pulse)
        assert await asyncio.wait_for(stream, 3) == 200
        assert await process.ended(5) < 4


@pytest.mark.slow
async def test_an_upload_under_way_is_finished(process: Process) -> None:
    async with process.prepared() as server:
        await process.start()
        workspace = (await server.workspace())["id"]
        made = await server.post(f"/workspaces/{workspace}/configuration-versions", {"auto-queue-runs": False})
        version = made.json()["data"]
        archive = tar({"main.tf": os.urandom(300_000)})
        goes_on = asyncio.Event()

        async def halves() -> AsyncIterator[bytes]:
            yield archive[: len(archive) // 2]
            await goes_on.wait()
            yield archive[len(archive) // 2 :]

        headers = {"Content-Length": str(len(archive))}
        async with httpx.AsyncClient(timeout=30) as uploader:
            put = asyncio.create_task(
                uploader.put(version["attributes"]["upload-url"], content=halves(), headers=headers)
            )

            async def has_begun() -> bool:
                return await in_flight(server) == 1

            await until(has_begun)
            process.terminate()
            await until(process.takes_no_more)
            assert not put.done()
            goes_on.set()
            assert (await put).status_code == 200, "what was under way is finished"
        await process.ended(10)
        await process.start()
        shown = (await server.api.get(f"/configuration-versions/{version['id']}")).json()["data"]
        assert shown["attributes"]["status"] == "uploaded"
        process.terminate()
        await process.ended(10)


async def claiming(server: Running, listener: ListenerClient, site: ReleaseSite) -> asyncio.Task[wire.Work | None]:
    """A claim whose answer waits for an engine."""
    workspace = (await server.workspace(**{"terraform-version": "1.9.1"}))["id"]
    await server.configuration(workspace)
    made = await server.run(workspace)
    assert made.status_code == 201, made.text
    task = asyncio.create_task(listener.next_work(50))

    async def is_fetching() -> bool:
        return any(path.endswith(".zip") for path in site.asked)

    await until(is_fetching)
    return task


@pytest.mark.parametrize("is_delivered", [True, False])
async def test_what_was_offered_is_handed_out_again(postgres_url: str, tmp_path: Path, is_delivered: bool) -> None:
    """SIGTERM while a claim is answered. Nobody accepts: the offer lapses, and the next server hands the phase out."""
    folder = tmp_path / "data"
    folder.mkdir()
    with release_site() as site:
        site.index("1.9.1")
        site.release("terraform", "1.9.1")
        site.gate.clear()
        settings = {f"TERRAPOD_ENGINES__{name.upper()}": url for name, url in site.engines.items()}
        process = Process(folder, postgres_url, TERRAPOD_SHUTDOWN_S="20" if is_delivered else "1", **settings)
        try:
            async with process.prepared() as server:
                await process.start()
                listener = await server.listener(tmp_path / "home")
                claim = await claiming(server, listener, site)
                process.terminate()
                await until(process.takes_no_more)
                first = 1
                if is_delivered:
                    site.gate.set()
                    work = await claim
                    assert work is not None, "what was under way is finished"
                    assert work.lease.number == first
                else:
                    with pytest.raises(errors.TerrapodError):
                        await claim
                await process.ended(30, is_cut_off=not is_delivered)
                site.gate.set()
                await process.start()

                async def again() -> wire.Work | None:
                    return await listener.next_work(5)

                work = await until(again, 40)
                assert work.lease.number > first, "and whoever had the first offer is fenced off"
                await listener.report(work.run_id, wire.Report(phase="plan", status="planning"), work.lease.number)
                assert await server.status(work.run_id) == "planning"
                with pytest.raises(errors.LeaseEnded):
                    await listener.report(work.run_id, wire.Report(phase="plan", status="planning"), first)
                process.terminate()
                await process.ended(20, is_cut_off=not is_delivered)  # its log is the first one's, too
        finally:
            site.gate.set()
