"""What stands between a listener and its server answers too, and none of that is the server's word."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kit import scripted as engine
from kit.answering import CUT, Answer, Asked, scripted
from kit.daemon import joined, online, running_listener
from kit.ingress import FOREIGN, ingress
from kit.serving import Running, state_bytes, tar, until
from terrapod_listener import client as listener_client
from terrapod_listener import identity, kept
from terrapod_listener.client import Server as ListenerClient
from terrapod_listener.delivery import send
from terrapod_listener.joining import renew
from terrapod_server.agents.model import JoinToken
from terrapod_server.runs.model import Run
from terrapod_shared import errors, wire

STATE = state_bytes(serial=1, lineage="line")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of the client in this process."""
    monkeypatch.setattr(listener_client, "pause_s", lambda _attempt: 0.01)


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
            assert not kept.spooled(tmp_path / "home")
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


@pytest.mark.parametrize("other", [each for each in FOREIGN[:-1] if each is not CUT])
async def test_no_state_is_dropped_for_anothers_word(tmp_path: Path, other: Answer) -> None:
    """The spool is freed by the server alone: a portal's 200 is not its word."""
    state = kept.place(tmp_path, "run-a", 3)
    state.parent.mkdir(parents=True)
    state.write_bytes(STATE)
    async with scripted() as portal:
        portal.otherwise = lambda _: other
        one = ListenerClient(stranger(portal.url, tmp_path))
        [facts] = kept.spooled(tmp_path)
        assert await send(one, tmp_path, facts) is False
        assert state.read_bytes() == STATE
        assert kept.spooled(tmp_path)[0]["reason"]
        await one.close()


def stranger(url: str, home: Path) -> identity.Identity:
    """A listener that a server at this address has made, as far as it knows."""
    key = identity.raw_private(Ed25519PrivateKey.generate())
    made = identity.Kept(
        server=url, name="one", listener_id="listener-a", pool_id="apool-a", key=key, sealing_key=key, certificate="",
        server_key=key,
    )  # fmt: skip
    return identity.Identity(made, home)
