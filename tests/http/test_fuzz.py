"""Documents by grammar, with what is odd, large or broken in them: none ends the server, or costs more than its own refusal.

FUZZ_DOCUMENTS says how many of each kind (`make fuzz`), FUZZ_SEED which.
"""

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import httpx
import pytest

from kit import hostile
from kit.phases import take
from kit.process import Process
from kit.serving import Running, state_bytes
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_shared import errors, wire

COUNT = int(os.environ.get("FUZZ_DOCUMENTS", "500"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
#: More than the budget of memory, and what the start of a server leaves open.
MEMORY_MIB = 400
AT_ONCE = 4
pytestmark = [pytest.mark.slow]


@dataclass
class Fuzzed:
    """A server in a process of its own, whose memory is watched."""

    server: Running
    process: Process
    folder: Path

    def check(self) -> None:
        process = self.process.process
        assert process is not None
        assert process.returncode is None, self.process.log[-2000:]
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        assert found is not None
        assert int(found[1]) < MEMORY_MIB << 10


@pytest.fixture
async def fuzzed(tmp_path: Path) -> AsyncIterator[Fuzzed]:
    data = tmp_path / "data"
    data.mkdir()
    process = Process(data, f"sqlite://{data / 'terrapod.sqlite3'}")
    async with process.prepared() as server:
        await process.start()
        made = Fuzzed(server, process, tmp_path)
        yield made
        made.check()
        assert "Traceback" not in process.log, process.log[-4000:]
        workspace_id = (await server.workspace())["id"]
        raw = state_bytes(1)
        answer = await server.state(workspace_id, raw)
        put = await server.api.put(answer.json()["data"]["attributes"]["hosted-state-upload-url"], content=raw)
        assert put.status_code == 200


def is_answer(answer: httpx.Response, seed: int) -> bool:
    assert answer.status_code in (200, 201, 204, 400, 409, 413, 422), (seed, answer.status_code, answer.text[:500])
    return answer.is_success


async def each(fuzzed: Fuzzed, send: Callable[[int], Awaitable[None]]) -> None:
    """Several at once; each seed is a document."""
    seeds = iter(range(SEED, SEED + COUNT))

    async def some() -> None:
        for seed in seeds:
            await send(seed)
            if not seed % 50:
                fuzzed.check()

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))


async def test_states(fuzzed: Fuzzed) -> None:
    server, taken = fuzzed.server, 0

    async def send(seed: int) -> None:
        nonlocal taken
        raw = hostile.state(Random(seed))
        workspace_id = (await server.workspace())["id"]
        facts = {"serial": 1, "lineage": "line", "md5": hashlib.md5(raw).hexdigest()}
        made = await server.post(f"/workspaces/{workspace_id}/state-versions", facts, "state-versions")
        put = await server.api.put(made.json()["data"]["attributes"]["hosted-state-upload-url"], content=raw)
        if not is_answer(put, seed):
            return
        taken += 1
        version = made.json()["data"]["id"]
        download = await server.api.get(f"/state-versions/{version}/download", follow_redirects=True)
        assert download.content == raw, seed
        for path in (f"/state-versions/{version}", f"/workspaces/{workspace_id}/current-state-version-outputs"):
            assert is_answer(await server.api.get(path), seed)

    await each(fuzzed, send)
    assert COUNT // 4 < taken < COUNT, "neither all are good nor all are bad"


async def test_archives(fuzzed: Fuzzed) -> None:
    server, taken = fuzzed.server, 0
    workspace_id = (await server.workspace())["id"]

    async def send(seed: int) -> None:
        nonlocal taken
        made = await server.post(f"/workspaces/{workspace_id}/configuration-versions", {"auto-queue-runs": False})
        url = made.json()["data"]["attributes"]["upload-url"]
        taken += is_answer(await server.api.put(url, content=hostile.archive(Random(seed))), seed)

    await each(fuzzed, send)
    assert COUNT // 20 < taken < COUNT


async def test_plans_and_lock_files(fuzzed: Fuzzed) -> None:
    server, shown = fuzzed.server, 0
    listener = await server.listener(fuzzed.folder / "home")
    workspace_id = (await server.workspace())["id"]
    configuration = (await server.configuration(workspace_id))["id"]
    for seed in range(SEED, SEED + COUNT):
        run = (await server.run(workspace_id, configuration, message=f"{seed}")).json()["data"]
        work = await take(listener)
        await listener.report(work.run_id, wire.Report(phase="plan", status="planning"), work.lease.number)
        rng = Random(seed)
        for name, raw in (("plan-json", hostile.plan_json(rng)), ("lock-file", hostile.lock_file(rng))):
            await put(listener, work, name, raw, fuzzed.folder / name)
        if not seed % 2:
            schemas = hostile.table(rng, {b"provider_schemas": hostile.value(rng)})
            await put(listener, work, "schemas", schemas, fuzzed.folder / "schemas")
        report = wire.Report(phase="plan", status="errored", error_message="enough")
        await listener.report(work.run_id, report, work.lease.number)
        plan_id = run["relationships"]["plan"]["data"]["id"]
        shown += is_answer(await server.api.get(f"/plans/{plan_id}/json-output-redacted"), seed)
        if not seed % 50:
            fuzzed.check()
    assert COUNT // 20 < shown < COUNT
    await listener.close()


async def put(listener: ListenerClient, work: wire.Work, name: str, raw: bytes, path: Path) -> None:
    path.write_bytes(raw)
    target = f"{listener.base}/runs/{work.run_id}/{name}"
    with contextlib.suppress(errors.Invalid, errors.TooLarge, errors.BadRequest):
        await listener.call("PUT", target, file=path, lease=work.lease.number, timeout_s=60)
