"""What stands between a listener and its server answers too, and none of that is the server's word."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kit import scripted as engine
from kit.answering import CUT, OWN, Answer, Asked, answer, scripted
from kit.daemon import joined, online, running_listener
from kit.ingress import FOREIGN, ingress
from kit.serving import Running, state_bytes, tar, until
from terrapod_listener.link import client as listener_client
from terrapod_listener.link import identity
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_listener.link.join import renew
from terrapod_listener.phase.delivery import send
from terrapod_listener.supervise import spool
from terrapod_server.agents.model import JoinToken
from terrapod_server.agents.protocol import work as server_work
from terrapod_server.runs.model import Phase, Run
from terrapod_server.workspaces.model import Workspace
from terrapod_shared import errors, wire

pytestmark = pytest.mark.sqlite_alone(reason="what stands between listener and server sees no database")

STATE = state_bytes(serial=1, lineage="line")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of the client in this process."""
    monkeypatch.setattr(listener_client, "pause_s", lambda _attempt: 0.01)


@pytest.mark.slow
async def test_a_run_ends_well_where_every_call_meets_a_proxys_answer_and_loses_its_own(
    server: Running, tmp_path: Path
) -> None:
    """Join, polls, downloads, heartbeats, log, artifacts, state and reports: each is answered by somebody else at first,
    and then its own answer is lost on the way, though the server has done what was asked."""
    seen: Counter[tuple[str, str]] = Counter()

    def before(asked: Asked) -> Answer | None:
        if asked.path.endswith(("/leave", "/ready")):
            return None
        seen[asked.method, asked.path] += 1
        return FOREIGN[len(seen) % len(FOREIGN)] if seen[asked.method, asked.path] == 1 else None

    def after(asked: Asked, _answer: Answer) -> Answer | None:
        is_idle = asked.path.endswith("/runs/next")  # a lost offer lapses after 15 s
        return CUT if seen[asked.method, asked.path] == 2 and not is_idle else None

    (tmp_path / "state").write_bytes(STATE)
    scripts = {"plan.sh": b"echo planned", "apply.sh": b'echo applied; mkdir -p $(dirname "$STATE"); cp %b "$STATE"'}
    scripts["apply.sh"] %= bytes(tmp_path / "state")
    async with ingress(server.url) as proxy:
        proxy.before, proxy.after = before, after
        me = await joined(replace(server, url=proxy.url), tmp_path / "home")
        assert await JoinToken.exists(use_count=1, max_uses=1), "the token was spent once"
        async with running_listener(tmp_path / "home"):
            await until(online(me))
            workspace = (await server.workspace(**{"terraform-version": engine.VERSION, "auto-apply": True}))["id"]
            await server.configuration(workspace, tar({"main.tf": b"", **scripts}))
            run = (await server.run(workspace)).json()["data"]["id"]

            async def is_over() -> str:
                status = await server.status(run)
                return status if status in ("applied", "errored", "planned_and_finished") else ""

            assert await until(is_over, 120) == "applied", (await server.api.get(f"/runs/{run}")).text
            current = await server.api.get(f"/workspaces/{workspace}/current-state-version")
            assert current.json()["data"]["attributes"]["serial"] == 1
            for phase, word in (("plan", "planned"), ("apply", "applied")):
                shown = (await server.api.get(f"/runs/{run}/{phase}")).json()["data"]["attributes"]
                assert f"\n{word}\n" in (await server.api.get(shown["log-read-url"])).text
            assert not spool.spooled(tmp_path / "home")
    called = {path.rpartition("/")[2] for _, path in seen}
    assert called >= {"join", "next", "heartbeat", "configuration", "plan-file", "plan-json", "log", "state", run}


async def leased(server: Running, listener: ListenerClient) -> wire.Work:
    workspace = await server.workspace(**{"auto-apply": True})
    await server.configuration(workspace["id"])
    assert (await server.run(workspace["id"])).status_code == 201
    work = await listener.next_work(10)
    assert work is not None
    await listener.report(work.run_id, wire.Report(phase="plan", status="planning"), work.lease.number)
    return work


