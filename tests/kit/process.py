"""`terrapod-server serve` as a process, which can be ended, paused and started with another clock."""

import asyncio
import contextlib
import math
import os
import re
import signal
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx

from kit.postgres import free_port
from kit.serving import Running, until
from kit.site import BIN
from terrapod_server import app
from terrapod_server.commands import accounts
from terrapod_server.config.load import load

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def shifted(seconds: int) -> dict[str, str]:
    """The environment of a program whose clock is that much ahead; its monotonic clock is not."""
    if not seconds:
        return {}
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


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
        self.verify: ssl.SSLContext | bool = True

    def over_tls(self, ca: Path) -> None:
        """The settings name a certificate of this authority."""
        self.url, self.verify = f"https://127.0.0.1:{self.port}", ssl.create_default_context(cafile=ca)

    def beside(self, folder: Path) -> "Process":
        """Another server on the same database, store and keys."""
        one = self.settings
        shared = {"TERRAPOD_KEY_FILE": f"{self.folder}/keys", "TERRAPOD_STORAGE__PATH": f"{self.folder}/store"}
        return Process(folder, one["TERRAPOD_DATABASE_URL"], **shared)

    @contextlib.asynccontextmanager
    async def prepared(self) -> AsyncIterator[Running]:
        """The database with an administrator, and a client that outlives the processes."""
        config = load(self.settings, None)
        async with app.opened(config) as made:
            token = await accounts.admin_token("test")
        headers = {"Authorization": f"Bearer {token}"}
        base = f"{self.url}/api/v2/"
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=60, verify=self.verify) as api:
            try:
                yield Running(self.url, token, api, made.services, self.folder, made.asgi)
            finally:
                await self.kill()

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def start(self, clock_s: int = 0, program: Sequence[str] = (str(BIN / "terrapod-server"),)) -> None:
        """Returns once it is ready. `clock_s`: how far its clock is ahead. `program`: what is called with `serve`."""
        with (self.folder / "serve.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *program, "serve",
                env={"PATH": os.environ["PATH"], **self.settings, **shifted(clock_s)}, stdout=log, stderr=log,
            )  # fmt: skip

        async def is_ready() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, self.log
            with contextlib.suppress(httpx.TransportError):
                async with httpx.AsyncClient(verify=self.verify) as client:
                    return (await client.get(f"{self.url}/ready")).status_code == 200
            return False

        await until(is_ready)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.signal(signal.SIGTERM)

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


async def metric(server: Running, name: str, url: str = "") -> float:
    """A figure that the server's process shows of itself; the name with its labels. Infinite where it shows none yet."""
    text = (await server.api.get(f"{url or server.url}/metrics")).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else math.inf


async def in_flight(server: Running) -> int:
    """Requests under way, this one not counted."""
    return int(await metric(server, "terrapod_http_requests_in_flight")) - 1
