"""SIGTERM to a real server process: long polls end at once, what is under way ends, what was handed out is not forgotten."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from kit.postgres import free_port
from kit.release_site import ReleaseSite, release_site
from kit.serving import Running, tar, until
from kit.site import BIN
from terrapod_listener.client import Server as ListenerClient
from terrapod_server import app
from terrapod_server.config import load
from terrapod_shared import errors, wire


class Process:
    """`terrapod-server serve`, started as often as a test likes, on one database and one port."""

    def __init__(self, folder: Path, database_url: str, **settings: str) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {
            "TERRAPOD_DATA": str(folder), "TERRAPOD_PORT": str(self.port), "TERRAPOD_DATABASE_URL": database_url,
            "TERRAPOD_ENGINES__TERRAFORM_URL": "http://127.0.0.1:9/terraform", **settings,
        }  # fmt: skip
        self.process: asyncio.subprocess.Process | None = None

    @contextlib.asynccontextmanager
    async def prepared(self) -> AsyncIterator[Running]:
        """The database with an administrator, and a client that outlives the processes."""
        config = load(self.settings, None)
        async with app.opened(config) as made:
            token = await app.admin_token("test")
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=f"{self.url}/api/v2/", headers=headers, timeout=60) as api:
            try:
                yield Running(self.url, token, api, made.services, self.folder)
            finally:
                if self.process is not None and self.process.returncode is None:
                    self.process.kill()
                    await self.process.wait()

    async def start(self) -> None:
        with (self.folder / "serve.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                str(BIN / "terrapod-server"), "serve", env={"PATH": os.environ["PATH"], **self.settings},
                stdout=log, stderr=log,
            )  # fmt: skip

        async def is_ready() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, self.log
            with contextlib.suppress(httpx.TransportError):
                async with httpx.AsyncClient() as client:
                    return (await client.get(f"{self.url}/ready")).status_code == 200
            return False

        await until(is_ready)

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, timeout_s: float, *, is_cut_off: bool = False) -> float:
        """How long it took to end by itself, well; `is_cut_off`: with a request that took longer than it may."""
        assert self.process is not None
        begun = time.monotonic()
        code = await asyncio.wait_for(self.process.wait(), timeout_s)
        assert code == 0, self.log
        assert is_cut_off or "Traceback" not in self.log, self.log
        return time.monotonic() - begun

    @property
    def log(self) -> str:
        return (self.folder / "serve.log").read_text()

    async def takes_no_more(self) -> bool:
        """Whether nobody is let in any more."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return True
        writer.close()
        return False


@pytest.fixture
def process(database_url: str, tmp_path: Path) -> Process:
    folder = tmp_path / "data"
    folder.mkdir()
    return Process(folder, database_url)


async def in_flight(server: Running) -> int:
    text = (await server.api.get(f"{server.url}/metrics")).text
    found = re.search(r"^terrapod_http_requests_in_flight (\d+)$", text, re.MULTILINE)
    assert found, text
    return int(found[1]) - 1


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