@pytest.mark.parametrize("other", FOREIGN)
async def test_no_call_believes_another(server: Running, tmp_path: Path, other: Answer) -> None:
    """Polls and heartbeats raise what passes, the rest is made again; nothing of that changes who the listener is."""
    async with ingress(server.url) as proxy:
        one = await replace(server, url=proxy.url).listener(tmp_path / "home")
        work = await leased(server, one)
        times = 1

        def before(_asked: Asked) -> Answer | None:
            nonlocal times
            times -= 1
            return other if times >= 0 else None

        proxy.before, mine = before, one.identity.kept
        for call in (lambda: one.next_work(0), lambda: one.beat(wire.Beat()), lambda: renew(one)):
            times = 1
            with pytest.raises((errors.Foreign, errors.Unavailable)):
                await call()
        assert replace(one.identity).kept.key == mine.key
        times, target = 3, tmp_path / "configuration"
        path = f"{one.base}/runs/{work.run_id}"
        await one.download(f"{path}/configuration", target, lease=1, sha256=work.links["configuration"].sha256)
        assert hashlib.sha256(target.read_bytes()).hexdigest() == work.links["configuration"].sha256
        times = 3
        ended = wire.Report(phase="plan", status="errored")
        assert (await one.report(work.run_id, ended, 1)).status == "errored"
        assert await Run.exists(id=work.run_id, status="errored")
        await renew(one)
        await one.beat(wire.Beat())
        await one.close()


@pytest.mark.parametrize("other", [each for each in FOREIGN if each is not CUT])
async def test_no_state_is_dropped_for_anothers_word(tmp_path: Path, other: Answer) -> None:
    """The spool is freed by the server alone: a portal's 200 is not its word."""
    state = spool.place(tmp_path, "run-a", 3)
    state.parent.mkdir(parents=True)
    state.write_bytes(STATE)
    async with scripted() as portal:
        portal.otherwise = lambda _: other
        one = ListenerClient(stranger(portal.url, tmp_path))
        [facts] = spool.spooled(tmp_path)
        assert await send(one, tmp_path, facts) is False
        assert state.read_bytes() == STATE
        assert spool.spooled(tmp_path)[0]["reason"]
        await one.close()


def stranger(url: str, home: Path) -> identity.Identity:
    """A listener that a server at this address has made, as far as it knows."""
    key = identity.raw_private(Ed25519PrivateKey.generate())
    made = identity.Kept(
        server=url, name="one", listener_id="listener-a", pool_id="apool-a", key=key, sealing_key=key, certificate="",
        server_key=key,
    )  # fmt: skip
    return identity.Identity(made, home)


async def test_work_is_taken_for_the_poll_that_asked_for_it_alone(server: Running, tmp_path: Path) -> None:
    """The proxy shows an old answer again, header and body as the server had signed them."""
    shown: list[Answer] = []

    def keep(asked: Asked, found: Answer) -> None:
        if asked.path.endswith("/runs/next") and found[0] == 200:
            shown.append(found)

    async with ingress(server.url) as proxy:
        proxy.after = keep
        one = await replace(server, url=proxy.url).listener(tmp_path / "home")
        work = await leased(server, one)
        await one.report(work.run_id, wire.Report(phase="plan", status="errored"), work.lease.number)
        proxy.before = lambda asked: shown[0] if asked.path.endswith("/runs/next") else None
        for _ in range(3):
            with pytest.raises(errors.Foreign, match="not signed"):
                await one.next_work(0)
        await one.close()


