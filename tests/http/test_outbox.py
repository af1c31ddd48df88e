"""Events reach their outlets: at least once, in order for each run, whatever an outlet or a server does."""

import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kit import process
from kit.process import Process, metric
from kit.serving import Running, extended, running, until
from terrapod_server import app
from terrapod_server.kit.db import database
from terrapod_server.kit.room import Room
from terrapod_server.kit.work import claims, outbox
from terrapod_server.kit.work.outbox import FanOut, Outlet
from terrapod_server.runs import change
from terrapod_server.runs.events import Event
from terrapod_shared.errors import Unavailable

PROGRAM = (sys.executable, str(Path(process.__file__).with_name("outlet_server.py")))
QUICK = (0.05, 0.05)


class Taken:
    """What an outlet got: (run, word) in order. `then` is called before it is taken."""

    def __init__(self, then: Callable[[Any], Awaitable[None]] | None = None) -> None:
        self.events: list[tuple[str | None, str]] = []
        self.asked = 0
        self.then = then

    async def deliver(self, _services: Any, event: Any) -> None:
        self.asked += 1
        if self.then is not None:
            await self.then(event)
        self.events.append((event.run_id, event.event))

    def outlet(self, name: str = "taken", **more: Any) -> Outlet:
        return Outlet(name=name, deliver=self.deliver, **{"wants": lambda event: event.event != "engine", **more})

    def words(self, run: str) -> list[str]:
        return [word for of, word in self.events if of == run]

    async def got(self, count: int) -> None:
        async def has() -> bool:
            return len(self.events) >= count

        await until(has)


@contextlib.asynccontextmanager
async def serving(url: str, folder: Path, *outlets: Outlet | FanOut) -> AsyncIterator[Running]:
    """A server with one room more, which has these outlets."""
    composition = extended(Room(name="outlets", outlets=outlets))
    async with running(folder / "data", url, composition=composition) as server:
        yield server


async def canceled(server: Running, workspace: str) -> str:
    """A run that was created, queued and canceled: three events, and one more that says that there is no engine."""
    run: str = (await server.run(workspace)).json()["data"]["id"]
    assert (await server.post(f"/runs/{run}/actions/cancel")).status_code == 202
    return run


async def ready(server: Running) -> str:
    workspace: str = (await server.workspace())["id"]
    await server.configuration(workspace)
    return workspace


async def rows(condition: str = "true") -> list[dict[str, Any]]:
    return await database.query(f"SELECT * FROM outbox WHERE {condition} ORDER BY id")


async def is_empty() -> bool:
    return not await rows()


async def change_rows(what: str) -> None:
    await database.query(f"WITH one AS (SELECT 1) {what} RETURNING id")


async def test_each_outlet_gets_what_it_wants_in_order(database_url: str, tmp_path: Path) -> None:
    everything, ends = Taken(), Taken()
    outlets = everything.outlet("everything"), ends.outlet("ends", wants=lambda event: event.event == "cancel")
    async with serving(database_url, tmp_path, *outlets) as server:
        workspace = await ready(server)
        runs = [await canceled(server, workspace) for _ in range(3)]
        await until(is_empty)
        for run in runs:
            assert everything.words(run) == ["create", "queue", "cancel"]
            assert ends.words(run) == ["cancel"]
        async with change.Change(server.services, workspace) as noted:
            noted.note(None, Event.LATE_STATE)
        await everything.got(10)
        assert everything.events[-1] == (None, "late_state"), "an event of the workspace alone"
        last = await canceled(server, workspace)
        seen = await streamed(server, workspace, last)
        assert len(seen) == 4 * 4, "the stream of runs has four events of each"
        assert not any("late_state" in line for line in seen)


