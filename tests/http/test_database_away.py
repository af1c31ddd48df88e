"""A database that cannot be used for a while under a server that runs: who asks is told to ask again, and does."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import asyncpg
import httpx
import pytest

from kit.postgres import Postgres
from kit.process import Process
from kit.serving import running, until
from terrapod_server import app
from terrapod_server.config.load import load
from terrapod_server.identity import actions as identity
from terrapod_server.identity import sessions, uses
from terrapod_server.kit.db import database
from terrapod_shared import errors
from terrapod_shared.client import Client

WORKSPACES = "/organizations/default/workspaces"
TOLD = "the server's database cannot be used now; try again"


def check_told(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), answer.text
    assert answer.json() == {"errors": [{"status": "503", "title": "service unavailable", "detail": TOLD}]}


def named(name: str) -> dict[str, object]:
    return {"data": {"type": "workspaces", "attributes": {"name": name}}}


async def locked_out(url: str) -> asyncpg.Connection:
    """A connection that keeps everybody from the workspaces."""
    other = await asyncpg.connect(url)
    await other.execute("BEGIN")
    await other.execute("LOCK TABLE workspace")
    return other


@pytest.mark.slow
async def test_whoever_asks_while_postgresql_is_away_is_told_to_ask_again(tmp_path: Path) -> None:
    with Postgres(tmp_path / "postgres.log") as own:
        url = await own.fresh("away")
        server = Process(tmp_path, url)
        async with server.prepared() as running_:
            async with app.opened(load(server.settings, None)):
                session = (await sessions.begin(await identity.create_user("ann@example.org"), "local", (), "", ""))[1]
            await server.start()
            listener = await running_.listener(tmp_path / "home")
            other = await locked_out(url)
            key = {"Idempotency-Key": "one"}
            under_way = asyncio.create_task(running_.api.post(WORKSPACES, json=named("keyed"), headers=key))

            async def waits() -> bool:
                return bool(await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

            await until(waits)
            own.kill()
            check_told(await under_way)
            with contextlib.suppress(Exception):
                await other.close()
            for path in ("/account/details", WORKSPACES, f"{WORKSPACES}/keyed"):
                check_told(await running_.api.get(path))
            page = await running_.api.get(f"{server.url}/account", headers={"Cookie": f"terrapod={session}"})
            assert (page.status_code, page.headers["Retry-After"]) == (503, "2"), page.text
            assert "The server&#39;s database cannot be used now" in page.text
            with pytest.raises(errors.Unavailable, match=TOLD):
                await listener.next_work(0)
            # a client that is there meanwhile notices nothing but the time it takes
            client, heard = Client(server.url, running_.token, patience_s=60), list[str]()

            def told(error: errors.TerrapodError) -> None:
                heard.append(error.detail)
                if len(heard) == 1:
                    own.start()

            client.told = told
            made = await client.send("POST", WORKSPACES, "workspaces", {"name": "later"})
            assert (made["attributes"]["name"], heard[0]) == ("later", TOLD)
            await client.close()
            # and the key of what was not done is free
            again = await running_.api.post(WORKSPACES, json=named("keyed"), headers=key)
            assert again.status_code == 201, again.text
            await listener.close()
        assert "Traceback" not in server.log, server.log


async def test_while_sqlite_is_held_whoever_writes_is_told_to_ask_again_and_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_MS", 50)
    monkeypatch.setattr(uses, "_again_at", 0.0)
    file = tmp_path / "held.sqlite"
    async with running(tmp_path, f"sqlite://{file}") as server:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN IMMEDIATE")
            for headers in ({}, {"Idempotency-Key": "one"}):
                check_told(await server.api.post(WORKSPACES, json=named("keyed"), headers=headers))
            assert (await server.api.get(WORKSPACES)).status_code == 200
        again = await server.api.post(WORKSPACES, json=named("keyed"), headers={"Idempotency-Key": "one"})
        assert again.status_code == 201, again.text