async def test_work_that_was_held_up_is_not_taken(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    assert (await server.run(workspace["id"])).status_code == 201
    for late_s in (90, -70):
        monkeypatch.setattr(server_work, "time", SimpleNamespace(time=lambda late_s=late_s: time.time() - late_s))
        with pytest.raises(errors.Foreign, match=r"was issued -?[789]\d s ago"):
            await one.next_work(20)
        await Phase.filter(workspace_id=workspace["id"], lease_state="offered").update(lease_state="ready")
        await server.services.bus.publish(f"pool:{await server.pool_id()}")
    await one.close()


async def test_nothing_is_begun_on_a_proxys_word(server: Running, tmp_path: Path) -> None:
    """An acceptance, a heartbeat and a state's receipt that the server has not signed are none."""
    forged = {**OWN, wire.PROTOCOL_HEADER: "2"}
    async with ingress(server.url) as proxy:
        one = await replace(server, url=proxy.url).listener(tmp_path / "home")
        workspace = await server.workspace()
        await server.configuration(workspace["id"])
        run = (await server.run(workspace["id"])).json()["data"]["id"]
        work = await one.next_work(10)
        assert work is not None
        said = json.dumps({"status": "planning", "seconds": 40, "server_time": time.time(), "next_offset": 5})
        proxy.before = lambda _: (200, forged, said.encode())
        accepting = asyncio.create_task(one.report(run, wire.Report(phase="plan", status="planning"), 1))
        await until(lambda: _so(Counter(asked.method for asked in proxy.asked)["PATCH"] > 3))
        assert not accepting.done()
        with pytest.raises(errors.Foreign, match="not signed"):
            await one.beat(wire.Beat(leases=[wire.HeldLease(run_id=run, phase="plan", number=1)]))
        with pytest.raises(errors.Foreign, match="not signed"):
            await one.call("PUT", f"{one.base}/runs/{run}/plan/log?offset=0", body=b"12345", lease=1)
        proxy.before = lambda _: None
        assert (await accepting).status == "planning"
        assert await server.status(run) == "planning"
        await one.close()


async def test_no_refusal_of_another_request_ends_anything(server: Running, tmp_path: Path) -> None:
    """The server's own words, signed by its key, shown again in answer to what they were not said of."""
    async with ingress(server.url) as proxy:
        one = await replace(server, url=proxy.url).listener(tmp_path / "home")
        work = await leased(server, one)
        refusals: list[Answer] = []

        def keep(_: Asked, found: Answer) -> None:
            if found[0] >= 400:
                refusals.append(found)

        proxy.after = keep
        errored = wire.Report(phase="plan", status="errored")
        with pytest.raises(errors.NotFound):
            await one.report("run-of-nobody", errored, 1)
        with pytest.raises(errors.LeaseEnded):
            await one.report(work.run_id, errored, 9)
        with pytest.raises(errors.Invalid):
            await one.call("PATCH", f"{one.base}/runs/{work.run_id}", body=b"{}", lease=1)
        assert [status for status, _, _ in refusals] == [404, 409, 422]
        shown = list(refusals) * 2
        proxy.before = lambda _: shown.pop() if shown else None
        assert (await one.report(work.run_id, errored, 1)).status == "errored"
        assert not shown
        await one.close()


async def test_a_body_that_is_changed_on_the_way_is_sent_again(server: Running, tmp_path: Path) -> None:
    async with ingress(server.url) as proxy:
        one = await replace(server, url=proxy.url).listener(tmp_path / "home")
        work, changed = await leased(server, one), 2

        def before(asked: Asked) -> None:
            nonlocal changed
            if changed and asked.method == "PATCH":
                changed -= 1
                asked.body = asked.body.replace(b"errored", b"planned")

        proxy.before = before
        assert (await one.report(work.run_id, wire.Report(phase="plan", status="errored"), 1)).status == "errored"
        assert not changed
        await one.close()


async def _so(value: bool) -> bool:
    return value


@pytest.mark.parametrize("far_s", [-1e9, -3600.0, 3600.0, 1e9, "soon", 10**400, None])
async def test_no_proxy_sets_the_clock(server: Running, tmp_path: Path, far_s: object) -> None:
    """A signature for a time to come could be used then. The server's own word sets it, however far off it is."""
    async with ingress(server.url) as proxy:
        one = await replace(server, url=proxy.url).listener(tmp_path / "home")
        told = time.time() + far_s if isinstance(far_s, float) else far_s
        meta = {"server-time": told, "signature": "A" * 86 + "=="}
        document = {"errors": [{"status": "401", "title": "clock skew", "detail": "?", "meta": meta}]}
        proxy.before = lambda _: answer(401, document)
        with pytest.raises(errors.Foreign, match="time is not signed"):
            await one.beat(wire.Beat())
        assert one.offset_s == 0
        proxy.before = lambda _: None
        one.offset_s = 86_400.0 * 3650
        await one.beat(wire.Beat())
        assert abs(one.offset_s) < 60
        await one.close()


@pytest.mark.slow
async def test_an_apply_is_not_run_again_by_a_proxy_that_has_seen_it(server: Running, tmp_path: Path) -> None:
    """It has kept all answers of a whole run, and gives them once more to the listener's own process."""
    kept_: dict[tuple[str, str], Answer] = {}
    work: list[Answer] = []

    def keep(asked: Asked, found: Answer) -> None:
        if asked.path.endswith("/runs/next") and found[0] == 200:
            work.append(found)
        kept_[asked.method, asked.path] = found

    calls = tmp_path / "calls"
    apply = f'echo x >> {calls}; mkdir -p $(dirname "$STATE"); cp {tmp_path}/state "$STATE"'
    (tmp_path / "state").write_bytes(STATE)
    async with ingress(server.url) as proxy:
        proxy.after = keep
        me = await joined(replace(server, url=proxy.url), tmp_path / "home")
        async with running_listener(tmp_path / "home"):
            await until(online(me))
            run = await applied(server, apply)
            assert calls.read_text() == "x\n"
            assert [json.loads(body)["phase"] for _, _, body in work] == ["plan", "apply"]

            def again(asked: Asked) -> Answer | None:
                if asked.path.endswith("/runs/next"):
                    return work[1]
                return kept_.get((asked.method, asked.path)) if run in asked.path else None

            proxy.before, begun = again, len(proxy.asked)
            await until(lambda: _so(sum(each.path.endswith("/next") for each in proxy.asked[begun:]) > 3))
            assert not [each for each in proxy.asked[begun:] if run in each.path], "it does not even ask about it"
            proxy.before = lambda _: None
            await applied(server, apply)
            assert calls.read_text() == "x\nx\n", "one more, of the other run"


async def applied(server: Running, apply: str) -> str:
    workspace = (await server.workspace(**{"terraform-version": engine.VERSION, "auto-apply": True}))["id"]
    await server.configuration(workspace, tar({"main.tf": b"", "apply.sh": apply.encode()}))
    run: str = (await server.run(workspace)).json()["data"]["id"]
    await until(lambda: Run.exists(id=run, status="applied"), 60)
    return run


@pytest.mark.slow
async def test_a_server_that_comes_back_from_a_backup_gets_no_apply_twice(server: Running, tmp_path: Path) -> None:
    """Its database knows nothing of the apply that this host has ended."""
    calls = tmp_path / "calls"
    me = await joined(server, tmp_path / "home")
    async with running_listener(tmp_path / "home"):
        await until(online(me))
        run = await applied(server, f"echo x >> {calls}")
        phase = await Phase.get(run_id=run, kind="apply")
        await Run.filter(id=run).update(status="apply_queued")
        await Workspace.filter(id=phase.workspace_id).update(current_run_id=run)
        await Phase.filter(id=phase.id).update(lease_state="ready", lease_number=0, lease_listener_id=None)
        await server.services.bus.publish(f"pool:{phase.pool_id}")
        await until(lambda: Run.exists(id=run, status="errored"), 60)
        assert "backup" in (await Run.get(id=run)).error_message
        assert calls.read_text() == "x\n"
        await applied(server, f"echo x >> {calls}")


async def test_nothing_can_be_hung_onto_a_signed_request(server: Running, tmp_path: Path) -> None:
    one = await server.listener(tmp_path / "home")
    path = f"{one.base}/runs/next?wait=0"
    for target in (f"{path}#", f"{path}#&wait=60", path.replace("?", "#?"), f"{path}&wait=9"):
        headers = one._headers("GET", path, hashlib.sha256(b"").digest(), 0, "n" * 24)
        async with httpx.AsyncClient(base_url=server.url) as client:
            said = await client.get("/", headers=headers, extensions={"target": target.encode()})
        assert said.status_code in (401, 404, 405), (target, said.text)
    await one.close()
