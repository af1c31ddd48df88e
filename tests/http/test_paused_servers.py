"""Two servers on one PostgreSQL. One is paused past the end of a lease, with the lease's writes on their way, the
other's clock is wrong: what the first does when it wakes up changes nothing, and nobody's clock but the database's counts."""

import asyncio
import contextlib
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from kit.phases import plan_it, take
from kit.process import FAKETIME, Process, in_flight, metric
from kit.serving import Running, state_bytes, tar, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_listener.link.identity import Identity
from terrapod_listener.link.join import join
from terrapod_server.kit.db.database import postgres_dsn, settings
from terrapod_server.runs import leases
from terrapod_server.runs.model import Phase, Run
from terrapod_shared import errors, signing, wire

#: By how much the other server's clock is ahead.
clocks = pytest.mark.parametrize(
    "clock_s",
    [pytest.param(s, marks=pytest.mark.skipif(not FAKETIME.exists(), reason="no libfaketime")) for s in (600, -600)],
)
#: `TERRAPOD_TEST_LONG=1`: leases have their real length, and the pause with a plan is one of more than a minute and a half.
IS_LONG = bool(os.environ.get("TERRAPOD_TEST_LONG"))


class Pair:
    """`one` is the server that is to be paused, `other` the one whose clock is shifted; `database` asks directly."""

    def __init__(self, one: Process, other: Process, server: Running, database: Any) -> None:
        self.one, self.other, self.server, self.database = one, other, server, database
        self.api = server.as_(server.token)
        self.api.base_url = f"{other.url}/api/v2/"

    async def phase(self, run: str, kind: str) -> dict[str, Any]:
        return dict(await self.database.fetchrow("SELECT * FROM run_phase WHERE run_id = $1 AND kind = $2", run, kind))

    async def status(self, run: str) -> str:
        return str((await self.api.get(f"/runs/{run}")).json()["data"]["attributes"]["status"])

    async def let_end(self, run: str, kind: str) -> None:
        """The lease ends in a second by the database's clock, unless it is left its real length."""
        if not IS_LONG:
            until_ = "extract(epoch FROM clock_timestamp()) + 1"
            await self.database.execute(
                f"UPDATE run_phase SET lease_until = {until_} WHERE run_id = $1 AND kind = $2", run, kind
            )

    async def swept(self, process: Process) -> None:
        """Until that server has looked for ended leases once more, from now on."""
        await self.turned(process, "sweep leases", time.monotonic())

    async def turned(self, process: Process, job: str, since: float = 0.0) -> None:
        """Until a job of the server had a turn since then."""

        async def has() -> bool:
            age = await metric(self.server, f'terrapod_job_age_seconds{{job="{job}"}}', process.url)
            return bool(age < time.monotonic() - since - 0.05)

        await until(has)

    async def listener(self, home: Path, name: str, process: Process) -> ListenerClient:
        token = await self.server.join_token()
        identity: Identity = await join(home, process.url, token, name, None)
        client = ListenerClient(identity)
        local = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]
        await client.beat(wire.Beat(free_slots=5, capacity=5, local_engines=local))
        return client


@pytest.fixture
async def pair(postgres_url: str, tmp_path: Path) -> AsyncIterator[Pair]:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one = Process(tmp_path / "one", postgres_url)
    other = one.beside(tmp_path / "other")
    async with one.prepared() as server:
        await one.start()
        database = await asyncpg.connect(postgres_dsn(postgres_url))
        made = Pair(one, other, server, database)
        try:
            yield made
        finally:
            await made.api.aclose()
            await database.close()
            await other.kill()


