"""Documents of users that are made to harm who reads them: an error of that document, or a state without its resources."""

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import signal
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.phases import take
from kit.process import Process
from kit.serving import DATA, Running, running, state_bytes, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.states import parse
from terrapod_shared import wire

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
@pytest.mark.slow
async def test_a_large_hostile_state_costs_its_resources_alone(small: Running, kind: str) -> None:
    found, beside = await asyncio.gather(
        deliver(small, HOSTILE_LARGE[kind]), deliver(small, state_bytes(1, resources=4000))
    )
    assert (found["status"], found["serial"], found["resources-processed"]) == ("finalized", 1, False)
    assert found["resources-error"]
    assert (beside["resources-processed"], beside["billable-rum-count"]) == (True, 4000)


async def test_long_names_cost_nothing(small: Running) -> None:
    assert (await deliver(small, HOSTILE_LARGE["names"]))["resources-processed"]


@pytest.mark.slow
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


async def planned(
    server: Running, listener: ListenerClient, folder: Path, plan_json: bytes, schemas: bytes = b"{}"
) -> str:
    """A plan with that JSON; its id. The run is discarded, so that there may be others."""
    workspace_id = (await server.workspace(auto_apply=False))["id"]
    run = (await server.run(workspace_id, (await server.configuration(workspace_id))["id"])).json()["data"]
    work = await take(listener)
    assert work.run_id == run["id"]
    await listener.report(work.run_id, wire.Report(phase="plan", status="planning"), work.lease.number)
    for name, content in (("plan-json", plan_json), ("schemas", schemas)):
        path = folder / name
        path.write_bytes(content)
        target = f"{listener.base}/runs/{work.run_id}/{name}"
        await listener.call("PUT", target, file=path, lease=work.lease.number, timeout_s=60)
    report = wire.Report(phase="plan", status="errored", error_message="enough")
    await listener.report(work.run_id, report, work.lease.number)
    plan_id: str = run["relationships"]["plan"]["data"]["id"]
    return plan_id


def plan_of(value: bytes, marks: bytes = b"{}", count: int = 1) -> bytes:
    """A plan JSON with that value in each of its resources."""
    one = b'{"address": "a.b", "mode": "managed", "type": "a", "provider_name": "p", "change": {"actions": ["create"], '
    one += b'"before": null, "after": {"x": %s, "secret": "hunter2"}, "after_sensitive": {"secret": true, "x": %s}}}'
    many = b",".join([one % (value, marks)] * count)
    return b'{"format_version": "1.2", "prior_state": %s, "resource_changes": [%s]}' % (value, many)


