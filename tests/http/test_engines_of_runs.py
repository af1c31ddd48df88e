"""Which engine a run gets, and how it waits where nobody knows one: no listener's restart and no outage refuses a run."""

import asyncio
import contextlib
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kit.cli import of_server
from kit.phases import plan_it, take
from kit.release_site import ReleaseSite, release_site
from kit.serving import DATA, Running, running, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.agents.model import Listener
from terrapod_server.engines import releases
from terrapod_server.runs import engines
from terrapod_server.runs.model import Phase, Run, RunEvent
from terrapod_shared import clock, wire


def local(*versions: str) -> list[wire.LocalEngine]:
    return [wire.LocalEngine(tool="terraform", version=version, sha256="0" * 64) for version in versions]


async def announce(listener: ListenerClient, *versions: str) -> None:
    await listener.beat(wire.Beat(free_slots=5, capacity=5, local_engines=local(*versions)))


async def ready(server: Running, wanted: str = "latest") -> str:
    workspace: str = (await server.workspace(**{"terraform-version": wanted}))["id"]
    await server.configuration(workspace)
    return workspace


async def begin(server: Running, wanted: str = "latest", **attributes: Any) -> str:
    answer = await server.run(await ready(server, wanted), **attributes)
    assert answer.status_code == 201, answer.text
    run: str = answer.json()["data"]["id"]
    return run


async def shown(server: Running, run: str) -> DATA:
    return await server.shown(run)


async def go_offline(name: str = "one") -> None:
    await Listener.filter(name=name).update(last_seen_at=clock.now() - timedelta(minutes=5))


@pytest.fixture
async def cached(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[Running, ReleaseSite]]:
    with release_site() as site:
        site.index("1.4.6", "1.11.3", "1.11.4", "1.12.0-rc1")
        async with running(tmp_path / "data", database_url, engines=site.engines) as server:
            yield server, site


@pytest.mark.parametrize("wanted", ["latest", "1.15.5", "1.15", "~> 1.15.0"])
async def test_a_listener_that_restarts_refuses_no_run(server: Running, tmp_path: Path, wanted: str) -> None:
    """The site is out of reach; what the listener had before it went away is known."""
    listener = await server.listener(tmp_path / "home")
    await go_offline()
    run = await begin(server, wanted)
    found = await shown(server, run)
    assert (found["status"], found["terraform-version"]) == ("plan_queued", "1.15.5")
    assert found["waits-for"]["kind"] == "no-listener"
    await announce(listener, "1.15.5")
    work = await take(listener)
    assert (work.run_id, work.engine.version, work.engine.local) == (run, "1.15.5", True)


@pytest.mark.parametrize("wanted", ["latest", "1.15.5", "1.15", "~> 1.15.0"])
async def test_a_run_before_any_listener_was_seen_waits_and_says_why(
    server: Running, tmp_path: Path, wanted: str
) -> None:
    run = await begin(server, wanted)
    found = await shown(server, run)
    assert (found["status"], found["terraform-version"]) == ("plan_queued", wanted)
    assert "pool default has none" in found["waits-for"]["text"]
    assert "127.0.0.1:9" in found["waits-for"]["text"], "the site that was asked"
    assert "127.0.0.1:9" in (await of_server(server, tmp_path)("runs", "show", run)).out
    listener = await server.listener(tmp_path / "home", engine="1.9.1")
    if wanted == "latest":
        assert (await take(listener)).engine.version == "1.9.1"
        return
    assert await listener.next_work(0) is None
    found = await shown(server, run)
    assert found["waits-for"]["kind"] == "engine"
    why = (
        "none of pool default has terraform 1.15.5"
        if wanted == "1.15.5"
        else f"no terraform is known that fits {wanted}"
    )
    assert why in found["waits-for"]["text"]
    words = found["waits-for"]["text"].split("listener.toml (")[1].split(") and restart")[0]
    assert tomllib.loads(words)["engines"][0]["path"] == "/usr/local/bin/terraform", "to be typed as it is"
    await announce(listener, "1.9.1", "1.15.5")
    work = await take(listener)
    assert (work.run_id, work.engine.version) == (run, "1.15.5")
    assert (await shown(server, run))["terraform-version"] == "1.15.5"


