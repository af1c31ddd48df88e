"""What the audit log records, what never enters it, and that nothing of it can be changed unnoticed."""

import asyncio
import contextlib
import functools
import json
import os
import signal
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest

from kit.browser import Browser
from kit.postgres import free_port
from kit.serving import DATA, Running, running, state_bytes, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.audit import actions
from terrapod_server.audit.rules import Entry
from terrapod_server.audit.writer import Writer
from terrapod_server.commands import accounts, audit
from terrapod_server.config.load import load
from terrapod_server.identity import actions as identity
from terrapod_server.identity import sessions
from terrapod_server.store.cipher import KeyRing
from terrapod_shared import wire

LOG = "/admin/audit-log"
PASSWORD = "a heron stands in shallow water"
PROGRAM = Path(sys.executable).parent / "terrapod-server"
ENGINES = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]


async def entries(server: Running, query: str = "") -> list[DATA]:
    """All that a query finds, newest first, as attributes with the id."""
    found: list[DATA] = []
    number = 1
    while True:
        answer = await server.api.get(f"{LOG}?page[size]=100&page[number]={number}&{query}")
        assert answer.status_code == 200, answer.text
        found += [{"id": entry["id"], **entry["attributes"]} for entry in answer.json()["data"]]
        if answer.json()["meta"]["pagination"]["next-page"] is None:
            return found
        number += 1


async def entry(server: Running, **wanted: Any) -> DATA:
    """The newest entry with these attributes, once it is there."""

    async def ask() -> DATA | None:
        for found in await entries(server):
            if all(found[name.replace("_", "-")] == value for name, value in wanted.items()):
                return found
        return None

    found: DATA = await until(ask)
    return found


