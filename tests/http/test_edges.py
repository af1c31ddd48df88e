"""Requests that take too long, have too many members, or are refused too often."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from kit.serving import Running, running, until
from terrapod_server.audit.writer import Writer
from terrapod_server.kit.http import lockout
from terrapod_shared import ids, wire


@pytest.fixture
async def hasty(database_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    """A server that waits for nobody."""
    limits = {"document_s": 0.5, "stall_s": 0.5}
    async with running(tmp_path / "data", database_url, limits=limits) as server:
        yield server


async def cut_off(server: Running, method: str, path: str, token: str = "") -> bytes:
    """What is answered to a request whose body stops half way, until the connection is closed."""
    port = int(server.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
    if token:
        head += f"Authorization: Bearer {token}\r\n"
    writer.write(head.encode() + b'\r\n{"data":')
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def test_a_body_that_never_comes_keeps_no_connection(hasty: Running) -> None:
    workspace = (await hasty.workspace())["id"]
    made = await hasty.post(f"/workspaces/{workspace}/configuration-versions", {"auto-queue-runs": False})
    upload = httpx.URL(made.json()["data"]["attributes"]["upload-url"]).raw_path.decode()
    answers = await asyncio.gather(
        cut_off(hasty, "POST", "/api/v2/organizations/default/workspaces", hasty.token),
        cut_off(hasty, "POST", f"/api/v2/workspaces/{workspace}/state-versions", hasty.token),
        cut_off(hasty, "PUT", upload),
        cut_off(hasty, "POST", "/api/v2/agent-pools/join"),
        cut_off(hasty, "POST", "/oauth/token"),
    )
    for answer in answers[:4]:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 "), answer
        assert json.loads(body)["errors"][0]["status"] == "408"
    assert answers[4].startswith(b"HTTP/1.1 4")
    assert (await hasty.configuration(workspace))["id"], "nothing is left of what was cut off"


async def test_a_request_has_a_thousand_members_at_most(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    many = [{"type": "workspaces", "id": ids.make("ws")} for _ in range(33_000)]
    tags = [{"type": "tags", "attributes": {"name": f"t{n}"}} for n in range(1001)]
    bindings = [{"type": "tag-bindings", "attributes": {"key": f"t{n}", "value": ""}} for n in range(1001)]
    pool = await server.pool_id()
    for method, path, data in (
        ("POST", f"/workspaces/{workspace}/relationships/remote-state-consumers", many),
        ("PATCH", f"/workspaces/{workspace}/relationships/remote-state-consumers", many[:1001]),
        ("DELETE", f"/workspaces/{workspace}/relationships/remote-state-consumers", many[:1001]),
        ("POST", f"/workspaces/{workspace}/relationships/tags", tags),
        ("PATCH", f"/workspaces/{workspace}/tag-bindings", bindings),
    ):
        answer = await server.api.request(method, path, json={"data": data})
        assert (answer.status_code, answer.json()["errors"][0]["source"]["pointer"]) == (422, "/data"), (
            path,
            answer.text,
        )
        assert "1000 members" in answer.text
    related = {"allowed-workspaces": {"data": many[:1001]}}
    answer = await server.api.patch(f"/agent-pools/{pool}", json={"data": {"relationships": related}})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["source"]["pointer"] == "/data/relationships/allowed-workspaces/data"
    targets = {"target-addrs": [f"a.b{n}" for n in range(1001)]}
    answer = await server.run(workspace, **targets)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["source"]["pointer"] == "/data/attributes/target-addrs"
    path = f"/workspaces/{workspace}/relationships/remote-state-consumers"
    taken = await server.api.post(path, json={"data": many[:1000]})
    assert (taken.status_code, "there is no workspace" in taken.text) == (422, True), taken.text


async def test_wrong_tokens_of_an_address_are_one_entry(server: Running) -> None:
    async def row(**wanted: Any) -> list[dict[str, Any]]:
        query = "&".join(f"filter[{name}]={value}" for name, value in wanted.items())
        found = (await server.api.get(f"/admin/audit-log?page[size]=100&{query}")).json()["data"]
        return [one["attributes"] for one in found if one["attributes"]["status-code"] == 401]

    async with httpx.AsyncClient(base_url=server.url, headers={"Authorization": "Bearer wrong"}) as stranger:
        for number in range(300):
            path = "workspaces" if number % 2 else "runs/queue"
            assert (await stranger.get(f"/api/v2/organizations/default/{path}")).status_code == 401

    async def recorded() -> bool:
        return bool(await row())

    await until(recorded)
    assert len(await row()) == 1
    writer = Writer.of(server.services)
    assert writer is not None
    refusals = writer._refusals
    assert sum(entry.repeats for entry in refusals.rest()) == 299


async def test_wrong_join_tokens_of_a_proxy_refuse_no_good_one(server: Running, tmp_path: Path) -> None:
    wrong = msgspec.json.encode(wire.Join(join_token="wrong", name="x", version="1"))
    async with httpx.AsyncClient(base_url=server.url) as proxy:
        codes = [(await proxy.post("/api/v2/agent-pools/join", content=wrong)).status_code for _ in range(20)]
    assert codes == [401] * lockout.TRIES + [429] * (20 - lockout.TRIES)
    for name in ("one", "two"):
        client = await server.listener(tmp_path / name, name)
        with contextlib.suppress(AttributeError):
            await client.close()