async def test_the_log_says_that_it_waited_for_its_engine(server: Running, tmp_path: Path) -> None:
    run = await begin(server, "~> 1.15.0")
    await Run.filter(id=run).update(created_at=clock.now() - timedelta(minutes=5))
    early = clock.stamp(clock.now() - timedelta(seconds=200))
    await Phase.filter(run_id=run, kind="plan").update(status_timestamps={"queued-at": early})
    listener = await server.listener(tmp_path / "home")
    work = await take(listener)
    assert work.waited.startswith("Waited 3 min ")
    assert "for a listener (at last http://127.0.0.1:9/" in work.waited
    assert "cannot be reached" in work.waited


async def test_the_version_is_kept_for_plan_and_apply(server: Running, tmp_path: Path) -> None:
    """Planned by one listener, it is applied by no other that lacks the engine."""
    one = await server.listener(tmp_path / "one", "one", "1.15.5")
    other = await server.listener(tmp_path / "other", "other", "1.12.0")
    run = await begin(server)
    assert (await shown(server, run))["terraform-version"] == "1.15.5", "the newest that one of them has"
    assert await other.next_work(0) is None
    await plan_it(one, await take(one), tmp_path)
    await announce(one, "1.16.0")
    assert (await server.api.post(f"/runs/{run}/actions/apply")).status_code == 202
    for listener in (one, other):
        assert await listener.next_work(0) is None
    found = await shown(server, run)
    assert found["terraform-version"] == "1.15.5"
    assert "none of pool default has terraform 1.15.5, and no release site can give it" in found["waits-for"]["text"]
    await announce(other, "1.12.0", "1.15.5")
    work = await take(other)
    assert (work.run_id, work.phase, work.engine.version) == (run, "apply", "1.15.5")


async def test_who_has_the_engine_and_is_away_is_named(server: Running, tmp_path: Path) -> None:
    await server.listener(tmp_path / "one", "one", "1.15.5")
    other = await server.listener(tmp_path / "other", "other", "1.12.0")
    await go_offline("one")
    run = await begin(server)
    assert await other.next_work(0) is None
    text = (await shown(server, run))["waits-for"]["text"]
    assert "none of pool default but one, which is not there, has terraform 1.15.5" in text


async def test_listeners_that_are_gone_for_good_are_not_asked(server: Running, tmp_path: Path) -> None:
    """A pool whose listeners were removed, or cannot come back, has no engines."""
    listener = await server.listener(tmp_path / "one", "one", "1.15.5")
    other = await server.listener(tmp_path / "other", "other", "1.14.0")
    await Listener.filter(name="other").update(certificate_until=clock.now() - timedelta(days=31))
    await listener.close()
    await other.close()
    assert (await shown(server, await begin(server, "~> 1.14.0")))["terraform-version"] == "~> 1.14.0"
    for row in await Listener.all():
        assert (await server.api.delete(f"/listeners/{row.id}")).status_code == 204
    run = await begin(server)
    assert "pool default has none" in (await shown(server, run))["waits-for"]["text"]


