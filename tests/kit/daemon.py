"""A listener's process with a scripted engine, at a server in the test's own loop or at one in a process."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import terraform_shim

from kit import scripted
from kit.serving import Running
from kit.site import BIN
from terrapod_listener.link import identity
from terrapod_server.agents.model import Listener


async def listener(*argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        str(BIN / "terrapod-listener"), *argv, env={"PATH": os.environ["PATH"]}, stderr=asyncio.subprocess.DEVNULL
    )


async def joined(server: Running, home: Path, name: str = "one", *, ca: Path | None = None, capacity: int = 0) -> str:
    """The listener's id. `capacity`: how many runs at once, 0 for as many as listeners take of themselves."""
    home.mkdir(exist_ok=True)
    program = scripted.program(home.parent / "bin")
    (home / "listener.toml").write_text(
        f"capacity = {capacity}\n"
        * bool(capacity)
        + 'isolation = "none"\n'  # scripts tell the test their pids, and wait for its files
        f'poll_s = 2.0\n{terraform_shim.settings()}[[engines]]\ntool = "terraform"\nversion = "{scripted.VERSION}"\npath = "{program}"\n'
    )
    argv = ["join", "--server", server.url, "--token", await server.join_token(), "--name", name, "--home", str(home)]
    argv += ["--ca", str(ca)] if ca else []
    assert await (await listener(*argv)).wait() == 0
    found = identity.load(home)
    assert found is not None
    return found.kept.listener_id


@contextlib.asynccontextmanager
async def running_listener(home: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await listener("run", "--home", str(home))
    try:
        yield process
        assert process.returncode is None
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


def online(listener_id: str) -> Any:
    return lambda: Listener.exists(id=listener_id, free_slots__gt=0)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
