"""Documents of users that are made to harm who reads them: an error of that document, or a state without its resources."""

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import signal
import tarfile
import time
from collections.abc import AsyncIterator

import pytest

from kit.serving import DATA, Running, running, state_bytes, until
from terrapod_server.states import parse

HOSTILE_LARGE = {
    "objects": b'{"serial": 1, "lineage": "aaaa", "resources": [' + b"{}," * (4 << 20) + b"{}]}",
    "depth": b'{"serial": 1, "lineage": "aaaa", "resources": ' + b"[" * (8 << 20) + b"]" * (8 << 20) + b"}",
    "digits": b'{"serial": 1, "lineage": "aaaa", "x": [' + b"1" * (16 << 20) + b"]}",
    "names": b'{"serial": 1, "lineage": "aaaa", "x": {"%s": [%s]}}' % (b"n" * (1 << 20), b"[]," * (1 << 20) + b"[]"),
}


@pytest.fixture
async def small(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A server whose readers may take little memory."""
    folder = tmp_path_factory.mktemp("small")
    async with running(folder, database_url, limits={"reader_bytes": 256 << 20}) as server:
        yield server


async def deliver(server: Running, raw: bytes, serial: int = 1) -> DATA:
    """Uploads a state into a new workspace; what is shown of it."""
    workspace_id = (await server.workspace())["id"]
    facts = {"serial": serial, "lineage": "aaaa", "md5": hashlib.md5(raw).hexdigest()}
    answer = await server.post(f"/workspaces/{workspace_id}/state-versions", facts, "state-versions")
    assert answer.status_code == 201, answer.text
    put = await server.api.put(answer.json()["data"]["attributes"]["hosted-state-upload-url"], content=raw)
    assert put.status_code == 200, put.text
    answer = await server.api.get(f"/workspaces/{workspace_id}/current-state-version")
    shown: DATA = answer.json()["data"]["attributes"]
    return shown


@pytest.mark.parametrize("kind", ["objects", "depth", "digits"])
async def test_a_large_hostile_state_costs_its_resources_alone(small: Running, kind: str) -> None:
    found, beside = await asyncio.gather(
        deliver(small, HOSTILE_LARGE[kind]), deliver(small, state_bytes(1, resources=4000))
    )
    assert (found["status"], found["serial"], found["resources-processed"]) == ("finalized", 1, False)
    assert found["resources-error"]
    assert (beside["resources-processed"], beside["billable-rum-count"]) == (True, 4000)


async def test_long_names_cost_nothing(small: Running) -> None:
    assert (await deliver(small, HOSTILE_LARGE["names"]))["resources-processed"]


async def test_a_state_whose_reader_is_killed_is_kept(server: Running) -> None:
    raw = state_bytes(9, resources=100_000)
    delivery = asyncio.create_task(deliver(server, raw, 9))

    async def is_read() -> bool:
        return bool(server.services.workers.pids)

    await until(is_read)
    for pid in server.services.workers.pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    found = await delivery
    assert (found["serial"], found["resources-processed"]) == (9, False)
    assert "SIGKILL" in found["resources-error"]
    after = await deliver(server, raw, 9)
    assert (after["resources-processed"], after["billable-rum-count"]) == (True, 100_000)
    assert len(after["resources"]) == parse.RESOURCES_LISTED


async def test_archives_that_are_made_to_be_slow_stop_nobody(server: Running) -> None:
    """Each names a link and, behind it, a name of 100,000 levels."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as out:
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, "x"
        out.addfile(link)
        out.addfile(tarfile.TarInfo("a/" * 100_000 + "b"))
    raw = gzip.compress(buffer.getvalue())
    assert len(raw) < 1000
    workspace_id = (await server.workspace())["id"]
    made = [await server.post(f"/workspaces/{workspace_id}/configuration-versions") for _ in range(7)]
    urls = [answer.json()["data"]["attributes"]["upload-url"] for answer in made]
    begun = time.monotonic()
    answers = await asyncio.gather(*(server.api.put(url, content=raw) for url in urls))
    assert time.monotonic() - begun < 10
    assert {(answer.status_code, "100 parts" in answer.text or "4096" in answer.text) for answer in answers} == {
        (422, True)
    }
    assert (await server.configuration(workspace_id))["id"]