class Sql:
    """The database as somebody sees it who has it, and nothing else of the server."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __call__(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        if self._url.startswith("sqlite"):
            with contextlib.closing(sqlite3.connect(self._url.removeprefix("sqlite://"), timeout=30)) as opened, opened:
                return list(opened.execute(sql.replace("$", "?"), values))
        connection = await asyncpg.connect(self._url)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *values)]
        finally:
            await connection.close()

    async def copy(self, table: str) -> list[tuple[Any, ...]]:
        return await self(f"SELECT * FROM {table}")

    async def put_back(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        await self(f"DELETE FROM {table}")
        for row in rows:
            marks = ", ".join(f"${place}" for place in range(1, len(row) + 1))
            await self(f"INSERT INTO {table} VALUES ({marks})", *row)


async def verified(
    folder: Path, database_url: str, capsys: pytest.CaptureFixture[str], *files: Path
) -> tuple[int, str]:
    """Exit code and words of `audit verify`."""
    capsys.readouterr()
    code = await audit.verify(load({}, None, data=str(folder), database_url=database_url), files)
    return code, capsys.readouterr().out


def writer_of(server: Running) -> Writer:
    found = Writer.of(server.services)
    assert found is not None
    return found


async def test_changes_and_refusals_are_recorded(server: Running) -> None:
    made = await server.workspace("audited")
    key = made["id"]
    lock = await server.api.post(
        f"/workspaces/{key}/actions/lock", json={"reason": "x"}, headers={"User-Agent": "me/1"}
    )
    found = await entry(server, path="/api/v2/workspaces/{workspace}/actions/lock")
    assert found["request-id"] == lock.headers["x-request-id"]
    assert (found["actor-email"], found["actor-type"], found["actor-ip"]) == ("admin@localhost", "user", "127.0.0.1")
    assert found["token-id"].startswith("at-")
    assert (found["action"], found["status-code"], found["user-agent"]) == ("POST", 200, "me/1")
    assert (found["resource-type"], found["resource-id"], found["workspace-id"]) == ("workspaces", key, key)
    assert found["id"].startswith("ae-")
    assert 0 < found["duration-ms"] < 60_000
    assert abs(datetime.fromisoformat(found["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)

    created = await entry(server, path="/api/v2/organizations/{org}/workspaces", action="POST")
    assert (created["resource-type"], created["resource-id"], created["status-code"]) == ("workspaces", key, 201)
    variable = await server.post(f"/workspaces/{key}/vars", {"key": "a", "value": "b", "category": "env"}, "vars")
    added = await entry(server, resource_type="vars")
    assert (added["resource-id"], added["workspace-id"]) == (variable.json()["data"]["id"], key)

    for length in (41, 128, 129, 300):  # longer than any id, and longer than what is kept of one
        assert (await server.api.post(f"/workspaces/{'x' * length}/actions/lock")).status_code == 404
    await entry(server, resource_id="x" * 128, status_code=404, workspace_id=None)
    assert (await server.api.post(f"/workspaces/{key}/actions/lock")).status_code == 409
    await entry(server, status_code=409, resource_id=key)
    stranger = await server.api.get(f"/workspaces/{key}", headers={"Authorization": "Bearer tpod_wrong"})
    assert stranger.status_code == 401
    refused = await entry(server, status_code=401)
    assert (refused["action"], refused["actor-type"], refused["actor-email"]) == ("GET", "anonymous", None)
    assert (await server.api.get("/workspaces/ws-00000000000000000000000000")).status_code == 404

    await server.api.get(f"/workspaces/{key}")
    await server.api.get("/organizations/default/workspaces")
    assert (await server.api.delete(f"/workspaces/{key}")).status_code in (204, 409)
    await entry(server, action="DELETE")
    reads = [e for e in await entries(server) if e["action"] == "GET" and e["status-code"] == 200]
    assert {e["path"] for e in reads} == {"/api/v2/admin/audit-log"}, "only reading the log itself is recorded"


async def test_whose_rights_were_changed_and_which_module_went_is_recorded(server: Running) -> None:
    attributes = {"provider-name": "local", "email": "Ann@example.org", "roles": ["admin"]}
    assert (await server.api.put("/role-assignments", json={"data": {"attributes": attributes}})).status_code == 200
    given = await entry(server, action="PUT", path="/api/v2/role-assignments")
    assert (given["resource-type"], given["resource-id"]) == ("role-assignments", "local:ann@example.org")
    assert (await server.api.delete("/role-assignments/local/ann@example.org/admin")).status_code == 204
    taken = await entry(server, action="DELETE")
    assert (taken["resource-type"], taken["resource-id"]) == ("role-assignments", "local:ann@example.org:admin")
    module = (await server.post("/organizations/default/registry-modules", {"name": "net", "provider": "aws"})).json()[
        "data"
    ]["id"]
    assert (await server.api.delete("/organizations/default/registry-modules/private/default/net/aws")).is_success
    await entry(server, action="DELETE", resource_type="registry-modules", resource_id=module)


async def test_rights_that_were_refused_are_recorded_with_who(server: Running) -> None:
    kept = await server.workspace("kept")
    eve = {"Authorization": f"Bearer {await server.person('eve@example.com')}"}
    assert (await server.api.get(f"/workspaces/{kept['id']}", headers=eve)).status_code == 404
    hidden = await entry(server, status_code=404, actor_email="eve@example.com")
    assert (hidden["resource-id"], hidden["actor-id"][:5]) == (kept["id"], "user-")
    assert (await server.api.get(LOG, headers=eve)).status_code == 403
    await entry(server, status_code=403, actor_email="eve@example.com", path="/api/v2/admin/audit-log")


async def test_what_gives_secrets_away_is_recorded_and_what_listeners_do_all_the_time_is_not(
    server: Running, tmp_path: Path
) -> None:
    listener: ListenerClient = await server.listener(tmp_path / "one")
    await entry(server, path="/api/v2/agent-pools/join", actor_type="listener", status_code=201)
    for _ in range(3):
        await listener.beat(wire.Beat(free_slots=5, capacity=5, local_engines=ENGINES))
    assert await listener.next_work(0) is None
    workspace = await server.workspace()
    configuration = await server.configuration(workspace["id"])
    await entry(server, path="/api/v2/uploads/configurations/{token}", resource_id=configuration["id"])
    await server.api.post(f"/workspaces/{workspace['id']}/actions/lock")
    state = (await server.state(workspace["id"], state_bytes())).json()["data"]
    await server.api.put(state["attributes"]["hosted-state-upload-url"], content=state_bytes())
    await entry(server, path="/api/v2/uploads/states/{token}", resource_id=state["id"])
    read = await server.api.get(f"/state-versions/{state['id']}/download", follow_redirects=True)
    assert read.content == state_bytes()
    await entry(
        server, path="/api/v2/state-versions/{state_version}/download", resource_id=state["id"], status_code=302
    )
    await entry(server, path="/api/v2/downloads/states/{token}", resource_id=state["id"], workspace_id=workspace["id"])
    await server.api.get(f"/configuration-versions/{configuration['id']}/download")
    await entry(server, path="/api/v2/configuration-versions/{configuration_version}/download", action="GET")
    await server.api.post(f"/workspaces/{workspace['id']}/actions/unlock")
    assert (await server.run(workspace["id"])).status_code == 201
    work = await listener.next_work(10)
    assert work is not None
    claimed = await entry(server, path="/api/v2/listeners/{listener}/runs/next", status_code=200)
    assert (claimed["actor-type"], claimed["actor-email"]) == ("listener", "one")
    found = await entries(server)
    assert not [e for e in found if e["path"].endswith("/heartbeat")]
    assert len([e for e in found if e["path"].endswith("/runs/next")]) == 1
    async with httpx.AsyncClient(base_url=server.url) as stranger:
        assert (await stranger.post(f"{listener.base}/heartbeat")).status_code in (401, 426)
    await until(lambda: _any(server, "/api/v2/listeners/{listener}/heartbeat"))


async def _any(server: Running, path: str) -> bool:
    return any(found["path"] == path for found in await entries(server))


async def test_filters_and_pages(server: Running) -> None:
    for number in range(7):
        await server.workspace(f"w-{number}")

    async def are_there() -> bool:  # an entry's time is that of the request's end, which the client does not wait for
        return len(await entries(server, "filter[resource-type]=workspaces")) == 7

    await until(are_there)
    middle = datetime.now(UTC)
    await asyncio.sleep(0.002)  # the filter knows milliseconds
    await server.api.patch("/account/update", json={"data": {"type": "users", "attributes": {"display-name": "A"}}})
    await entry(server, resource_type="users")
    posted = await entries(server, "filter[action]=post&filter[resource-type]=workspaces")
    assert len(posted) == 7
    assert [e["id"] for e in posted] == sorted((e["id"] for e in posted), reverse=True), "newest first"
    since, until_ = (f"filter[{name}]={quote(middle.isoformat())}" for name in ("since", "until"))
    assert {e["resource-type"] for e in await entries(server, f"{since}&filter[action]=PATCH")} == {"users"}
    assert not await entries(server, f"{until_}&filter[action]=PATCH")
    assert len(await entries(server, f"{until_}&filter[resource-type]=workspaces")) == 7
    assert len(await entries(server, "filter[actor]=Admin@localhost&filter[resource-type]=workspaces")) == 7
    assert await entries(server, "filter[actor]=nobody@localhost") == []
    base = f"{LOG}?filter[resource-type]=workspaces&page[size]=3"
    pages = [(await server.api.get(f"{base}&page[number]={number}")).json() for number in (1, 2, 3, 4)]
    assert [e["id"] for page in pages for e in page["data"]] == [e["id"] for e in posted]
    assert pages[1]["meta"]["pagination"] == {
        "current-page": 2, "prev-page": 1, "next-page": 3, "total-pages": 3, "total-count": 7,
    }  # fmt: skip
    for wrong in ("yesterday", "2026-01-01T00:00:00"):
        answer = await server.api.get(f"{LOG}?filter[since]={wrong}")
        assert answer.status_code == 422
        assert "filter[since]" in answer.json()["errors"][0]["detail"]


async def test_no_secret_enters_it(server: Running, database_url: str) -> None:
    canary = "canary4711"
    workspace = await server.workspace("clean")
    path = f"/workspaces/{workspace['id']}"
    value = {"key": "k", "value": canary, "category": "env", "sensitive": True}
    assert (await server.post(f"{path}/vars", value, "vars")).status_code == 201
    await server.api.post(f"{path}/actions/lock?token={canary}", json={"reason": canary})
    await server.api.post(f"{path}/actions/unlock", headers={"Authorization": f"Bearer {canary}"})
    await server.api.put(f"/uploads/configurations/{canary}", content=canary.encode())
    await server.api.get(f"/downloads/states/{canary}")
    await server.api.get(f"/logs/{canary}")
    await server.api.post("/agent-pools/join", json={"join_token": canary, "name": canary})
    await server.api.post(f"/workspaces/tpod_{canary}/actions/lock")
    await server.api.post(f"/{canary}")
    token = await server.join_token()
    configuration = await server.configuration(workspace["id"])
    secret = configuration["attributes"]["upload-url"].rpartition("/")[2]
    await server.api.patch("/account/update", json={"data": {"attributes": {"display-name": canary}}})
    await entry(server, path="/api/v2/account/update")
    rows = json.dumps(await Sql(database_url).copy("audit_entry"), default=str)
    assert "/api/v2/uploads/configurations/{token}" in rows
    for text in (canary, token, secret, server.token):
        assert text not in rows


@pytest.mark.slow
async def test_verify_finds_whatever_was_done_to_it(  # noqa: PLR0915  one log is altered in all ways
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, sql = tmp_path / "data", Sql(database_url)
    async with running(data, database_url) as server:
        for number in range(20):
            await server.workspace(f"first-{number}")
        await entry(server, action="POST")
        early = await until(lambda: sql.copy("audit_checkpoint"))
        early_entries = await sql.copy("audit_entry")
        await server.workspace("later")
    async with running(data, database_url) as server:
        for number in range(4):
            await server.workspace(f"second-{number}")
    tables = {table: await sql.copy(table) for table in ("audit_entry", "audit_checkpoint")}
    code, told = await verified(data, database_url, capsys)
    assert (code, "0 of them after the last checkpoint" in told) == (0, True), told
    chains = [row[0] for row in await sql("SELECT chain FROM audit_entry GROUP BY chain ORDER BY min(id)")]
    assert len(chains) == 2
    one = chains[0]

    async def tampered(expected: str, *statements: str) -> str:
        for statement in statements:
            await sql(statement)
        code, told = await verified(data, database_url, capsys)
        assert code == 1, (statements, told)
        assert expected in told, (statements, told)
        for table, rows in tables.items():
            await sql.put_back(table, rows)
        return told

    altered = [
        f"UPDATE audit_entry SET {column} = {new} WHERE chain = '{one}' AND number = {number}"
        for number, (column, new) in enumerate(_altered(), 1)
    ]
    told = await tampered("entry 1 ", *altered)
    for number, statement in enumerate(altered, 1):
        assert f"entry {number} (" in told, statement
    await tampered("entry 3 is missing", f"DELETE FROM audit_entry WHERE chain = '{one}' AND number = 3")
    await tampered("entries 1 to 2 are missing", f"DELETE FROM audit_entry WHERE chain = '{one}' AND number < 3")
    await tampered("entries 5 to", f"DELETE FROM audit_entry WHERE chain = '{one}' AND number > 4")
    swap = "UPDATE audit_entry SET number = {} WHERE chain = '" + one + "' AND number = {}"
    await tampered("entry 2 ", swap.format(-1, 2), swap.format(2, 3), swap.format(3, -1))
    await tampered(
        "is missing", f"UPDATE audit_entry SET chain = '{chains[1]}', number = 99 WHERE number = 3 AND chain = '{one}'"
    )
    others = ", ".join(name for name in Entry._fields if name not in ("id", "number"))
    last = int((await sql("SELECT max(number) FROM audit_entry WHERE chain = $1", one))[0][0])
    forged = (
        f"INSERT INTO audit_entry (id, number, {others}) SELECT 'ae-new', {last + 1}, {others} "
        f"FROM audit_entry WHERE chain = '{one}' AND number = 3"
    )
    await tampered(f"entry {last + 1} (ae-new) is not as it was written", forged)
    for number in (0, -7):  # before the first
        await tampered(f"entry {number} (ae-new)", forged.replace(f"'ae-new', {last + 1}", f"'ae-new', {number}"))
    await tampered("entries are missing", f"DELETE FROM audit_entry WHERE chain = '{one}'")
    await tampered("are missing", "DELETE FROM audit_entry")
    await tampered("ends at checkpoint", "DELETE FROM audit_checkpoint")
    await tampered(
        "not as a server signed it",
        "UPDATE audit_checkpoint SET document = replace(document, '\"sequence\":1', '\"sequence\":2')",
    )
    await tampered("ends at checkpoint", "DELETE FROM audit_checkpoint", "DELETE FROM audit_entry")

    for table, rows in (("audit_entry", early_entries), ("audit_checkpoint", early)):
        await sql.put_back(table, rows)
    code, told = await verified(data, database_url, capsys)
    assert (code, "ends at checkpoint" in told) == (1, True), "the whole database as it was earlier"
    for table, rows in tables.items():
        await sql.put_back(table, rows)
    file = data / "audit" / "checkpoints"
    text = file.read_text()
    file.write_text(text.replace(f'"{one}"', f'"{chains[1]}"', 1))
    assert (await verified(data, database_url, capsys))[0] == 1
    file.write_text(text)
    assert (await verified(data, database_url, capsys))[0] == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def _altered() -> Iterator[tuple[str, str]]:
    """Each column with an SQL expression of another value that it could have."""
    for column in Entry._fields:
        if column in ("at", "status", "duration_us", "repeats"):
            yield column, f"{column} + 1"
        elif column in ("id", "mac"):
            yield column, f"substr({column}, 2) || 'x'"
        elif column not in ("chain", "number"):  # what moves an entry stands below
            yield column, "'x'"


async def test_a_clean_stop_loses_nothing(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    async with running(tmp_path / "data", database_url) as server:

        async def hammer() -> None:
            with contextlib.suppress(httpx.TransportError):
                while True:
                    answer = await server.api.patch("/account/update", json={"data": {"attributes": {}}})
                    done.append(answer.headers["x-request-id"])

        tasks = [asyncio.create_task(hammer()) for _ in range(8)]
        await until(lambda: _long(done, 200))
    for task in tasks:
        task.cancel()
    kept = {row[0] for row in await Sql(database_url)("SELECT request_id FROM audit_entry")}
    assert set(done) <= kept
    code, told = await verified(tmp_path / "data", database_url, capsys)
    assert (code, "0 of them after the last checkpoint" in told) == (0, True), told


async def _long(found: list[Any], least: int) -> bool:
    return len(found) >= least


@pytest.mark.parametrize("is_stopped", [False, True], ids=["comes back", "stays away until the next start"])
async def test_what_the_database_refuses_is_kept(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_stopped: bool
) -> None:
    data, sql = tmp_path / "data", Sql(database_url)

    async def spooled() -> bool:
        return any(file.stat().st_size for file in (data / "audit").glob("*.spool"))

    async with running(data, database_url) as server:
        await server.workspace("before")
        await entry(server, action="POST")
        await sql("ALTER TABLE audit_entry RENAME TO audit_hidden")
        for number in range(5):
            await server.workspace(f"during-{number}")
        await until(spooled)
        assert {stat.S_IMODE(file.stat().st_mode) for file in (data / "audit").glob("*.spool")} == {0o600}
        if not is_stopped:
            await sql("ALTER TABLE audit_hidden RENAME TO audit_entry")
            await until(lambda: _posts(server, 6))
            await server.workspace("after")
            await until(lambda: _posts(server, 7))
    if is_stopped:
        await sql("ALTER TABLE audit_hidden RENAME TO audit_entry")
        async with running(data, database_url) as server:
            await until(lambda: _posts(server, 6))
            await server.workspace("after")
    code, told = await verified(data, database_url, capsys)
    assert (code, "0 of them after the last checkpoint" in told) == (0, True), told
    assert not list((data / "audit").glob("*.spool"))


async def _posts(server: Running, least: int) -> bool:
    return len(await entries(server, "filter[action]=POST")) >= least


async def test_retention_keeps_the_chains_whole(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, sql = tmp_path / "data", Sql(database_url)
    async with running(data, database_url) as server:
        await server.workspace("old")
        await server.workspace("older")
        first = writer_of(server).chain
    async with running(data, database_url) as server:
        await server.workspace("of-the-second")
        await until(lambda: sql("SELECT 1 FROM audit_entry WHERE chain = $1", writer_of(server).chain))
        copied = (await sql("SELECT * FROM audit_entry WHERE chain = $1 AND number = 1", writer_of(server).chain))[0]
        ledger, own = writer_of(server).ledger, writer_of(server).chain

        async def checked() -> bool:
            return own in (await ledger.newest()).chains

        await until(checked)
        assert await actions.purge(ledger, timedelta(days=1), own) == 0
        assert await actions.purge(ledger, timedelta(seconds=-1), own) >= 3
        assert first not in (await ledger.newest()).chains
        await server.workspace("new")
        await entry(server, action="POST")
    assert await sql("SELECT 1 FROM audit_entry WHERE chain = $1", first) == []
    code, told = await verified(data, database_url, capsys)
    assert code == 0, told
    await sql(f"INSERT INTO audit_entry VALUES ({', '.join(f'${place}' for place in range(1, 21))})", *copied)
    code, told = await verified(data, database_url, capsys)
    assert (code, "was put back" in told) == (1, True), told
    await sql("DELETE FROM audit_entry WHERE id = $1", copied[0])
    values = [first if value == own else value for value in copied]  # of a chain that is gone as a whole
    await sql(f"INSERT INTO audit_entry VALUES ({', '.join(f'${place}' for place in range(1, 21))})", *values)
    code, told = await verified(data, database_url, capsys)
    assert (code, "was put back" in told) == (1, True), told


async def test_a_chain_that_retention_emptied_may_be_delisted_later(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By another process, whose clock or settings draw the line elsewhere."""
    data, sql = tmp_path / "data", Sql(database_url)
    async with running(data, database_url) as server:
        await server.workspace("old")
        first = writer_of(server).chain
    async with running(data, database_url) as server:
        ledger, own = writer_of(server).ledger, writer_of(server).chain
        assert await actions.purge(ledger, timedelta(seconds=-1), first) >= 1
        assert first in (await ledger.newest()).chains
        await actions.purge(ledger, timedelta(days=365), own)
        assert first not in (await ledger.newest()).chains
    assert await sql("SELECT 1 FROM audit_entry WHERE chain = $1", first) == []
    code, told = await verified(data, database_url, capsys)
    assert code == 0, told