@pytest.mark.parametrize("count", [1, 10_000], ids=["small", "large"])
async def test_a_plan_s_numbers_are_shown_as_they_were_written(server: Running, tmp_path: Path, count: int) -> None:
    listener = await server.listener(tmp_path / "home")
    number = b"1" * 500 + b".10"
    plan = plan_of(b"[%s, %s]" % (number, b"1" * 5_000 if count == 1 else b"2"), b"[false, true]", count)
    plan_id = await planned(server, listener, tmp_path, plan, b'{"provider_schemas": {"p": {"n": 1e400}}}')
    answers = await asyncio.gather(*(server.api.get(f"/plans/{plan_id}/json-output-redacted") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {200}
    assert {hashlib.sha256(answer.content).digest() for answer in answers} == {
        hashlib.sha256(answers[0].content).digest()
    }
    shown = answers[0].content
    assert shown.count(number) == count
    assert shown.count(b'"(sensitive value)"') == 2 * count
    assert b"hunter2" not in shown
    assert b"1e400" in shown


@pytest.mark.parametrize(
    "plan",
    [
        b"[" * 100_000,
        plan_of(b"[" * 1_000 + b"]" * 1_000),
        plan_of(b"[" * 100_000 + b"]" * 100_000, b"[" * 100_000 + b"true" + b"]" * 100_000),
        plan_of(b'{"a": ' * 1_000_000 + b"1" + b"}" * 1_000_000),
        b'{"resource_changes": 7}',
        b'{"resource_changes": ["x"]}',
        b'{"resource_changes": [{"change": ' + b'{"x": ' * 150,
        b'{"deferred_changes": [' + b'{"resource_change": ' * 250 + b"1" + b"}" * 250 + b"]}",
        b"\xff",
        b"",
        b"x" * (2 << 20),
    ],
    ids=range(11),
)
async def test_a_hostile_plan_is_an_error_of_that_plan(server: Running, tmp_path: Path, plan: bytes) -> None:
    listener = await server.listener(tmp_path / "home")
    plan_id = await planned(server, listener, tmp_path, plan)
    for _ in range(2):
        answer = await server.api.get(f"/plans/{plan_id}/json-output-redacted")
        assert (answer.status_code, "cannot be shown" in answer.text) == (422, True), answer.text
    again = await planned(server, listener, tmp_path, plan_of(b"1"))
    assert (await server.api.get(f"/plans/{again}/json-output-redacted")).status_code == 200


@pytest.mark.slow
async def test_an_inline_state_is_small(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    path = f"/workspaces/{workspace_id}/state-versions"
    for size, status in ((15 << 20, 201), (17 << 20, 413), (60 << 20, 413)):
        raw = b'{"serial": %d, "lineage": "l", "x": "%s"}' % (size, b"x" * size)
        facts = {"serial": size, "lineage": "l", "md5": hashlib.md5(raw).hexdigest()}
        answer = await server.post(path, {**facts, "state": base64.b64encode(raw).decode()}, "state-versions")
        assert answer.status_code == status, answer.text[:500]
        assert status == 201 or "hosted-state-upload-url" in answer.text
    assert (await server.api.get(f"/workspaces/{workspace_id}/current-state-version")).json()["data"]["attributes"][
        "serial"
    ] == 15 << 20


@pytest.mark.parametrize("body", [b'{"data": [%s]}' % (b"[]," * 300_000 + b"1"), b'{"data": %s}' % (b"1" * 100_000)])
async def test_a_body_that_would_be_large_in_memory_is_refused(server: Running, body: bytes) -> None:
    workspace_id = (await server.workspace())["id"]
    answer = await server.api.post(
        f"/workspaces/{workspace_id}/state-versions", content=body, headers={"Content-Type": "application/vnd.api+json"}
    )
    assert (answer.status_code, "the body has" in answer.text) == (400, True), answer.text


def resident(pid: int) -> tuple[int, int]:
    """What a process takes now, and the most that it took, in MiB."""
    about = Path(f"/proc/{pid}/status").read_text()
    now, most = (re.search(rf"{name}:\s+(\d+) kB", about) for name in ("VmRSS", "VmHWM"))
    assert now is not None
    assert most is not None
    return int(now[1]) >> 10, int(most[1]) >> 10


@pytest.mark.slow
async def test_many_large_documents_at_once_take_no_more_than_is_given(database_url: str, tmp_path: Path) -> None:
    process = Process(tmp_path / "data", database_url)
    (tmp_path / "data").mkdir()
    async with process.prepared() as server:
        await process.start()
        assert process.process is not None
        pid = process.process.pid
        raw = b'{"serial": 1, "lineage": "l", "x": "%s"}' % (b"x" * (15 << 20))
        facts = {"serial": 1, "lineage": "l", "md5": hashlib.md5(raw).hexdigest()}
        body = {"data": {"attributes": {**facts, "state": base64.b64encode(raw).decode()}}}
        content = json.dumps(body).encode()

        async def create(workspace_id: str) -> int:
            path, media = f"/workspaces/{workspace_id}/state-versions", {"Content-Type": "application/vnd.api+json"}
            while True:
                answer = await server.api.post(path, content=content, headers=media, timeout=300)
                if answer.status_code != 503:
                    return answer.status_code
                assert answer.headers["Retry-After"]

        made = [(await server.workspace())["id"] for _ in range(10)]
        assert await create((await server.workspace())["id"]) == 201, "what one takes for good, ten do not take again"
        before, _ = resident(pid)
        assert set(await asyncio.gather(*(create(workspace_id) for workspace_id in made))) == {201}
        assert resident(pid)[1] < before + 256 + 64

        async def is_given_back() -> bool:
            return resident(pid)[0] < before + 48

        await until(is_given_back, 30)
