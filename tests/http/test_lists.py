"""The short way of reading: lists and their counts are what is committed, in every process of a database."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tortoise import connections
from tortoise.models import Model

from kit.postgres import free_port
from kit.serving import Running, until
from terrapod_server.kit.db import database, row_versions
from terrapod_server.kit.db.conditions import Where
from terrapod_server.kit.db.row_cache import Reader
from terrapod_server.kit.paging import PageRequest
from terrapod_server.runs.model import Phase, Run
from terrapod_server.workspaces import actions
from terrapod_server.workspaces.model import Workspace
from terrapod_shared import ids

LIST = "/organizations/default/workspaces"


FIRST_PAGE = PageRequest(number=1, size=20, asked=False)


async def listed(api: httpx.AsyncClient, path: str = LIST, number: int = 1, size: int = 20) -> tuple[int, list[str]]:
    """The count of all, and the ids of one page."""
    answer = await api.get(path, params={"page[number]": number, "page[size]": size})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return document["meta"]["pagination"]["total-count"], [item["id"] for item in document["data"]]


async def execute(sql: str) -> None:
    await connections.get("default").execute_query(sql)


async def test_a_count_follows_each_change_however_it_is_made(server: Running) -> None:
    assert await listed(server.api) == (0, [])
    first, second = (await server.workspace("b"))["id"], (await server.workspace("c"))["id"]
    for _ in range(3):
        assert await listed(server.api) == (2, [first, second])
    renamed = {"data": {"type": "workspaces", "attributes": {"name": "d"}}}
    assert (await server.api.patch(f"/workspaces/{first}", json=renamed)).status_code == 200
    assert await listed(server.api) == (2, [second, first])
    assert await listed(server.api, number=2, size=1) == (2, [first])
    assert await listed(server.api, number=3, size=1) == (2, [])
    assert (await server.api.delete(f"/workspaces/{second}")).status_code == 204
    assert await listed(server.api) == (1, [first])
    await execute("UPDATE workspace SET name = 'e'")
    assert (await server.api.get(f"{LIST}/e")).json()["data"]["id"] == first
    await execute("DELETE FROM workspace")
    assert await listed(server.api) == (0, [])


async def test_a_count_is_that_of_commits_and_not_of_open_transactions(server: Running) -> None:
    first = (await server.workspace("a"))["id"]
    assert await listed(server.api) == (1, [first])
    with contextlib.suppress(ZeroDivisionError):
        async with database.in_transaction():
            await Workspace.create(id=ids.make("ws"), name="never")
            assert await listed(server.api) == (1, [first])
            raise ZeroDivisionError
    assert await listed(server.api) == (1, [first])
    async with database.in_transaction():
        late = await Workspace.create(id=ids.make("ws"), name="late")
        assert await listed(server.api) == (1, [first])
        seen = await database.rows("SELECT count(*) FROM workspace")
        assert seen[0][0] == 2, "a transaction reads its own writes"
    assert await listed(server.api) == (2, [first, late.id])


async def described(api: httpx.AsyncClient) -> list[tuple[str, str]]:
    """Names and descriptions of a page, in its order."""
    answer = await api.get(LIST)
    return [(item["attributes"]["name"], item["attributes"]["description"]) for item in answer.json()["data"]]


async def test_a_page_shows_each_row_as_it_is_however_it_was_changed(server: Running) -> None:
    """A page reads anew only those rows whose revision it has not seen."""
    for name in "abc":
        await server.workspace(name)
    assert await described(server.api) == [("a", ""), ("b", ""), ("c", "")]
    old = await Workspace.get(name="b")
    await execute("UPDATE workspace SET description = 'by SQL' WHERE name = 'b'")
    assert await described(server.api) == [("a", ""), ("b", "by SQL"), ("c", "")]
    old.description = "by one who had read it before"
    await old.save()  # and who writes the old revision with it
    assert await described(server.api) == [("a", ""), ("b", old.description), ("c", "")]
    with contextlib.suppress(ZeroDivisionError):
        async with database.in_transaction():
            await Workspace.filter(name="b").update(description="never")
            page = await described(server.api)
            assert page[1] == ("b", old.description)
            where = Where('t."name" = $1', ("b",))
            for _ in range(2):
                found = await actions.READER.page(FIRST_PAGE, where, 't."name"')
                assert [record.description for record in found.rows] == ["never"], "its own writes are seen inside"
            raise ZeroDivisionError
    await Workspace.filter(name="b").update(description="the same revision as the one that never was")
    page = await described(server.api)
    assert page == [("a", ""), ("b", "the same revision as the one that never was"), ("c", "")]
    await execute("UPDATE workspace SET name = 'd' WHERE name = 'a'")
    assert [name for name, _ in await described(server.api)] == ["b", "c", "d"]
    await execute("UPDATE workspace SET revision = 0")
    assert [row[0] for row in await database.rows("SELECT revision FROM workspace WHERE revision = 0")] == []


async def test_a_changed_order_of_the_same_rows_is_seen(server: Running) -> None:
    for name in ("m", "a", "z", "k"):
        await server.workspace(name)
    for order, wanted in (("name", "akmz"), ("-name", "zmka"), ("name", "akmz"), ("-name", "zmka")):
        answer = await server.api.get(LIST, params={"sort": order})
        assert "".join(item["attributes"]["name"] for item in answer.json()["data"]) == wanted


async def test_runs_are_counted_by_workspace(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    await listener.close()
    wanted: dict[str, list[str]] = {}
    for _ in range(2):
        workspace = await server.workspace(**{"terraform-version": "1.15.5"})
        configuration = await server.configuration(workspace["id"])
        made = wanted.setdefault(workspace["id"], [])
        for number in range(3):
            answer = await server.run(workspace["id"], configuration["id"], message=f"run {number}")
            assert answer.status_code == 201, answer.text
            made.insert(0, answer.json()["data"]["id"])
            assert await listed(server.api, f"/workspaces/{workspace['id']}/runs") == (len(made), made)
    for workspace_id, made in wanted.items():
        assert await listed(server.api, f"/workspaces/{workspace_id}/runs") == (3, made)


@pytest.mark.parametrize("model", [Workspace, Run])
async def test_a_record_is_the_row_that_the_orm_gives(server: Running, tmp_path: Path, model: type[Model]) -> None:
    listener = await server.listener(tmp_path / "home")
    await listener.close()
    text = 'ünï "quoted" \\ 🐢\n\ttab'
    workspace = await server.workspace(
        **{"terraform-version": "1.15.5", "description": text, "labels": {"a": "b"}, "trigger-prefixes": ["x", "y"]}
    )
    configuration = await server.configuration(workspace["id"])
    await server.run(workspace["id"], configuration["id"], message=text, variables=[{"key": "a", "value": '"b"'}])
    record = await Reader(model).one('t."id" IS NOT NULL')
    assert record is not None
    row = await model.get()
    assert {name: getattr(record.row, name) for name in model._meta.fields_db_projection} == {
        name: getattr(row, name) for name in model._meta.fields_db_projection
    }


async def test_a_count_that_nobody_may_remember_is_counted_each_time(server: Running) -> None:
    reader = actions.READER
    workspace = await server.workspace()
    locked = Where('t."locked" = $1', (True,)) & Where('t."name" = $1', (workspace["attributes"]["name"],))
    others = Where('EXISTS (SELECT 1 FROM "run" r WHERE r."workspace_id" = t."id")')
    for where in (locked, others, locked & others):
        assert not reader._may_remember(where)
    path = "/organizations/default/workspaces?filter[current-run][status]=pending"
    assert (await server.api.get(path)).json()["meta"]["pagination"]["total-count"] == 0
    await (await server.listener(server.folder / "home")).close()
    version = await server.configuration(workspace["id"])
    await server.api.post(f"/workspaces/{workspace['id']}/actions/lock", json={})
    await server.run(workspace["id"], version["id"])
    for page in ("", "&page[number]=9"):  # past the end too
        assert (await server.api.get(path + page)).json()["meta"]["pagination"]["total-count"] == 1
    with pytest.raises(TypeError, match="Phase"):
        row_versions.read(Phase)
    with pytest.raises(TypeError, match="float"):
        Reader(Phase)


async def test_counts_by_rights_hold_until_rights_or_labels_change(server: Running) -> None:
    await server.post("/roles", {"name": "dev", "workspace-permission": "read", "allow-labels": {"env": "dev"}})
    made = [await server.workspace(labels={"env": "dev"}) for _ in range(3)]
    async with server.as_(await server.person("ann@example.org", "dev")) as ann:

        async def totals() -> tuple[int, int]:  # of workspaces and of runs
            paths = ("/organizations/default/workspaces?page[size]=1", "/organizations/default/runs?page[size]=1")
            one, two = [(await ann.get(path)).json()["meta"]["pagination"]["total-count"] for path in paths]
            return one, two

        await (await server.listener(server.folder / "home")).close()
        version = await server.configuration(made[0]["id"])
        assert await totals() == (3, 0)
        await server.run(made[0]["id"], version["id"])
        assert await totals() == (3, 1) == await totals()
        gone: dict[str, Any] = {"data": {"attributes": {"labels": {}}}}
        await server.api.patch(f"/workspaces/{made[0]['id']}", json=gone)
        assert await totals() == (2, 0) == await totals()
        await server.api.patch(
            "/roles/dev", json={"data": {"attributes": {"deny-names": [made[1]["attributes"]["name"]]}}}
        )
        assert await totals() == (1, 0)


async def test_triggers_are_put_back_where_they_are_lost_or_old(server: Running) -> None:
    before = (await database.rows("SELECT number FROM generation WHERE topic = 'workspace'"))[0][0]
    assert await _triggers()
    on = ' ON "workspace"' if database.is_postgres() else ""
    for name in await _triggers():
        await execute(f"DROP TRIGGER {name}{on}")
    await server.workspace()
    assert (await database.rows("SELECT number FROM generation WHERE topic = 'workspace'"))[0][0] == before
    await database.migrate()
    await server.workspace()
    assert (await database.rows("SELECT number FROM generation WHERE topic = 'workspace'"))[0][0] > before
    there = await _triggers()
    await database.migrate()
    assert await _triggers() == there


async def _triggers() -> set[str]:
    names = (
        "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'counted_workspace%'"
        if database.is_postgres()
        else "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'workspace'"
    )
    return {row[0] for row in await database.rows(names)}


@contextlib.asynccontextmanager
async def another_process(server: Running, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A second server of the same database and files."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "TERRAPOD_DATA": str(server.folder),
        "TERRAPOD_PORT": str(port),
        "TERRAPOD_DATABASE_URL": database_url,
    }
    program = str(Path(sys.executable).parent / "terrapod-server")
    process = await asyncio.create_subprocess_exec(program, "serve", env=environment, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api/v2/", headers={"Authorization": f"Bearer {server.token}"}, timeout=30
        ) as api:

            async def ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return (await api.get(f"http://127.0.0.1:{port}/ready")).status_code == 200
                return False

            await until(ready)
            yield api
    finally:
        process.terminate()
        await process.wait()


async def test_no_process_shows_an_old_count(pg_server: Running, postgres_url: str) -> None:
    async with another_process(pg_server, postgres_url) as other:
        apis = (pg_server.api, other)
        made: list[str] = []
        for number in range(10):
            body = {"data": {"type": "workspaces", "attributes": {"name": f"turn-{number}"}}}
            answer = await apis[number % 2].post(LIST, json=body)
            made.append(answer.json()["data"]["id"])
            for api in apis:
                assert await listed(api) == (len(made), made)
        answered, asked = len(made), len(made)

        async def make(name: str, api: httpx.AsyncClient) -> None:
            nonlocal answered, asked
            asked += 1
            answer = await api.post(LIST, json={"data": {"type": "workspaces", "attributes": {"name": name}}})
            assert answer.status_code == 201, answer.text
            answered += 1

        async def watch(api: httpx.AsyncClient) -> None:
            while answered < 90:
                least = answered
                total, _ = await listed(api, size=1)
                assert least <= total <= asked

        async def writer(number: int) -> None:
            for step in range(20):
                await make(f"race-{number}-{step}", apis[number % 2])

        async with asyncio.timeout(60):
            await asyncio.gather(*(writer(number) for number in range(4)), watch(apis[0]), watch(apis[1]))
        for api in apis:
            assert (await listed(api))[0] == 90


async def test_two_transactions_that_change_both_tables_do_not_block_each_other(pg_server: Running) -> None:
    """Each changes the tables in another order, and raises at once what else is raised at the commit."""
    del pg_server
    raised: dict[type[Model], asyncio.Event] = {Workspace: asyncio.Event(), Run: asyncio.Event()}

    async def insert(model: type[Model]) -> None:
        if model is Workspace:
            await Workspace.create(id=ids.make("ws"), name=ids.make("w"))
        else:
            await Run.create(
                id=ids.make("run"),
                workspace_id="ws-x",
                configuration_version_id="cv-x",
                pool_id="p",
                engine_version="1",
            )
        await execute("SET CONSTRAINTS ALL IMMEDIATE")

    async def other_came_or_waits(model: type[Model]) -> bool:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        await execute("SELECT pg_stat_clear_snapshot()")  # a transaction sees one picture of the activity else
        return raised[model].is_set() or (await database.rows(waiting))[0][0] > 0

    async def work(first: type[Model], second: type[Model]) -> None:
        async with database.in_transaction():
            await insert(first)
            raised[first].set()
            await until(lambda: other_came_or_waits(second))
            await insert(second)

    async with asyncio.timeout(20):
        await asyncio.gather(work(Workspace, Run), work(Run, Workspace))
    numbers = await database.rows("SELECT number FROM generation WHERE topic IN ('workspace', 'run')")
    assert [row[0] for row in numbers] == [2, 2]
