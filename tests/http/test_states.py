"""States over HTTP: nothing is lost, nothing is shown that is secret, and races have one winner."""

import asyncio
import base64
import hashlib
import json
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit.serving import DATA, Running, state_bytes, until
from terrapod_server.states import actions
from terrapod_server.states.model import StateVersion
from terrapod_server.store import keys
from terrapod_server.store.port import once
from terrapod_server.workspaces.model import Workspace
from terrapod_shared.errors import Conflict, Invalid, NotFound

MEDIA = "application/vnd.api+json"
OUTPUTS: DATA = {
    "plain": {"value": {"n": 9223372036854775808999}, "type": ["object", {"n": "number"}]},
    "hidden": {"value": "hunter2-in-state", "type": "string", "sensitive": True},
}


async def announce(server: Running, workspace_id: str, raw: bytes, **more: Any) -> DATA:
    answer = await server.state(workspace_id, raw, **more)
    assert answer.status_code == 201, answer.text
    data: DATA = answer.json()["data"]
    return data


async def put(server: Running, version: DATA, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
    return await server.api.put(version["attributes"]["hosted-state-upload-url"], content=content)


async def uploaded(server: Running, workspace_id: str, raw: bytes, **more: Any) -> DATA:
    version = await announce(server, workspace_id, raw, **more)
    answer = await put(server, version, raw)
    assert answer.status_code == 200, answer.text
    return version


def files(server: Running) -> set[Path]:
    return {path for path in server.folder.rglob("states/*") if path.is_file()}


async def test_a_state_is_announced_sent_and_read_back(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(3, "line", OUTPUTS, resources=2)
    answer = await server.state(workspace_id, raw)
    assert answer.headers["Content-Type"].startswith(MEDIA)
    assert answer.headers["X-Terraform-Snapshot-Interval"] == "20"
    version = answer.json()["data"]
    assert (await put(server, version, raw)).status_code == 200
    assert (await put(server, version, raw)).status_code == 200

    now = await server.api.get(f"/workspaces/{workspace_id}/current-state-version")
    assert now.headers["Content-Type"].startswith(MEDIA)
    shown = now.json()["data"]
    assert (shown["id"], shown["attributes"]["status"], shown["attributes"]["serial"]) == (
        version["id"], "finalized", 3,
    )  # fmt: skip
    assert not shown["attributes"].get("hosted-state-upload-url")
    assert not shown["attributes"].get("hosted-json-state-upload-url")

    moved = await server.api.get(shown["attributes"]["hosted-state-download-url"])
    assert moved.status_code == 302
    async with httpx.AsyncClient() as nobody:
        assert (await nobody.get(moved.headers["Location"])).content == raw
        assert (await nobody.get(shown["attributes"]["hosted-state-download-url"])).status_code in (401, 404)
        assert (await nobody.get(moved.headers["Location"][:-2] + "xx")).status_code == 404
    assert len(files(server)) == 1


async def test_a_workspace_without_state(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    now = await server.api.get(f"/workspaces/{workspace_id}/current-state-version")
    assert (now.status_code, now.headers["X-Terraform-Snapshot-Interval"]) == (404, "20")
    assert now.headers["Content-Type"].startswith(MEDIA)
    outputs = await server.api.get(f"/workspaces/{workspace_id}/current-state-version-outputs")
    assert (outputs.status_code, outputs.json()["data"]) == (200, [])


async def test_other_bytes_than_announced_are_not_kept_and_the_url_stays_good(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(3, "line")
    version = await announce(server, workspace_id, raw)
    assert (await put(server, version, raw + b" ")).status_code == 422
    for other in (state_bytes(2, "line"), b"{hunter2", state_bytes(3, "line\0")):
        md5 = hashlib.md5(other).hexdigest()
        wrong = await announce(server, workspace_id, raw, md5=md5)
        answer = await put(server, wrong, other)
        assert answer.status_code == 422, answer.text
        assert "hunter2" not in answer.text
    assert files(server) == set()
    assert (await server.api.get(f"/workspaces/{workspace_id}/current-state-version")).status_code == 404
    version = await announce(server, workspace_id, raw)
    assert (await put(server, version, b"")).status_code == 422
    assert (await put(server, version, raw)).status_code == 200


async def test_a_serial_or_lineage_that_does_not_follow_needs_force(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    await uploaded(server, workspace_id, state_bytes(5, "line"))
    for raw in (state_bytes(4, "line"), state_bytes(5, "line", resources=1), state_bytes(6, "other")):
        assert (await server.state(workspace_id, raw)).status_code == 409
        await uploaded(server, workspace_id, raw, force=True)
        await uploaded(server, workspace_id, state_bytes(5, "line"), force=True)


async def current_of(server: Running, workspace_id: str) -> DATA:
    answer = await server.api.get(f"/workspaces/{workspace_id}/current-state-version")
    shown: DATA = answer.json()["data"]["attributes"]
    return shown


async def test_what_was_announced_is_shown_and_counted_by(server: Running) -> None:
    """go-tfe's users announce serials that the bytes do not have, and often no lineage."""
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(7, "inner")
    await uploaded(server, workspace_id, raw, serial=0, lineage=None)
    shown = await current_of(server, workspace_id)
    assert (shown["serial"], shown["lineage"]) == (0, "inner"), "an absent lineage is that of the bytes"
    await uploaded(server, workspace_id, raw, serial=1, lineage=None)
    assert (await current_of(server, workspace_id))["serial"] == 1
    assert (await server.state(workspace_id, state_bytes(8, "inner"), serial=1)).status_code == 409
    assert (await server.state(workspace_id, raw, serial=0)).status_code == 409
    await uploaded(server, workspace_id, raw, serial=2, lineage="inner")
    await uploaded(server, workspace_id, state_bytes(8, "inner"))
    kept = await StateVersion.get(workspace_id=workspace_id, serial=2)
    assert (kept.serial_in_bytes, kept.lineage_in_bytes) == (7, "inner")


async def test_a_serial_above_that_of_the_bytes_is_refused(server: Running) -> None:
    """terraform counts from the bytes: its next state would come with a serial that is no news."""
    workspace_id = (await server.workspace())["id"]
    version = await announce(server, workspace_id, state_bytes(3, "line"), serial=4)
    answer = await put(server, version, state_bytes(3, "line"))
    assert (answer.status_code, "below the 4" in answer.text) == (422, True)
    raw = base64.b64encode(state_bytes(3, "line")).decode()
    assert (await server.state(workspace_id, state_bytes(3, "line"), serial=4, state=raw)).status_code == 422
    assert files(server) == set()
    await uploaded(server, workspace_id, state_bytes(3, "line"), serial=3)


async def test_which_lineages_follow(server: Running) -> None:
    """The one announced before, and the one in the bytes; bytes of another lineage need force, whatever is announced."""
    workspace_id = (await server.workspace())["id"]
    await uploaded(server, workspace_id, state_bytes(5, "inner"), serial=1, lineage="announced")
    assert (await current_of(server, workspace_id))["lineage"] == "announced"
    await uploaded(server, workspace_id, state_bytes(6, "inner"), serial=2, lineage="announced")
    await uploaded(server, workspace_id, state_bytes(7, "inner"), serial=3, lineage="inner")
    refused = await server.state(workspace_id, state_bytes(8, "inner"), serial=4, lineage="announced")
    assert refused.status_code == 409, "it is neither the one announced last nor the one in the bytes"
    for lineage in ("inner", None):
        version = await announce(server, workspace_id, state_bytes(9, "other"), lineage=lineage)
        answer = await put(server, version, state_bytes(9, "other"))
        assert (answer.status_code, "the lineage in the bytes" in answer.text) == (409, True)
    assert (await current_of(server, workspace_id))["serial"] == 3
    await uploaded(server, workspace_id, state_bytes(9, "other"), lineage="inner", force=True)
    shown = await current_of(server, workspace_id)
    assert (shown["lineage"], shown["replaced"]["serial"]) == ("inner", 3)


async def test_what_a_run_sends_is_judged_by_the_bytes(server: Running) -> None:
    """Its serial is above that of the bytes that it began with, and its lineage is theirs, whatever was announced."""
    workspace_id = (await server.workspace())["id"]
    await uploaded(server, workspace_id, state_bytes(5, "inner"), serial=1, lineage="announced")

    async def send(raw: bytes, serial: int, lineage: str) -> StateVersion:
        return await actions.accept_from_run(
            server.services, workspace_id=workspace_id, run_id="run-a", serial=serial, lineage=lineage,
            md5=hashlib.md5(raw).hexdigest(), chunks=once(raw),
        )  # fmt: skip

    with pytest.raises(Conflict):
        await send(state_bytes(5, "inner", resources=1), 5, "inner")
    with pytest.raises(Conflict, match="lineage"):
        await send(state_bytes(6, "announced"), 6, "announced")
    with pytest.raises(Invalid):
        await send(state_bytes(7, "inner"), 6, "inner")
    kept = await send(state_bytes(6, "inner"), 6, "")
    assert (kept.status, kept.serial, kept.lineage) == ("finalized", 6, "inner")


async def test_rows_of_before_have_one_serial(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    version = await uploaded(server, workspace_id, state_bytes(5, "line"))
    await StateVersion.filter(id=version["id"]).update(bytes_serial=None, bytes_lineage=None)
    assert (await server.state(workspace_id, state_bytes(6, "other"))).status_code == 409
    await uploaded(server, workspace_id, state_bytes(6, "line"))


async def test_what_is_current_does_not_hang_on_a_clock(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids are in the order of clocks: one that was ahead must not keep an old state current."""
    workspace_id = (await server.workspace())["id"]
    with monkeypatch.context() as ahead:
        ahead.setattr("terrapod_shared.ids.time.time_ns", lambda now=time.time_ns: now() + 600 * 10**9)
        first = await uploaded(server, workspace_id, state_bytes(1, "line"))
    second = await uploaded(server, workspace_id, state_bytes(2, "line"))
    assert second["id"] < first["id"]
    shown = (await server.api.get(f"/workspaces/{workspace_id}/current-state-version")).json()["data"]
    assert (shown["id"], shown["attributes"]["serial"]) == (second["id"], 2)
    handed_out = await actions.current(workspace_id)
    assert handed_out is not None
    assert handed_out.id == second["id"], "what a run is given is what is shown"
    other = state_bytes(2, "line", {"a": {"value": "other", "type": "string"}})
    refused = await server.state(workspace_id, other)
    assert refused.status_code == 409, refused.text


async def test_attributes_that_no_database_takes(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    for wrong in ({"lineage": "a\0b"}, {"serial": 1 << 63}, {"md5": "z" * 32}, {"state": "no base64!"}):
        assert (await server.state(workspace_id, state_bytes(1), **wrong)).status_code == 422, wrong


async def test_a_state_may_come_with_its_announcement(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(1, outputs=OUTPUTS)
    version = await announce(server, workspace_id, raw, state=base64.b64encode(raw).decode())
    assert version["attributes"]["status"] == "finalized"
    again = state_bytes(2)
    wrong = await server.state(workspace_id, again, state=base64.b64encode(raw).decode())
    assert wrong.status_code == 422
    assert len(files(server)) == 1


async def test_upload_urls_are_for_their_time_and_one_body(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(1)
    version = await announce(server, workspace_id, raw)
    bare = f"/state-versions/{version['id']}/content"
    for purpose, until_s in (("state upload", -1), ("json state upload", 60), ("state download", 60)):
        token = server.services.signer.sign(purpose, version["id"], until_s)
        assert (await server.api.put(f"/uploads/states/{token}", content=raw)).status_code == 404, purpose
    assert (await server.api.put(bare, content=raw, headers={"Authorization": ""})).status_code == 401
    assert (await server.api.put(bare, content=raw)).status_code == 200
    assert (await server.api.put(bare, content=raw)).status_code == 200
    async with httpx.AsyncClient() as nobody:  # the URL is the right
        url = version["attributes"]["hosted-state-upload-url"]
        assert (await nobody.put(url, content=raw)).status_code == 200
        assert (await nobody.put(url, content=state_bytes(1, resources=1))).status_code == 422
    assert (await server.api.get(f"/state-versions/{version['id']}")).json()["data"]["attributes"]["size"] == len(raw)
    assert (await server.api.delete(f"/state-versions/{version['id']}")).status_code == 405
    later = state_bytes(2)
    older, newer = [await announce(server, workspace_id, later) for _ in range(2)]
    assert (await put(server, older, later)).status_code == 409
    assert (await put(server, newer, later)).status_code == 200
    for status, count in (("finalized", 2), ("discarded", 1), ("pending", 0)):
        answer = await server.api.get(f"/workspaces/{workspace_id}/state-versions?filter[status]={status}")
        assert len(answer.json()["data"]) == count, status


async def test_an_admin_who_holds_the_lock_needs_no_force(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    """The cloud block cannot send `force`: `terraform state push -force` comes without."""
    workspace_id = (await server.workspace())["id"]
    await uploaded(server, workspace_id, state_bytes(5, "line"))
    for raw in (state_bytes(2, "line"), state_bytes(1, "other")):
        assert (await server.state(workspace_id, raw)).status_code == 409
        assert (await server.api.post(f"/workspaces/{workspace_id}/actions/lock")).status_code == 200
        version = await uploaded(server, workspace_id, raw)
        assert (await server.api.post(f"/workspaces/{workspace_id}/actions/unlock")).status_code == 200
        now = (await server.api.get(f"/workspaces/{workspace_id}/current-state-version")).json()["data"]
        assert (now["id"], now["attributes"]["force"]) == (version["id"], True)
        assert f"state {version['id']} of workspace {workspace_id}" in caplog.text


async def test_locks_count_when_the_bytes_come(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(1)
    version = await announce(server, workspace_id, raw)
    token = await server.person("other@example.com", "admin")
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, base_url=server.api.base_url) as second:
        assert (await second.post(f"/workspaces/{workspace_id}/actions/lock", json={})).status_code == 200
        refused = await put(server, version, raw)
        assert refused.status_code == 409
        assert "is locked by User" in refused.text
        assert (await server.state(workspace_id, raw)).status_code == 409
        assert (await second.post(f"/workspaces/{workspace_id}/actions/unlock", json={})).status_code == 200
    await Workspace.filter(id=workspace_id).update(run_lock_id="run-abc")
    refused = await put(server, version, raw)
    assert refused.status_code == 409
    assert "is locked by Run run-abc" in refused.text
    assert (await server.state(workspace_id, raw)).status_code == 409
    assert files(server) == set()
    await Workspace.filter(id=workspace_id).update(run_lock_id=None)
    assert (await put(server, version, raw)).status_code == 200


async def test_an_upload_that_is_cut_leaves_nothing(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(1, resources=9000)
    version = await announce(server, workspace_id, raw)

    async def cut() -> AsyncIterator[bytes]:
        yield raw[: len(raw) // 2]
        message = "the line is dead"
        raise ConnectionError(message)

    with pytest.raises(ConnectionError):
        await put(server, version, cut())
    assert (await put(server, version, raw[:-5])).status_code == 422
    assert (await put(server, version, raw)).status_code == 200
    assert len(files(server)) == 1


async def test_outputs_hide_what_is_sensitive(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    await uploaded(server, workspace_id, state_bytes(1, outputs=OUTPUTS))
    answer = await server.api.get(f"/workspaces/{workspace_id}/current-state-version-outputs")
    assert "9223372036854775808999" in answer.text
    rows = {row["attributes"]["name"]: row for row in answer.json()["data"]}
    assert rows["plain"]["attributes"]["value"] == OUTPUTS["plain"]["value"]
    assert rows["plain"]["attributes"]["detailed-type"] == ["object", {"n": "number"}]
    assert rows["hidden"]["attributes"]["value"] is None
    one = await server.api.get(f"/state-version-outputs/{rows['hidden']['id']}")
    assert one.json()["data"]["attributes"]["value"] == "hunter2-in-state"
    for path in server.folder.rglob("*"):
        if path.is_file():
            assert b"hunter2-in-state" not in path.read_bytes(), path


async def test_an_output_that_is_not_kept_has_no_type(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    large = {"value": "x" * (2 << 20), "type": "string"}
    await uploaded(server, workspace_id, state_bytes(1, outputs={"large": large}))
    rows = (await server.api.get(f"/workspaces/{workspace_id}/current-state-version-outputs")).json()["data"]
    assert [(row["attributes"]["value"], row["attributes"]["detailed-type"]) for row in rows] == [(None, None)]


async def test_the_json_form_is_taken_of_what_is_not_discarded(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    old = await announce(server, workspace_id, state_bytes(1))
    new = await uploaded(server, workspace_id, state_bytes(2))
    url = "hosted-json-state-upload-url"
    assert (await server.api.put(old["attributes"][url], content=b"{}")).status_code == 409
    assert (await server.api.put(new["attributes"][url], content=b'{"a": 1}')).status_code == 200
    moved = await server.api.get(f"/state-versions/{new['id']}/json-download")
    assert (await server.api.get(moved.headers["Location"])).content == b'{"a": 1}'
    assert len(files(server)) == 2


async def test_the_json_form_is_taken_once(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    version = await uploaded(server, workspace_id, state_bytes(1))
    url = version["attributes"]["hosted-json-state-upload-url"]
    sent = [await server.api.put(url, content=content) for content in (b'{"a": 1}', b'{"a": 1}', b'{"a": 2}')]
    assert [answer.status_code for answer in sent] == [200, 200, 409]
    moved = await server.api.get(f"/state-versions/{version['id']}/json-download")
    assert (await server.api.get(moved.headers["Location"])).content == b'{"a": 1}'


async def test_a_state_and_its_json_form_may_come_along(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(1, resources=20_000)  # more than a piece
    inline = {"state": base64.b64encode(raw).decode(), "json-state": base64.b64encode(b'{"a": 1}').decode()}
    for wrong in ({"state": inline["state"][:-5]}, {"json-state": "%"}, {"state": inline["state"] + "QQ=="}):
        assert (await server.state(workspace_id, raw, **{**inline, **wrong})).status_code == 422
        assert files(server) == set()
    for _ in range(2):  # the second is a repeat
        made = await server.state(workspace_id, raw, **inline)
        assert made.status_code == 201, made.text
        assert made.json()["data"]["attributes"]["status"] == "finalized"
        moved = await server.api.get(made.json()["data"]["attributes"]["hosted-json-state-download-url"])
        assert (await server.api.get(moved.headers["Location"])).content == b'{"a": 1}'
    assert len(files(server)) == 2


@pytest.mark.slow
async def test_many_slow_uploads_at_once_all_end(server: Running) -> None:
    """Each holds its first half until all have sent theirs."""
    begun = 0
    all_begun = asyncio.Event()

    async def slowly(raw: bytes) -> AsyncIterator[bytes]:
        nonlocal begun
        yield raw[: len(raw) // 2]
        begun += 1
        if begun == 20:
            all_begun.set()
        await all_begun.wait()
        yield raw[len(raw) // 2 :]

    raw = state_bytes(1, resources=4000)
    ids = [(await server.workspace())["id"] for _ in range(20)]
    versions = [await announce(server, workspace_id, raw) for workspace_id in ids]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(put(server, version, slowly(raw)) for version in versions))
    assert {answer.status_code for answer in answers} == {200}
    assert {row.resource_count for row in await StateVersion.all()} == {4000}


async def test_a_large_state_streams_through(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = json.dumps({"version": 4, "serial": 1, "lineage": "l", "big": ["x" * 1000] * (34 << 10)}).encode()
    assert len(raw) > 32 << 20
    version = await announce(server, workspace_id, raw)

    async def sent() -> AsyncIterator[bytes]:
        for at in range(0, len(raw), 1 << 18):
            yield raw[at : at + (1 << 18)]

    tracemalloc.start()
    try:
        assert (await put(server, version, sent())).status_code == 200
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (await StateVersion.get(id=version["id"])).size == len(raw)


async def test_the_same_bytes_twice_at_once_are_good_twice(pg_server: Running) -> None:
    workspace_id = (await pg_server.workspace())["id"]
    raw = state_bytes(1, resources=200)
    version = await announce(pg_server, workspace_id, raw)
    answers = await asyncio.gather(*(put(pg_server, version, raw) for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len(files(pg_server)) == 1
    row = await StateVersion.get(id=version["id"])
    assert await pg_server.services.store.size(row.key) == len(raw)


async def test_other_bytes_at_once_have_one_winner(pg_server: Running) -> None:
    workspace_id = (await pg_server.workspace())["id"]
    raws = [state_bytes(1, "line", resources=count) for count in (1, 2, 3, 4)]

    async def send(raw: bytes) -> bool:
        try:
            await actions.accept_from_run(
                pg_server.services, workspace_id=workspace_id, run_id="run-a", serial=1, lineage="line",
                md5=hashlib.md5(raw).hexdigest(), chunks=once(raw),
            )  # fmt: skip
        except Conflict:
            return False
        return True

    assert sorted(await asyncio.gather(*(send(raw) for raw in raws))) == [False, False, False, True]
    assert len(files(pg_server)) == 1
    assert [row.status for row in await StateVersion.all()] == ["finalized"]


async def test_a_run_that_sends_a_state_twice_at_once_makes_one_version(pg_server: Running) -> None:
    workspace_id = (await pg_server.workspace())["id"]
    raw = state_bytes(1, "line", resources=50)
    found = await asyncio.gather(
        *(
            actions.accept_from_run(
                pg_server.services,
                workspace_id=workspace_id,
                run_id="run-a",
                serial=1,
                lineage="line",
                md5=hashlib.md5(raw).hexdigest(),
                chunks=once(raw),
            )
            for _ in range(4)
        )
    )
    assert len({row.id for row in found}) == 1
    assert len(await StateVersion.all()) == 1
    assert len(files(pg_server)) == 1


async def test_a_fence_that_fell_keeps_nothing(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(1)

    async def fallen() -> None:
        raise NotFound

    with pytest.raises(NotFound):
        await actions.accept_from_run(
            server.services, workspace_id=workspace_id, run_id="run-a", serial=1, lineage="aaaa",
            md5=hashlib.md5(raw).hexdigest(), chunks=once(raw), fence=fallen,
        )  # fmt: skip
    assert await StateVersion.all() == []
    assert await server.services.store.keys(f"{keys.workspace(workspace_id)}states/") == []


async def test_who_goes_away_at_the_commit_takes_no_bytes_along(server: Running) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(1)
    version = await announce(server, workspace_id, raw)
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def fence() -> None:
        reached.set()
        await go_on.wait()

    task = asyncio.create_task(actions.upload(server.services, version["id"], once(raw), fence))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await until(lambda: StateVersion.get_or_none(id=version["id"], status="finalized"))
    row = await StateVersion.get(id=version["id"])
    assert await server.services.store.size(row.key) == len(raw)
    assert (await put(server, version, raw)).status_code == 200
    assert len(files(server)) == 1


async def test_a_state_names_no_run_of_another_workspace(server: Running) -> None:
    engine = {"terraform-version": "1.15.5"}
    await server.listener(server.folder / "one")
    hidden = (await server.workspace(**engine))["id"]
    open_ = (await server.workspace(**engine, labels={"team": "a"}))["id"]
    await server.configuration(hidden)
    run_id = (await server.run(hidden)).json()["data"]["id"]
    await server.post("/roles", {"name": "dev", "workspace-permission": "write", "allow-labels": {"team": "a"}})
    raw = state_bytes()
    document = {
        "serial": 1, "lineage": "aaaa", "md5": hashlib.md5(raw).hexdigest(),
        "state": base64.b64encode(raw).decode(),
    }  # fmt: skip
    async with server.as_(await server.person("ann@example.org", "dev")) as ann:

        async def announced(run: str) -> httpx.Response:
            related = {"run": {"data": {"type": "runs", "id": run}}}
            data = {"type": "state-versions", "attributes": document, "relationships": related}
            return await ann.post(f"/workspaces/{open_}/state-versions?include=run.plan", json={"data": data})

        assert (await ann.get(f"/runs/{run_id}")).status_code == 404
        refused = await announced(run_id)
        assert refused.status_code == 422, refused.text
        assert "included" not in refused.json()
        unknown = await announced("run-00000000000000000000000000")
        assert unknown.json() == refused.json(), "nobody learns that there is such a run"
        assert (await ann.get(f"/workspaces/{open_}/current-state-version")).status_code == 404
        await server.configuration(open_)
        own = (await server.run(open_)).json()["data"]["id"]
        await server.api.post(f"/runs/{own}/actions/cancel")
        assert (await announced(own)).status_code == 201


@pytest.mark.parametrize(
    "value", [b"1" * 5_000, b"1e" + b"9" * 5_000, b"[" * 30_000 + b"]" * 30_000], ids=["digits", "exponent", "depth"]
)
async def test_a_state_is_kept_whatever_it_contains(server: Running, value: bytes) -> None:
    workspace_id = (await server.workspace())["id"]
    raw = state_bytes(3, resources=1, outputs=OUTPUTS).replace(b'"id": "0"', b'"id": ' + value)
    facts = {"serial": 3, "lineage": "aaaa", "md5": hashlib.md5(raw).hexdigest()}
    inline = {"state": base64.b64encode(raw).decode()} if len(raw) < 10_000 else {}
    answer = await server.post(f"/workspaces/{workspace_id}/state-versions", facts | inline, "state-versions")
    assert answer.status_code == 201, answer.text
    if not inline:
        assert (await put(server, answer.json()["data"], raw)).status_code == 200
    version = (await server.api.get(f"/workspaces/{workspace_id}/current-state-version")).json()
    shown = version["data"]["attributes"]
    assert (shown["status"], shown["serial"], shown["resources-processed"]) == ("finalized", 3, False)
    assert shown["resources"] == []
    assert "number" in shown["resources-error"] or "nesting" in shown["resources-error"]
    download = await server.api.get(f"/state-versions/{version['data']['id']}/download", follow_redirects=True)
    assert download.content == raw
    outputs = (await server.api.get(f"/workspaces/{workspace_id}/current-state-version-outputs")).json()["data"]
    assert {one["attributes"]["name"] for one in outputs} == set(OUTPUTS)
    assert {one["attributes"]["detailed-type"] for one in outputs} == {None}  # the CLI reads the state instead
