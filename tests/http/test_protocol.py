"""The rules that every answer follows, whatever it is about."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.serving import DATA, Running, state_bytes, until
from terrapod_server.kit.api import parse
from terrapod_server.kit.model import Repeat
from terrapod_server.workspaces.model import Workspace
from terrapod_shared import errors

LIST = "/organizations/default/workspaces"
JSON = {"Content-Type": "application/json"}


async def furnish(server: Running, tmp_path: Path) -> DATA:
    """A workspace with one of everything, and a run that waits for a listener."""
    await server.listener(tmp_path / "home")
    workspace = await server.workspace("all", labels={"env": "prod"})
    raw = state_bytes(1, outputs={"o": {"value": 1, "type": "number"}}, resources=2)
    made = await server.state(workspace["id"], raw)
    put = await server.api.put(made.json()["data"]["attributes"]["hosted-state-upload-url"], content=raw)
    assert put.status_code == 200, put.text
    await server.post(f"/workspaces/{workspace['id']}/vars", {"key": "k", "value": "v", "category": "env"}, "vars")
    await server.configuration(workspace["id"])
    assert (await server.run(workspace["id"], variables=[{"key": "a", "value": "1"}])).status_code == 201
    return workspace


async def test_a_list_shows_of_each_what_is_shown_of_it_alone(server: Running, tmp_path: Path) -> None:
    workspace = await furnish(server, tmp_path)
    own = f"/workspaces/{workspace['id']}"
    pool = await server.pool_id()
    await server.join_token()
    cases = {
        "/organizations": "/organizations",
        "/organizations/default/projects": "/projects",
        LIST: "/workspaces",
        f"{LIST}?search[name]=a": "/workspaces",
        f"{own}/runs": "/runs",
        f"{own}/runs?filter[status]=plan_queued": "/runs",
        "/organizations/default/runs": "/runs",
        "/organizations/default/runs/queue": "/runs",
        f"{own}/configuration-versions": "/configuration-versions",
        f"{own}/state-versions": "/state-versions",
        "/state-versions?filter[workspace][name]=all": "/state-versions",
        f"{own}/current-state-version-outputs": "/state-version-outputs",
        f"{own}/vars": f"{own}/vars",
        f"{own}/all-vars": f"{own}/vars",
        "/organizations/default/agent-pools": "/agent-pools",
        f"/agent-pools/{pool}/authentication-tokens": "/authentication-tokens",
        f"/agent-pools/{pool}/listeners": "/listeners",
    }
    for path, one in cases.items():
        listed = (await server.api.get(path)).json()["data"]
        assert listed, path
        for entry in listed:
            alone = (await server.api.get(f"{one}/{entry['id']}")).json()["data"]
            ages = [each["attributes"].pop("queue-oldest-seconds", 0.0) for each in (entry, alone)]
            assert ages == sorted(ages), "it grows while the test asks"
            assert alone == entry, path


async def test_what_is_included_is_what_is_shown(server: Running, tmp_path: Path) -> None:
    workspace = await furnish(server, tmp_path)
    own = f"/workspaces/{workspace['id']}"
    run = (await server.api.get(f"{own}/runs")).json()["data"][0]["id"]
    cases: dict[str, set[str]] = {
        f"{own}?include=organization,project,current_run,current_run.plan,current_state_version,locked_by,agent_pool": {
            "organizations", "projects", "runs", "plans", "state-versions",
        },
        f"{LIST}?include=organization,current_run.apply,readme,outputs": {"organizations", "runs", "applies"},
        f"/runs/{run}?include=task_stages": set(),
        f"/runs/{run}?include=plan,workspace": {"plans", "workspaces"},
        f"/runs/{run}?include=apply,created_by,cost_estimate,configuration_version.ingress_attributes": {
            "applies", "users", "configuration-versions",
        },
        f"{own}/runs?include=plan,comments,policy_checks": {"plans"},
        f"{own}/current-state-version?include=outputs,run,created_by,run.created_by": {
            "state-version-outputs", "users",
        },
        f"{own}/state-versions?include=outputs": {"state-version-outputs"},
        f"/agent-pools/{await server.pool_id()}?include=workspaces,allowed_workspaces": set(),
    }  # fmt: skip
    for path, kinds in cases.items():
        answers = [await server.api.get(path) for _ in range(2)]  # of which the second is remembered
        for answer in answers:
            assert answer.status_code == 200, (path, answer.text)
            assert {entry["type"] for entry in answer.json()["included"]} == kinds, path
        for entry in answers[1].json()["included"]:
            if entry["type"] not in ("users", "plans", "applies"):  # a log's URL is another one each time
                shown = await server.api.get(f"/{entry['type']}/{entry['id']}")
                assert shown.json()["data"] == entry, path


async def test_bodies_that_are_no_documents(server: Running) -> None:
    async def post(content: bytes, **headers: str) -> httpx.Response:
        return await server.api.post(LIST, content=content, headers={**JSON, **headers})

    deep = b'{"data":' * 100_000 + b"1" + b"}" * 100_000
    for content in (b"{nope", b"NaN", b'{"data": Infinity}', b'{"a": "\\ud800"}', b"\xff\xfe", deep, b'{"data": {}} x'):
        answer = await post(content)
        assert (answer.status_code, answer.json()["errors"][0]["status"]) == (400, "400"), answer.text
    wrong: list[Any] = [[], 7, "x", {"data": []}, {"data": None}, {"data": {"attributes": []}}, {"data": {"type": 7}}]
    for value in wrong:
        assert (await post(json.dumps(value).encode())).status_code == 422, value
    twice = await post(b'{"data": {"attributes": {"name": "a", "name": "b"}}}')
    assert twice.json()["data"]["attributes"]["name"] == "b", "the last one counts"
    packed = await post(b"\x1f\x8b", **{"Content-Encoding": "gzip"})
    assert packed.status_code == 415
    assert "gzip" in packed.text
    assert (await post(b"{}", **{"Content-Type": "multipart/form-data; boundary=x"})).status_code == 415
    assert await Workspace.all().count() == 1


async def test_bodies_that_are_too_large(server: Running) -> None:
    async def endless(chunks: int) -> AsyncIterator[bytes]:
        yield b'{"data": "'
        for _ in range(chunks):
            yield b"x" * 65_536

    for content in (b'{"data": "' + b"x" * (3 << 20) + b'"}', endless(40)):
        answer = await server.api.post(LIST, content=content, headers=JSON)
        assert answer.status_code == 413
        assert "larger than 2097152 bytes" in answer.json()["errors"][0]["detail"]
    assert (await server.api.get(LIST)).status_code == 200


async def test_an_answer_does_not_wait_for_a_body_that_nobody_reads(server: Running) -> None:
    """Hypercorn would hold the connection for good, and its next request with it."""
    large = b"x" * (3 << 20)
    answers = [
        await server.api.put("/uploads/states/no-such-token", content=large),
        await server.api.post("/nothing/here", content=large),
        await server.api.delete("/admin/binary-cache/terraform/1.0.0"),
        await server.api.request("DELETE", "/admin/binary-cache/terraform/1.0.0", content=large),
        await server.api.post(LIST, content=large, headers={**JSON, "Authorization": "Bearer wrong"}),
    ]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 404, 401]
    assert len({answer.extensions["network_stream"].get_extra_info("client_addr") for answer in answers}) == 1
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(3):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PUT /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + large)
        assert b" 404 " in await reader.readline()
        writer.close()
    await until(_is_one_served)  # that of `server.api`, which is kept


async def _is_one_served() -> bool:
    """Whether one connection is left; all that is done for a connection ends before its own task does."""
    served = [task for task in asyncio.all_tasks() if "Connections._serve" in repr(task.get_coro())]
    return len(served) == 1


def test_a_nul_is_known_from_the_letters_of_one() -> None:
    for raw in (rb'{"a": "\u0000"}', rb'{"a": "x\\\u0000"}'):
        with pytest.raises(errors.Invalid):
            parse.decode(raw)
    assert parse.decode(rb'{"a": "\\u0000"}') == {"a": r"\u0000"}


async def test_page_numbers(server: Running) -> None:
    for number in range(3):
        await server.workspace(f"w{number}")
    for query, names in (("page[size]=1000000000", 3), ("page[number]=99999999999999999999", 0), ("page[size]=2", 2)):
        answer = await server.api.get(f"{LIST}?{query}")
        assert (answer.status_code, len(answer.json()["data"])) == (200, names), query
    for query in ("page[size]=0", "page[size]=-1", "page[number]=-1", "page[number]=1.5", "page[number]=\u0663"):
        assert (await server.api.get(f"{LIST}?{query}")).status_code == 422, query


async def test_methods_and_paths(server: Running) -> None:
    workspace = await server.workspace("w")
    path = f"/workspaces/{workspace['id']}"
    answer = await server.api.request("TRACE", path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD, PATCH")
    for doubled in (f"{path}/", f"/workspaces//{workspace['id']}", "/organizations/default//workspaces/w/"):
        assert (await server.api.get(doubled)).json()["data"]["id"] == workspace["id"]
    head = await server.api.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["Content-Length"]) == len((await server.api.get(path)).content)
    stream = await server.api.head(f"{path}/runs/events", timeout=5)
    assert stream.status_code == 200
    assert (await server.api.get(path)).status_code == 200, "on the same connection"
    made = await server.post(f"{path}/vars", {"key": "k", "category": "env"}, "vars")
    variable = f"{path}/vars/{made.json()['data']['id']}"
    gone = await server.api.request("DELETE", variable, content=b"null", headers=JSON)
    assert (gone.status_code, gone.content) == (204, b"")


async def test_workspaces_are_found_and_sorted(server: Running, tmp_path: Path) -> None:
    await server.listener(tmp_path / "home")
    for name, labels in (("a_1", {"n": "1", "t": ""}), ("ab1", {"n": "2"}), ("B-a-b", {}), ("z", {"t": ""})):
        workspace = await server.workspace(name, labels=labels)
        if name in ("z", "a_1"):  # z first
            await server.configuration(workspace["id"])
    for name in ("z", "a_1"):
        workspace = (await server.api.get(f"{LIST}/{name}")).json()["data"]
        assert (await server.run(workspace["id"], **{"plan-only": name == "x"})).status_code == 201
    many = ",".join(f"k{number}" for number in range(3000))
    tagged = "&".join(f"filter[tagged][{number}][key]=k{number}" for number in range(300))
    cases: list[tuple[str, list[str]]] = [
        ("search[name]=a_", ["a_1"]),
        ("search[name]=B-A", ["B-a-b"]),
        ("search[wildcard-name]=a*1", ["a_1", "ab1"]),
        ("search[wildcard-name]=*a*b", ["B-a-b"]),
        ("search[wildcard-name]=b*", ["B-a-b"]),
        ("search[wildcard-name]=z*z", []),
        ("search[tags]=t", ["a_1", "z"]),
        ("search[tags]=t,n,t", ["a_1"]),
        ("search[tags]=t&search[exclude-tags]=n,x", ["z"]),
        (f"search[tags]={many}", []),
        (f"search[exclude-tags]={many}&search[name]=z", ["z"]),
        (tagged, []),
        ("filter[tagged][0][key]=n&filter[tagged][0][value]=2&search[tags]=n&TagBindings={ n 2}", ["ab1"]),
        ("filter[tagged][0][key]=n&filter[tagged][1][key]=t", ["a_1"]),
        ("filter[current-run][status]=plan_queued,planned", ["a_1", "z"]),
        ("filter[current-run][status]=nonsense", []),
        ("filter[project][id]=prj-other", []),
        ("filter[project][id]=prj-00000000000000000default&search[name]=z", ["z"]),
        ("sort=current-run.created-at", ["z", "a_1", *sorted(["ab1", "B-a-b"])]),
        ("sort=-current-run.created-at", ["a_1", "z", *sorted(["ab1", "B-a-b"])]),
    ]
    for query, names in cases:
        answer = await server.api.get(f"{LIST}?{query}")
        assert answer.status_code == 200, (query[:60], answer.text)
        found = [entry["attributes"]["name"] for entry in answer.json()["data"]]
        assert found == names or ("sort=" in query and found[:2] == names[:2]), query[:60]
        assert answer.json()["meta"]["pagination"]["total-count"] == len(names)


async def test_a_key_makes_any_post_one(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    body: Any = {"data": {"attributes": {"serial": 1, "lineage": "l", "md5": "0" * 32}}}
    path = f"/workspaces/{workspace}/state-versions"
    answers = [await server.api.post(path, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].content == answers[1].content
    assert answers[1].headers["X-Terraform-Snapshot-Interval"] == "20"
    lock = f"/workspaces/{workspace}/actions/lock"
    at_once = await asyncio.gather(*(server.api.post(lock, headers={"Idempotency-Key": "l"}) for _ in range(4)))
    assert {answer.status_code for answer in at_once} <= {200, 409}
    assert (await server.api.post(lock, headers={"Idempotency-Key": "l"})).status_code == 200
    assert (await server.api.post(lock)).status_code == 409
    for _ in range(2):  # what failed may be tried again
        refused = await server.post("/runs", {}, "runs")
        assert refused.status_code == 422
    assert {row.status for row in await Repeat.all()} == {200, 201}