class Half:
    """A signed request whose body has come to the server by half."""

    def __init__(self, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._body, self._reader, self._writer = body, reader, writer

    @classmethod
    async def sent(cls, listener: ListenerClient, method: str, path: str, body: bytes, lease: int) -> "Half":
        kept = listener.identity.kept
        url = kept.server + path
        headers = signing.sign_request(
            listener.identity.key, kept.listener_id, method, url,
            body_sha256=hashlib.sha256(body).digest(), lease=lease, now=time.time() + listener.offset_s,
        )  # fmt: skip
        reader, writer = await asyncio.open_connection("127.0.0.1", int(kept.server.rpartition(":")[2]))
        lines = [f"{method} {path} HTTP/1.1", "Host: server", "Connection: close", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])
        await writer.drain()
        return cls(body, reader, writer)

    async def rest(self) -> None:
        self._writer.write(self._body[len(self._body) // 2 :])
        await self._writer.drain()

    async def answer(self) -> tuple[int, str]:
        """Status and text."""
        async with asyncio.timeout(30):
            raw = await self._reader.read()
        self._writer.close()
        return int(raw.split(b" ", 2)[1]), raw.decode()


@contextlib.asynccontextmanager
async def paused(pair: Pair, halves: list[Half], run: str, kind: str) -> AsyncIterator[None]:
    """The server sleeps with the requests in hand, and their rest waits for it. The lease ends meanwhile."""

    async def has_all() -> bool:
        return await in_flight(pair.server) == len(halves)

    await until(has_all)
    pair.one.signal(signal.SIGSTOP)
    try:
        for half in halves:
            await half.rest()
        await pair.let_end(run, kind)
        yield
    finally:
        pair.one.signal(signal.SIGCONT)


async def sleeps_on(listener: ListenerClient, *leases: wire.HeldLease) -> None:
    """The rest of a long pause, during which the other listener keeps its leases."""
    for _ in range(6 if IS_LONG else 0):
        await asyncio.sleep(wire.BEAT_S)
        await listener.beat(wire.Beat(leases=list(leases)))


async def refused(halves: list[Half]) -> None:
    for half in halves:
        status, text = await half.answer()
        assert status == 409, text
        assert "lease" in text, text


def is_(pair: Pair, run: str, status: str) -> Callable[[], Awaitable[bool]]:
    async def has() -> bool:
        return await pair.status(run) == status

    return has


async def begun(pair: Pair) -> tuple[str, str]:
    """Workspace and run."""
    workspace = (await pair.server.workspace())["id"]
    await pair.server.configuration(workspace)
    made = await pair.server.run(workspace)
    assert made.status_code == 201, made.text
    return workspace, made.json()["data"]["id"]


async def log_of(pair: Pair, run: str, kind: str) -> str:
    url = (await pair.api.get(f"/runs/{run}/{kind}")).json()["data"]["attributes"]["log-read-url"]
    return (await pair.api.get(url.replace(pair.one.url, pair.other.url))).text


@clocks
async def test_a_plan_is_another_listeners_when_its_server_wakes_up(pair: Pair, tmp_path: Path, clock_s: int) -> None:
    listener = await pair.listener(tmp_path / "1", "first", pair.one)
    await pair.other.start(clock_s)
    second = await pair.listener(tmp_path / "2", "second", pair.other)
    _, run = await begun(pair)
    work = await take(listener)
    lease, base = work.lease.number, f"{listener.base}/runs/{run}"
    await listener.report(run, wire.Report(phase="plan", status="planning"), lease)
    await listener.call("PUT", f"{base}/plan/log?offset=0", body=b"first\n", lease=lease)
    before = await pair.phase(run, "plan")
    await pair.swept(pair.other)
    assert await pair.phase(run, "plan") == before, "a clock that is wrong ends no lease that lives"
    await pair.turned(pair.other, "purge nonces")
    kept = "SELECT min(abs(extract(epoch FROM clock_timestamp() - at))), count(*) FROM listener_nonce WHERE id LIKE $1"
    for each in (listener, second):
        age, count = await pair.database.fetchrow(kept, f"{each.identity.kept.listener_id} %")
        assert (age < 60, count > 0) == (True, True), "nor does it forget, or keep for ever, what was signed"

    report = msgspec.json.encode(wire.Report(phase="plan", status="planned", has_changes=True, log_bytes=6))
    halves = [
        await Half.sent(listener, method, path, body, lease)
        for method, path, body in (
            ("PUT", f"{base}/plan/log?offset=6", b"late of the first\n"),
            ("PUT", f"{base}/plan-file", b"a late plan"),
            ("PUT", f"{base}/plan-json", b"{}"),
            ("PATCH", base, report),
            ("PATCH", base, msgspec.json.encode(wire.Report(phase="plan", status="refused", reason="late"))),
            ("POST", f"{listener.base}/heartbeat",
             msgspec.json.encode(wire.Beat(leases=[wire.HeldLease(run_id=run, phase="plan", number=lease)]))),
        )
    ]  # fmt: skip
    async with paused(pair, halves, run, "plan"):
        await until(is_(pair, run, "plan_queued"), 60)  # and keeps none that is over
        again = await take(second)
        assert (again.run_id, again.log_offset) == (run, 6)
        assert again.lease.number > lease
        await second.report(run, wire.Report(phase="plan", status="planning"), again.lease.number)
        await sleeps_on(second, wire.HeldLease(run_id=run, phase="plan", number=again.lease.number))
        there = await pair.phase(run, "plan")
    await refused(halves[:-1])
    status, text = await halves[-1].answer()
    assert (status, '"verdict":"lost"' in text) == (200, True), text
    after = await pair.phase(run, "plan")
    assert after == there, "nothing of it has changed"
    path = f"{second.base}/runs/{run}/plan/log?offset=6"
    await second.call("PUT", path, body=b"second\n", lease=again.lease.number)
    assert await log_of(pair, run, "plan") == "\x02first\nsecond\n"
    assert await pair.status(run) == "planning"


@clocks
async def test_an_apply_was_released_when_its_server_wakes_up(pair: Pair, tmp_path: Path, clock_s: int) -> None:
    await pair.other.start(clock_s)
    listener = await pair.listener(tmp_path / "1", "first", pair.one)
    workspace, run = await begun(pair)
    await plan_it(listener, await take(listener), tmp_path)
    assert (await pair.server.api.post(f"/runs/{run}/actions/apply")).status_code == 202
    work = await take(listener)
    lease, base = work.lease.number, f"{listener.base}/runs/{run}"
    await listener.report(run, wire.Report(phase="apply", status="applying"), lease)
    before = await pair.phase(run, "apply")
    await pair.swept(pair.other)
    assert await pair.phase(run, "apply") == before

    raw = state_bytes(1, resources=1)
    query = f"serial=1&lineage=aaaa&md5={hashlib.md5(raw).hexdigest()}"
    report = msgspec.json.encode(wire.Report(phase="apply", status="applied", state="unchanged"))
    halves = [
        await Half.sent(listener, "PUT", f"{base}/state?{query}", raw, lease),
        await Half.sent(listener, "PUT", f"{base}/apply/log?offset=0", b"late\n", lease),
        await Half.sent(listener, "PATCH", base, report, lease),
    ]
    async with paused(pair, halves, run, "apply"):

        async def is_held() -> bool:
            return bool((await pair.phase(run, "apply"))["lease_state"] == "held")

        await until(is_held, 60)
        assert (await pair.api.post(f"/runs/{run}/actions/release")).status_code == 202
        assert await pair.status(run) == "errored"
        there = await pair.phase(run, "apply")
    await refused(halves)
    assert (await pair.api.get(f"/workspaces/{workspace}/current-state-version")).status_code == 404
    assert await pair.status(run) == "errored"
    after = await pair.phase(run, "apply")
    assert {k: v for k, v in after.items() if "log" not in k} == {k: v for k, v in there.items() if "log" not in k}
    assert "late\n" not in await log_of(pair, run, "apply")
    path = tmp_path / "late"
    path.write_bytes(raw)
    answer = await listener.call("PUT", f"{base}/state?{query}", file=path, lease=lease)
    assert answer.status_code == 202, "and sent again it is kept aside"


async def test_a_server_that_is_paused_within_a_transaction_does_not_keep_the_others(
    pair: Pair, tmp_path: Path, postgres_url: str
) -> None:
    """What it has locked stays so: the database ends the transaction of a server that says nothing more."""
    options = settings(postgres_url, [], 1)["connections"]["default"]["credentials"]["server_settings"]
    name = "idle_in_transaction_session_timeout"
    assert 0 < int(options[name]) <= 15_000, "less than a lease, so that a lost plan begins again within a minute"
    rows = await pair.database.fetch("SELECT DISTINCT state FROM pg_stat_activity WHERE datname = current_database()")
    assert "idle in transaction" not in {row["state"] for row in rows}
    await pair.other.start()
    listener = await pair.listener(tmp_path / "1", "first", pair.one)
    workspace, run = await begun(pair)
    work = await take(listener)
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    leader = int.from_bytes(hashlib.sha256(b"sweep leases").digest()[:8], "big", signed=True)
    await pair.database.execute("SELECT pg_advisory_lock($1)", leader)  # who sweeps has no need of it
    frozen = await asyncpg.connect(postgres_dsn(postgres_url), server_settings={**options, name: "500"})
    await frozen.execute("BEGIN")
    await frozen.execute("SELECT id FROM workspace WHERE id = $1 FOR UPDATE", workspace)
    await pair.let_end(run, "plan")
    await until(is_(pair, run, "plan_queued"), 60)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await frozen.execute("COMMIT")


async def test_what_a_paused_server_stores_of_a_log_is_passed_over(pg_server: Running, tmp_path: Path) -> None:
    """Paused behind its last look at the lease: only the store is left to ask, and that knows no lease."""
    listener = await pg_server.listener(tmp_path / "1", "one")
    second = await pg_server.listener(tmp_path / "2", "two")
    workspace = (await pg_server.workspace())["id"]
    await pg_server.configuration(workspace, tar({"main.tf": b"#"}))
    run = (await pg_server.run(workspace)).json()["data"]["id"]
    work = await take(listener)
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    await listener.call("PUT", f"{listener.base}/runs/{run}/plan/log?offset=0", body=b"one\n", lease=work.lease.number)

    store = pg_server.services.store
    put, reached, goes_on = store.put, asyncio.Event(), asyncio.Event()

    async def slow(key: str, *args: Any, **more: Any) -> Any:
        if key.endswith(f".{work.lease.number:09d}"):
            reached.set()
            await goes_on.wait()
        return await put(key, *args, **more)

    store.put = slow  # type: ignore[method-assign]
    late = asyncio.create_task(
        listener.call("PUT", f"{listener.base}/runs/{run}/plan/log?offset=4", body=b"late\n", lease=work.lease.number)
    )
    await reached.wait()
    await lose(run)
    again = await take(second)
    assert (again.run_id, again.log_offset) == (run, 4)
    number = again.lease.number
    await second.report(run, wire.Report(phase="plan", status="planning"), number)
    goes_on.set()
    with contextlib.suppress(errors.TerrapodError):
        await late
    await second.call("PUT", f"{second.base}/runs/{run}/plan/log?offset=4", body=b"two\n", lease=number)
    await second.call("PUT", f"{second.base}/runs/{run}/plan/log?offset=8", body=b"three\n", lease=number)
    error = wire.Report(phase="plan", status="errored", error_message="over", log_bytes=14)
    await second.report(run, error, number)
    url = (await pg_server.api.get(f"/runs/{run}/plan")).json()["data"]["attributes"]["log-read-url"]

    async def is_sealed() -> str:
        text = (await pg_server.api.get(url)).text
        return text if text.endswith("\x03") else ""

    assert await until(is_sealed) == "\x02one\ntwo\nthree\n\x03"


async def lose(run: str) -> None:
    await Phase.filter(id=leases.phase_id_of(run, "plan")).update(lease_until=-1.0)
    await until(lambda: Run.exists(id=run, status="plan_queued"))