async def streamed(server: Running, workspace: str, last: str) -> list[str]:
    """What the workspace's stream of runs sends, from the first event to the end of the last run."""
    seen = []
    headers = {"Last-Event-ID": "0"}
    async with (
        asyncio.timeout(20),
        server.api.stream("GET", f"/workspaces/{workspace}/runs/events", headers=headers) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                seen.append(line)
                if last in line and '"cancel"' in line:
                    break
    return seen


class _Statements(logging.Handler):
    """The statements that the ORM was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


async def test_an_outlet_costs_one_statement_and_only_who_wants_an_event(database_url: str, tmp_path: Path) -> None:
    log, statements = logging.getLogger("tortoise.db_client"), _Statements()
    before = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(statements)
    found = []
    try:
        for wanted in (None, "nothing", "create"):
            statements.seen.clear()
            taken = Taken().outlet(wants=lambda event, wanted=wanted: event.event == wanted)
            async with serving(database_url, tmp_path, *([taken] if wanted else [])) as server:
                workspace = await ready(server)
                await server.services.outbox.stop()  # what delivers is not counted
                statements.seen.clear()
                await server.run(workspace)
                found.append(sum(bool(re.search("INSERT INTO (run_event|outbox)", each)) for each in statements.seen))
    finally:
        log.setLevel(before)
        log.removeHandler(statements)
    assert found == [1, 1, 2], "both events of a new run are one statement"


async def test_an_outlet_that_hangs_delays_nobody(database_url: str, tmp_path: Path) -> None:
    goes_on = asyncio.Event()

    async def hang(_: Any) -> None:
        await goes_on.wait()

    hung, steady = Taken(hang), Taken()
    async with serving(database_url, tmp_path, hung.outlet("hung", most=2), steady.outlet()) as server:
        workspace = await ready(server)
        runs = [await canceled(server, workspace) for _ in range(6)]
        await steady.got(18)
        assert hung.events == []
        assert hung.asked == 2
        assert len(await rows("outlet = 'hung' AND leased_until > 0")) == 2, "no more are claimed"
        assert len(await rows("outlet = 'hung'")) == 18
        assert await metric(server, 'terrapod_outbox_waiting{outlet="hung"}') == 18
        assert await metric(server, 'terrapod_outbox_waiting{outlet="taken"}') == 0
        goes_on.set()
        await until(is_empty)
        assert all(hung.words(run) == ["create", "queue", "cancel"] for run in runs)


@pytest.mark.long
async def test_an_outlet_that_hangs_for_a_minute_delays_nobody(postgres_url: str, tmp_path: Path) -> None:
    async def hang(_: Any) -> None:
        await asyncio.sleep(60)

    hung, steady = Taken(hang), Taken()
    outlets = hung.outlet("hung", most=2, timeout_s=90), steady.outlet()
    async with serving(postgres_url, tmp_path, *outlets) as server:
        workspace = await ready(server)
        count = 0
        while len(hung.events) < 2:
            await canceled(server, workspace)
            count += 3
            await steady.got(count)
            assert hung.asked <= 4


async def test_what_fails_is_tried_again_then_shown_and_lets_its_successors_go(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[str] = []

    async def refuse(event: Any) -> None:
        attempts.append(event.event)
        if event.event == "create":
            raise ConnectionError("https://hooks.example/secret-in-a-url")
        if event.event == "queue":
            raise outbox.Undeliverable("nobody of that name")
        if event.event == "cancel" and attempts.count("cancel") == 1:
            raise outbox.Later(0.01)

    taken = Taken(refuse)
    async with serving(database_url, tmp_path, taken.outlet(pauses_s=QUICK)) as server:
        run = await canceled(server, await ready(server))
        await taken.got(1)
        assert attempts == ["create", "create", "create", "queue", "cancel", "cancel"]
        assert taken.words(run) == ["cancel"]

        async def are_failed() -> bool:
            return [row["attempts"] for row in await rows("failed_at IS NOT NULL")] == [3, 1] and len(await rows()) == 2

        await until(are_failed)
        assert await metric(server, 'terrapod_outbox_failed{outlet="taken"}') == 2
        assert await metric(server, 'terrapod_outbox_waiting{outlet="taken"}') == 0
    said = [record.getMessage() for record in caplog.records if record.name == outbox.log.name]
    assert len([line for line in said if "given up" in line]) == 2, said
    assert any("nobody of that name" in line and run in line for line in said)
    assert any("ConnectionError at " in line for line in said)
    assert "secret-in-a-url" not in caplog.text


async def test_who_returns_after_its_lease_changes_nothing(database_url: str, tmp_path: Path) -> None:
    """The first attempt swallows its cancellation and ends late, well or badly; the second has taken the row."""
    ends = [asyncio.Event(), asyncio.Event()]
    began = asyncio.Event()
    attempts = 0

    async def be_late(event: Any) -> None:
        nonlocal attempts
        if event.event != "create":
            return
        attempts += 1
        if attempts > 2:
            return
        mine = ends[attempts - 1]
        began.set()
        while not mine.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await mine.wait()
        if attempts == 1:
            raise Unavailable("late")

    taken = Taken(be_late)
    async with serving(database_url, tmp_path, taken.outlet(timeout_s=0.2, pauses_s=QUICK)) as server:
        run = await canceled(server, await ready(server))
        await began.wait()
        await change_rows("UPDATE outbox SET leased_until = 0")
        server.services.outbox.wake()

        async def is_second() -> bool:
            return attempts == 2

        await until(is_second)
        ends[0].set()  # the first comes back while the second is at work
        row = (await rows("event_id = (SELECT min(event_id) FROM outbox)"))[0]
        assert (row["attempts"], row["failed_at"]) == (2, None)
        assert row["leased_until"] > 0, "the first has not ended the second's lease"
        assert [word for word in taken.words(run) if word != "create"] == [], "and nothing went past it"
        ends[1].set()
        await until(is_empty)
        assert taken.words(run)[-2:] == ["queue", "cancel"]


async def test_a_fault_of_an_outlet_is_no_fault_of_the_run(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def wants(event: Any) -> bool:
        if event.event != "engine":
            raise ValueError("a secret")
        return False

    taken = Taken()
    async with serving(database_url, tmp_path, taken.outlet(wants=wants)) as server:
        run = await canceled(server, await ready(server))
        await until(is_empty)
        assert taken.words(run) == ["create", "queue", "cancel"], "what it cannot say it wants, it gets"
    assert caplog.text.count("cannot say whether it wants") == 1, "once, not for each event"
    assert "a secret" not in caplog.text


@pytest.mark.parametrize("raised", [asyncio.CancelledError(), SystemExit(3), BaseExceptionGroup("", [SystemExit(3)])])
async def test_whatever_an_outlet_raises_the_server_goes_on_and_asks_again(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, raised: BaseException
) -> None:
    async def end(_: Any) -> None:
        if taken.asked == 1:
            raise raised

    taken = Taken(end)
    async with serving(database_url, tmp_path, taken.outlet(pauses_s=QUICK)) as server:
        run = await canceled(server, await ready(server))
        await until(is_empty)
        assert taken.words(run) == ["create", "queue", "cancel"]
    assert f"attempt 1: {type(raised).__name__} at " in caplog.text


async def test_what_a_receiver_says_makes_no_line_of_the_log(
    database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(_: Any) -> None:
        raise outbox.Undeliverable("gone\r\n2026-01-01 ERROR \x1b[31mforged " + "x" * 5000)

    async with serving(database_url, tmp_path, Taken(refuse).outlet()) as server:
        await canceled(server, await ready(server))
        await until(lambda: rows("failed_at IS NOT NULL"))
    said = [record.getMessage() for record in caplog.records if record.name == outbox.log.name]
    assert any("gone 2026-01-01 ERROR [31mforged xxx" in line for line in said)
    assert all(line.isprintable() and len(line) < 500 for line in said)


@pytest.mark.parametrize("after_s", [float("inf"), float("nan"), 1e300, 10**400, 86_401])
def test_a_receiver_asks_for_a_day_at_most(after_s: float) -> None:
    assert outbox.Later(after_s).after_s == 86_400
    assert outbox.Later(-after_s).after_s in (0, 86_400)


async def test_what_a_clock_that_ran_ahead_has_put_off_goes_on(database_url: str, tmp_path: Path) -> None:
    taken = Taken()
    async with serving(database_url, tmp_path, taken.outlet()) as server:
        workspace = await ready(server)
        await server.services.outbox.stop()
        run = await canceled(server, workspace)
        year = 365 * 86_400
        await change_rows(f"UPDATE outbox SET due_at = due_at + {year}, leased_until = due_at + {year}")
        await server.services.outbox.purge()
        await server.services.outbox.start(server.services)
        await until(is_empty)
        assert taken.words(run) == ["create", "queue", "cancel"]


async def test_events_outlive_their_workspace_until_they_are_delivered(database_url: str, tmp_path: Path) -> None:
    goes_on = asyncio.Event()

    async def hang(_: Any) -> None:
        await goes_on.wait()

    taken = Taken(hang)
    async with serving(database_url, tmp_path, taken.outlet()) as server:
        workspace = await ready(server)
        run = await canceled(server, workspace)
        assert (await server.api.delete(f"/workspaces/{workspace}")).status_code == 204
        goes_on.set()
        await until(is_empty)
        assert taken.words(run) == ["create", "queue", "cancel"]

        async def are_gone() -> bool:
            return not await database.query("SELECT id FROM run_event WHERE workspace_id = $1", [workspace])

        await until(are_gone)


async def test_what_nobody_will_take_is_removed_in_the_end(database_url: str, tmp_path: Path) -> None:
    taken = Taken()
    async with serving(database_url, tmp_path, taken.outlet()) as server:
        add = "INSERT INTO outbox (event_id, outlet, key, due_at, failed_at) VALUES"
        now = claims.now_sql()
        long_ago = f"{now} - {outbox.KEPT_S + 60}"
        await change_rows(
            f"{add} (1, 'removed', 'a', {long_ago}, NULL), (2, 'removed', 'a', {now}, NULL), "
            f"(3, 'taken', 'a', {long_ago}, {long_ago}), (4, 'taken', 'a', {long_ago}, {now})"
        )
        await server.services.outbox.purge()
        assert await metric(server, 'terrapod_outbox_waiting{outlet="(others)"}') == 1
        assert [(row["event_id"], row["attempts"]) for row in await rows()] == [(2, 0), (4, 0)]


RECEIVERS = """
CREATE TABLE receiver_delivery (id {id}, event_id bigint NOT NULL, outlet varchar(80) NOT NULL, key varchar(40) NOT NULL,
due_at {number} NOT NULL, attempts int NOT NULL DEFAULT 0, leased_until {number} NOT NULL DEFAULT 0, failed_at {number},
UNIQUE (event_id, outlet))
"""


async def test_an_outlet_with_many_receivers_fans_out(database_url: str, tmp_path: Path) -> None:
    goes_on = asyncio.Event()
    got: dict[str, list[tuple[str, str]]] = {"slow": [], "one": [], "two": []}

    async def spread(services: Any, event: Any) -> None:
        for _ in range(2):  # idempotent: an event is delivered again where a server ended in between
            await services.outbox.fan_out("receiver_delivery", event, list(got))

    async def send(_services: Any, receiver: str, event: Any) -> None:
        if receiver == "slow":
            await goes_on.wait()
        got[receiver].append((event.run_id, event.event))

    is_sqlite = database_url.startswith("sqlite")
    types = {
        "id": "INTEGER PRIMARY KEY AUTOINCREMENT" if is_sqlite else "bigserial PRIMARY KEY",
        "number": "double precision",
    }
    await database.open_(database_url, app.MODELS)
    await database.query(RECEIVERS.format(**types))
    await database.close()
    outlets = (
        Outlet(name="spread", wants=lambda event: event.event != "engine", deliver=spread),
        FanOut(name="receiver_delivery", deliver=send),
    )
    async with serving(database_url, tmp_path, *outlets) as server:
        workspace = await ready(server)
        runs = [await canceled(server, workspace) for _ in range(3)]

        async def have(*receivers: str) -> bool:
            return all(len(got[each]) >= 9 for each in receivers)

        await until(lambda: have("one", "two"))
        assert got["slow"] == []
        assert await metric(server, 'terrapod_outbox_waiting{outlet="receiver_delivery"}') == 9
        goes_on.set()
        await until(lambda: have("slow"))
        for found in got.values():
            assert len(found) == 9, "each event once"
            assert all([word for of, word in found if of == run] == ["create", "queue", "cancel"] for run in runs)


def test_a_name_is_used_once() -> None:
    outlets = Taken().outlet("same"), Taken().outlet("same")
    assert "outlet same is declared twice" in extended(Room(name="outlets", outlets=outlets)).check()


def lines(folder: Path, name: str) -> list[list[str]]:
    file = folder / name
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def words_of(folder: Path, run: str) -> list[str]:
    """What the outlet took of a run, repeats left out."""
    return list(dict.fromkeys(word for _, of, word in lines(folder, "taken") if of == run))


async def test_one_of_two_servers_is_killed_between_claim_and_delivery(postgres_url: str, tmp_path: Path) -> None:
    for name in ("one", "two", "outlet-one", "outlet-two"):
        (tmp_path / name).mkdir()
    one = Process(tmp_path / "one", postgres_url, OUTLET_FOLDER=str(tmp_path / "outlet-one"))
    two = one.beside(tmp_path / "two")
    two.settings["OUTLET_FOLDER"] = str(tmp_path / "outlet-two")
    (tmp_path / "outlet-one" / "hold").touch()
    async with one.prepared() as server:
        try:
            await one.start(program=PROGRAM)
            workspace = await ready(server)
            runs = [await canceled(server, workspace) for _ in range(4)]

            async def has_claimed() -> bool:
                return len(lines(tmp_path / "outlet-one", "held")) == 4  # the oldest of each run

            await until(has_claimed)
            await one.kill()
            await two.start(program=PROGRAM)
            async with server.as_(server.token) as api:
                api.base_url = two.url + "/api/v2/"
                other = Running(two.url, server.token, api, server.services, two.folder, server.asgi)
                runs.append(await canceled(other, workspace))
                connection = await outbox_of(postgres_url)
                # what the dead one has claimed is nobody else's until its leases end: that is now
                assert await connection.fetchval("SELECT count(*) FROM outbox WHERE leased_until > 0") >= 4
                await connection.execute("UPDATE outbox SET leased_until = 0 WHERE leased_until > 0")

                async def is_done() -> bool:
                    return bool(await connection.fetchval("SELECT count(*) FROM outbox") == 0)

                await until(is_done)
                await connection.close()
        finally:
            await two.kill()
    assert lines(tmp_path / "outlet-one", "taken") == []
    for run in runs:
        assert words_of(tmp_path / "outlet-two", run) == ["create", "queue", "cancel"]


async def test_a_server_that_is_paused_while_it_claims_leaves_another_its_connections(
    postgres_url: str, tmp_path: Path
) -> None:
    """Of more outlets than a server has connections: its locks are what it leaves to the others."""
    taken = Taken()
    outlets = [taken.outlet(f"taken-{number}") for number in range(12)]
    async with serving(postgres_url, tmp_path, *outlets) as server:
        workspace = await ready(server)
        paused = await outbox_of(postgres_url)
        async with paused.transaction():
            for outlet in outlets:
                number = database.lock_number(f"outbox {outlet.name}")
                await paused.execute("SELECT pg_advisory_xact_lock($1)", number)
            async with asyncio.timeout(10):
                for _ in range(3):
                    await canceled(server, workspace)
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            assert await paused.fetchval(waiting) <= 2, "of ten connections"
            assert taken.events == []
            async with asyncio.timeout(8):
                await server.services.outbox.stop()
            left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("outbox ")]
            assert left == [], "they would hold the server that ends"
        await server.services.outbox.start(server.services)
        await paused.close()
        await taken.got(3 * 3 * len(outlets))
        await until(is_empty)


async def outbox_of(url: str) -> Any:
    import asyncpg  # noqa: PLC0415  as the server itself: only where there is PostgreSQL

    return await asyncpg.connect(database.postgres_dsn(url))


async def test_a_server_that_is_killed_delivers_after_its_restart(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "outlet"
    for each in (tmp_path / "one", folder):
        each.mkdir()
    one = Process(tmp_path / "one", database_url, OUTLET_FOLDER=str(folder))
    (folder / "hold").touch()
    async with one.prepared() as server:
        await one.start(program=PROGRAM)
        workspace = await ready(server)
        runs = [await canceled(server, workspace) for _ in range(2)]

        async def has_claimed() -> bool:
            return len(lines(folder, "held")) == 2

        await until(has_claimed)
        await one.kill()
        (folder / "hold").unlink()
        if not database_url.startswith("sqlite"):  # of a file this is the one server: it knows that nobody delivers
            connection = await outbox_of(database_url)
            await connection.execute("UPDATE outbox SET leased_until = 0 WHERE leased_until > 0")
            await connection.close()
        await one.start(program=PROGRAM)

        async def are_taken() -> bool:
            return all(words_of(folder, run) == ["create", "queue", "cancel"] for run in runs)

        await until(are_taken)
        one.terminate()
        await one.ended(20)


async def test_a_server_that_is_stopped_lets_go_of_what_it_has_claimed(postgres_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "outlet"
    for each in (tmp_path / "one", folder):
        each.mkdir()
    one = Process(tmp_path / "one", postgres_url, OUTLET_FOLDER=str(folder))
    (folder / "hold").touch()
    async with one.prepared() as server:
        await one.start(program=PROGRAM)
        await canceled(server, await ready(server))

        async def has_claimed() -> bool:
            return bool(lines(folder, "held"))

        await until(has_claimed)
        one.terminate()
        await one.ended(20)
        connection = await outbox_of(postgres_url)
        assert await connection.fetchval("SELECT count(*) FROM outbox WHERE leased_until > 0") == 0
        await connection.close()