@contextlib.asynccontextmanager
async def second_server(data: Path, keys: bytes, database_url: str, end: int = signal.SIGTERM) -> AsyncIterator[str]:
    """A server in a process of its own, with the same keys; its URL. At the end it gets the signal `end`."""
    data.mkdir()
    (data / "keys").write_bytes(keys)
    port = free_port()
    environment = {
        **os.environ, "TERRAPOD_DATA": str(data), "TERRAPOD_PORT": str(port), "TERRAPOD_DATABASE_URL": database_url,
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(PROGRAM, "serve", env=environment)
    url = f"http://127.0.0.1:{port}"

    async def ready() -> bool:
        assert process.returncode is None
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient() as client:
                return (await client.get(f"{url}/ready")).status_code == 200
        return False

    try:
        await until(ready, 60)
        yield url
    finally:
        process.send_signal(end)
        code = await asyncio.wait_for(process.wait(), 60)
        assert code == (0 if end == signal.SIGTERM else -end)


async def command(*arguments: str) -> tuple[int, str]:
    """Exit code and words of `terrapod-server audit verify` as a program."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM, "audit", "verify", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told, _ = await process.communicate()
    return process.returncode or 0, told.decode()


async def test_a_server_that_was_killed_leaves_a_log_that_is_whole(postgres_url: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    async with running(one, postgres_url) as server:
        async with second_server(two, (one / "keys").read_bytes(), postgres_url, signal.SIGKILL) as url:
            for number in range(5):
                path = f"{url}/api/v2/organizations/default/workspaces"
                assert (await server.post(path, {"name": f"w-{number}"})).status_code == 201
                await until(functools.partial(_posts, server, number + 1))
        await server.workspace("here")
    settings = tmp_path / "terrapod.toml"
    settings.write_text(f'data = "{one}"\ndatabase_url = "{postgres_url}"\n')
    options = ("--config", str(settings), "--checkpoints", str(two / "audit" / "checkpoints"))
    code, told = await command(*options)
    assert code == 0, told
    assert "0 of them after the last checkpoint" not in told, "its last ones are in no checkpoint"
    await Sql(postgres_url)("UPDATE audit_entry SET actor = 'eve@example.com' WHERE number = 2")
    code, told = await command(*options)
    assert (code, "entry 2 (ae-" in told, "NOT as it was written" in told) == (1, True, True), told
    code, told = await command("--data", str(tmp_path / "nowhere"))
    assert (code, "no such key file" in told) == (2, True), told


async def test_keys_that_were_rotated_stay_good(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for name in ("before", "after"):
        async with running(data, database_url) as server:
            await server.workspace(name)
        KeyRing.load(data / "keys").rotate(data / "keys")
    code, told = await verified(data, database_url, capsys)
    assert (code, "0 of them after" in told) == (0, True), told
    (data / "keys").unlink()
    KeyRing.create(data / "keys")
    assert (await verified(data, database_url, capsys))[0] == 2, "nothing can be proved with another key"


async def test_two_servers_on_one_database(
    postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, sql = tmp_path / "one", tmp_path / "two", Sql(postgres_url)
    async with running(one, postgres_url) as server:
        async with second_server(two, (one / "keys").read_bytes(), postgres_url) as url:
            paths = [f"{base}/api/v2/organizations/default/workspaces" for base in (server.url, url)] * 10
            made = await asyncio.gather(
                *(server.post(path, {"name": f"w-{number}"}) for number, path in enumerate(paths))
            )
            assert {answer.status_code for answer in made} == {201}
            await until(lambda: _posts(server, 20))
            chains = {found["chain"] for found in await entries(server, "filter[action]=POST")}
            assert len(chains) == 2
        own = writer_of(server).chain
    (other,) = chains - {own}
    code, told = await verified(one, postgres_url, capsys, two / "audit" / "checkpoints")
    assert (code, "0 of them after" in told) == (0, True), told
    await sql("DELETE FROM audit_entry WHERE chain = $1", other)
    code, told = await verified(one, postgres_url, capsys)
    assert (code, f"chain {other}: all its" in told) == (1, True), told
    await sql("DELETE FROM audit_checkpoint")
    code, told = await verified(one, postgres_url, capsys, two / "audit" / "checkpoints")
    assert (code, f"chain {other}" in told) == (1, True), told


async def test_nothing_is_done_that_cannot_be_recorded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terrapod_server.audit.writer.MOST", 0)
    answer = await server.post("/organizations/default/workspaces", {"name": "unseen"})
    assert answer.status_code == 503
    assert (await server.api.get("/organizations/default/workspaces/unseen")).status_code == 404
    monkeypatch.undo()
    assert (await server.post("/organizations/default/workspaces", {"name": "seen"})).status_code == 201


async def test_switched_off_it_records_nothing(database_url: str, tmp_path: Path) -> None:
    async with running(tmp_path / "data", database_url, audit={"enabled": False}) as server:
        await server.workspace("quiet")
    assert await Sql(database_url).copy("audit_entry") == []


async def test_what_is_ended_on_the_account_is_recorded_by_its_id(server: Running) -> None:
    await accounts.make_user(server.services, "ann@example.org", PASSWORD, is_admin=False)
    ann = await identity.user("ann@example.org")
    ended, _ = await sessions.begin(ann, "local", (), "", "")
    async with Browser(server.url) as browser:
        await browser.sign_in("ann@example.org", PASSWORD)
        await browser.submit(action="/account/sessions", session=ended.id)
        await entry(server, path="/account/sessions", resource_type="sessions", resource_id=ended.id)
        await identity.create_token(ann.id, "one")
        await browser.open("/account")
        await browser.submit(action="/account/tokens", token="tpod_a secret in the wrong field")
        await entry(server, path="/account/tokens", resource_type="authentication-tokens", resource_id=None)