async def test_an_engine_that_is_dropped_before_the_claim_is_waited_for(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    run, other = await begin(server), await begin(server, "1.15.5")
    await Run.filter(id=run).update(engine_is_local=False)  # as if a site had listed it
    await announce(listener, "1.9.1")
    later = await begin(server, "1.9.1")
    work = await take(listener)
    assert work.run_id == later, "those that wait for their engine keep nobody"
    found = await shown(server, run)
    assert (found["status"], found["waits-for"]["kind"]) == ("plan_queued", "engine")
    assert "cannot be reached" in found["waits-for"]["text"]
    events = [event.event for event in await RunEvent.filter(run_id=run)]
    assert (events.count("refused"), events.count("engine")) == (0, 1)
    await announce(listener, "1.15.5")
    assert {(await take(listener)).run_id for _ in range(2)} == {run, other}


@pytest.mark.parametrize(
    "text",
    ["newest", "  ", "1.2.3.4", "~> x", "1.11.4; rm", "\u0663.\u0661.\u0664", "", "1" * 41, ">= 1.0, <", 5, ["1.11"]],
)
async def test_what_is_no_version_is_refused_at_workspace_and_run(server: Running, text: Any) -> None:
    made = await server.post("/organizations/default/workspaces", {"name": "w", "terraform-version": text})
    assert (made.status_code, "/data/attributes/terraform-version" in made.text) == (422, True), made.text
    workspace = await ready(server)
    document = {"data": {"attributes": {"terraform-version": text}}}
    assert (await server.api.patch(f"/workspaces/{workspace}", json=document)).status_code == 422
    answer = await server.run(workspace, **{"terraform-version": text})
    assert (answer.status_code, "/data/attributes/terraform-version" in answer.text) == (422, True), answer.text


async def test_one_below_the_floor_is_refused_at_the_run_alone(server: Running) -> None:
    for wanted in ("1.5.6", "v1.5.6", "= 1.5.6"):
        answer = await server.run(await ready(server, wanted))
        assert (answer.status_code, "CVE-2023-4782" in answer.text) == (422, True), answer.text


async def test_a_site_that_answers_says_what_there_is_not(cached: tuple[Running, ReleaseSite], tmp_path: Path) -> None:
    server, _ = cached
    run = await begin(server, "9.9.9")
    found = await shown(server, run)
    assert "there is no terraform that fits '9.9.9'" in found["waits-for"]["text"], "a listener may come that has it"
    listener = await server.listener(tmp_path / "home", engine="1.15.5")
    answer = await server.run(await ready(server, "9.9.9"))
    assert answer.status_code == 422
    why = answer.json()["errors"][0]["detail"]
    assert why.startswith(
        "there is no terraform that fits '9.9.9': import it at the server (terrapod-server binaries import"
    )
    answer = await server.run(await ready(server, "1.4"))
    assert (answer.status_code, "CVE-2023-4782" in answer.text) == (422, True), "all that fit have a known hole"
    assert (await shown(server, await begin(server, "1.11")))["terraform-version"] == "1.11.4"
    assert (await shown(server, await begin(server, "latest")))["terraform-version"] == "1.15.5"
    await announce(listener, "9.9.9")
    assert run in {(await take(listener)).run_id for _ in range(1)}


async def test_a_site_that_comes_back_lets_runs_go(
    cached: tuple[Running, ReleaseSite], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of reach when the runs were made; then it lists their engines, cannot give them, and gives them."""
    server, site = cached
    listener = await server.listener(tmp_path / "home", engine="1.0.0")
    index = site.files.pop("/terraform/index.json")
    runs = {await begin(server, "1.11.4"), await begin(server, "~> 1.11.0")}
    assert await listener.next_work(0) is None
    assert {(await shown(server, run))["waits-for"]["kind"] for run in runs} == {"engine"}
    site.files["/terraform/index.json"] = index
    monkeypatch.setattr(releases, "_FAILED_S", 0.0)
    site.release("terraform", "1.11.4")

    async def work() -> wire.Work | None:
        await engines.settle_waiting(server.services)
        return await listener.next_work(0)

    for _ in range(2):
        taken = await until(work)
        runs.remove(taken.run_id)
        assert (taken.engine.version, taken.engine.local) == ("1.11.4", False)


async def test_a_listed_engine_that_cannot_be_fetched_keeps_nobody(
    cached: tuple[Running, ReleaseSite], tmp_path: Path
) -> None:
    server, site = cached
    listener = await server.listener(tmp_path / "home", engine="1.15.5")
    run = await begin(server, "1.11.4")
    for path in [path for path in site.files if "1.11.4" in path]:
        del site.files[path]
    site.status_of_missing = 503
    other = await begin(server, "1.15.5")
    assert (await take(listener)).run_id == other
    found = await shown(server, run)
    assert (found["status"], found["waits-for"]["kind"]) == ("plan_queued", "engine")
    assert "answered 503" in found["waits-for"]["text"]
    await engines.settle_waiting(server.services)
    assert await listener.next_work(0) is None, "it is left alone for a while"
    assert (await Run.get(id=run)).engine_is_local
    await announce(listener, "1.11.4")
    assert (await take(listener)).run_id == run


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def never(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read(1 << 16)
    await asyncio.sleep(60)


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1 << 16)
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{"versions": {')
    for _ in range(600):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


def saying(body: bytes, head: bytes = b"HTTP/1.1 200 OK") -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(head + b"\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    return answer


GARBAGE: dict[str, Answer] = {
    "never": never,
    "drip": drip,
    "html": saying(b"<html>please sign in</html>"),
    "proxy": saying(b"no", b"HTTP/1.1 407 Proxy Authentication Required"),
    "missing": saying(b"", b"HTTP/1.1 404 Not Found"),
    "null": saying(b"null"),
    "list": saying(b"[]"),
    "none": saying(b'{"versions": {}}'),
    "numbers": saying(b'{"versions": [{"id": 5}]}'),
    "names": saying(b'{"versions": {"../../x": 1, "%s": 2, "\xff": 3}}' % (b"1" * 4000)),
    "deep": saying(b'{"versions": ' + b"[" * 200_000),
    "loop": saying(b"", b"HTTP/1.1 302 Found\r\nLocation: /terraform/index.json"),
    "binary": saying(bytes(range(256)) * 100),
    "cut": saying(b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked"),
}


@contextlib.asynccontextmanager
async def odd_site(answer: Answer) -> AsyncIterator[str]:
    tasks: set[asyncio.Task[None]] = set()

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("answer", GARBAGE.values(), ids=GARBAGE)
async def test_no_site_keeps_a_request(empty_url: str, tmp_path: Path, answer: Answer) -> None:
    if empty_url.startswith("postgres") and answer not in (never, drip):
        pytest.skip("what a site answers meets no database")
    async with odd_site(answer) as url:
        settings = {"terraform_url": f"{url}/terraform", "tofu_index_url": f"{url}/tofu.json"}
        async with running(tmp_path / "data", empty_url, engines=settings) as server:
            begun = time.monotonic()
            run = await begin(server, "~> 1.15.0")
            assert time.monotonic() - begun < 20
            found = await shown(server, run)
            assert (found["status"], found["waits-for"]["kind"]) == ("plan_queued", "no-listener")
            listener = await server.listener(tmp_path / "home")
            begun = time.monotonic()
            work = await take(listener)
            assert (work.run_id, work.engine.version) == (run, "1.15.5")
            others = await asyncio.gather(*(begin(server, "1.15") for _ in range(5)))
            assert time.monotonic() - begun < 20, "who comes later waits for the site no more than the first"
            assert {(await shown(server, each))["terraform-version"] for each in others} == {"1.15.5"}


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "nonsense://x", "socks5://127.0.0.1:9", "http://["])
async def test_a_proxy_that_is_of_no_use_refuses_no_run(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    if empty_url.startswith("postgres"):
        pytest.skip("as above")
    async with running(
        tmp_path / "data", empty_url, engines={"terraform_url": "http://releases.invalid/terraform"}
    ) as server:
        workspace = await ready(server)
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, proxy)
        answer = await server.run(workspace)
        assert answer.status_code == 201, answer.text


async def test_engines_are_settled_once_by_many(pg_server: Running, tmp_path: Path) -> None:
    """Many settle the same runs at once: a version that is there stays, whatever the pool has by then."""
    runs = [await begin(pg_server, "~> 1.15.0") for _ in range(6)]
    one = await pg_server.listener(tmp_path / "one", "one", "1.15.5")
    other = await pg_server.listener(tmp_path / "other", "other", "1.15.4")
    await Run.filter(id__in=runs).update(engine_version="", engine_is_local=True)
    await asyncio.gather(
        *(engines.settle_waiting(pg_server.services) for _ in range(8)),
        *(announce(one, "1.15.5", f"1.14.{number}") for number in range(8)),
        *(announce(other, f"1.15.{number}") for number in range(6, 10)),
    )
    first = {run: (await Run.get(id=run)).engine_version for run in runs}
    assert all(first.values())
    await announce(one, "1.15.30")
    await asyncio.gather(*(engines.settle_waiting(pg_server.services) for _ in range(4)))
    assert {run: (await Run.get(id=run)).engine_version for run in runs} == first


async def test_a_retry_asks_for_what_was_asked_for(server: Running) -> None:
    run = await begin(server, "~> 1.15.0")
    await server.api.post(f"/runs/{run}/actions/cancel")
    again = await server.api.post(f"/runs/{run}/actions/retry")
    assert again.status_code == 201, again.text
    assert again.json()["data"]["attributes"]["terraform-version"] == "~> 1.15.0"


async def test_a_listener_that_says_odd_things_settles_nothing(server: Running, tmp_path: Path) -> None:
    run = await begin(server, "~> 1.15.0")
    listener = await server.listener(tmp_path / "home", engine="")
    await announce(listener, "", "x" * 5000, "1.15", "latest", "\u0663.\u0661.\u0664", "~> 1.15.0")
    assert await listener.next_work(0) is None
    assert (await shown(server, run))["terraform-version"] == "~> 1.15.0"


async def test_who_begins_with_opentofu_runs_tofu(server: Running) -> None:
    server.api.headers["User-Agent"] = "OpenTofu/1.12.1 (+https://opentofu.org)"
    run = await begin(server, "1.12.1")
    found = await shown(server, run)
    assert (found["execution-backend"], found["terraform-version"]) == ("tofu", "1.12.1")
    assert msgspec.json.encode(found["waits-for"]).count(b"tofu") >= 1
