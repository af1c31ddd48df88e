"""Runs through the API, with a listener's real signed calls."""

import asyncio
import hashlib
import importlib.util
from pathlib import Path

import msgspec
import pytest

from kit.phases import apply_it, plan_it, take
from kit.serving import Running, state_bytes, tar, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server.agents.protocol import claiming
from terrapod_server.runs import leases, logs, states
from terrapod_server.runs.model import Phase, Run
from terrapod_shared import clock, errors, wire


async def test_a_run_from_its_creation_to_its_state(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    configuration = await server.configuration(workspace["id"])
    waiting = asyncio.create_task(take(listener))
    made = await server.run(workspace["id"], configuration["id"], message="hello")
    assert made.status_code == 201, made.text
    run = made.json()["data"]
    assert run["attributes"]["status"] == "plan_queued"
    work = await waiting
    assert (work.run_id, work.phase, work.engine.local) == (run["id"], "plan", True)
    await plan_it(listener, work, tmp_path)

    shown = (await server.api.get(f"/runs/{run['id']}?include=plan,workspace")).json()
    assert shown["data"]["attributes"]["status"] == "planned"
    assert shown["data"]["attributes"]["actions"]["is-confirmable"] is True
    plan = next(entry for entry in shown["included"] if entry["type"] == "plans")
    assert plan["attributes"]["status"] == "finished"
    log = await server.api.get(
        plan["attributes"]["log-read-url"] + "?limit=65536&offset=0", headers={"Authorization": ""}
    )
    assert log.content == b"\x02one\ntwo\nthree\nplanned\n\x03"
    past = await server.api.get(plan["attributes"]["log-read-url"] + "?limit=9&offset=999")
    assert (past.status_code, past.content) == (200, b"")
    redacted = await server.api.get(f"/plans/{plan['id']}/json-output-redacted")
    assert "hunter2-canary" not in redacted.text
    assert redacted.json()["plan_format_version"] == "1.2"
    assert "hunter2-canary" in (await server.api.get(f"/plans/{plan['id']}/json-output")).text

    assert (await server.api.post(f"/runs/{run['id']}/actions/apply", json={"comment": "go"})).status_code == 202
    assert (await server.api.post(f"/runs/{run['id']}/actions/confirm")).status_code == 202, (
        "a repeat by the same token"
    )
    locked = (await server.api.get(f"/workspaces/{workspace['id']}")).json()["data"]
    assert locked["attributes"]["locked"] is True
    assert locked["relationships"]["locked-by"]["data"] == {"id": run["id"], "type": "runs"}
    lock = await server.api.post(f"/workspaces/{workspace['id']}/actions/lock")
    assert (lock.status_code, f"is locked by Run {run['id']}" in lock.text) == (409, True)
    await apply_it(listener, await take(listener), tmp_path)
    assert await server.status(run["id"]) == "applied"
    state = (await server.api.get(f"/workspaces/{workspace['id']}/current-state-version")).json()["data"]
    assert state["attributes"]["serial"] == 1
    assert state["relationships"]["run"]["data"]["id"] == run["id"]
    assert (await server.api.get(f"/workspaces/{workspace['id']}")).json()["data"]["attributes"]["locked"] is False
    events = [e["attributes"]["action"] for e in (await server.api.get(f"/runs/{run['id']}/run-events")).json()["data"]]
    assert events == ["create", "queue", "start", "plan", "confirm", "queue_apply", "start", "apply"]
    for file in server.folder.rglob("*"):
        assert not file.is_file() or b"hunter2-canary" not in file.read_bytes(), file


async def test_one_run_at_a_time_applies(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    first, second = [(await server.run(workspace["id"])).json()["data"]["id"] for _ in range(2)]
    only = (await server.run(workspace["id"], **{"plan-only": True})).json()["data"]["id"]
    assert [await server.status(run) for run in (first, second, only)] == ["plan_queued", "pending", "plan_queued"]
    await plan_it(listener, await take(listener), tmp_path)
    assert await server.status(second) == "pending"
    queued = (await server.api.get("/organizations/default/runs/queue")).json()["data"]
    assert second in [entry["id"] for entry in queued]
    assert (await server.api.get("/organizations/default/capacity")).json()["data"]["attributes"]["pending"] == 1
    assert (await server.api.post(f"/runs/{first}/actions/discard")).status_code == 202
    assert [await server.status(run) for run in (first, second)] == ["discarded", "plan_queued"]


async def test_a_manual_lock_holds_runs(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace(**{"auto-apply": True})
    await server.configuration(workspace["id"])
    lock, unlock = (f"/workspaces/{workspace['id']}/actions/{verb}" for verb in ("lock", "unlock"))
    await server.api.post(lock)
    run = (await server.run(workspace["id"])).json()["data"]["id"]
    assert await server.status(run) == "pending"
    await server.api.post(unlock)
    work = await take(listener)
    await server.api.post(lock)
    await plan_it(listener, work, tmp_path)
    assert await server.status(run) == "planned"
    refused = await server.api.post(f"/runs/{run}/actions/apply")
    assert (refused.status_code, "is locked by User" in refused.text) == (409, True)
    await server.api.post(unlock)
    assert await server.status(run) == "apply_queued"


async def test_cancel_before_and_while_it_runs(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    early = (await server.run(workspace["id"])).json()["data"]["id"]
    assert (await server.api.post(f"/runs/{early}/actions/cancel")).status_code == 202
    assert await server.status(early) == "canceled"
    plan = (await server.api.get(f"/runs/{early}/plan")).json()["data"]["attributes"]
    log = (await server.api.get(plan["log-read-url"])).content
    assert (log[:1], log[-1:], log.count(b"\n")) == (b"\x02", b"\x03", 3)

    late = (await server.run(workspace["id"], message="late")).json()["data"]["id"]
    work = await take(listener)
    await listener.report(late, wire.Report(phase="plan", status="planning"), work.lease.number)
    held = [wire.HeldLease(run_id=late, phase="plan", number=work.lease.number)]
    beating = asyncio.create_task(listener.beat(wire.Beat(leases=held), wait_s=20))
    await until(lambda: _is_waiting(server, listener))
    await server.api.post(f"/runs/{late}/actions/cancel")
    pulse = await asyncio.wait_for(beating, 5)
    assert pulse.cancels == {late: "cancel"}
    assert await server.status(late) == "planning", "free only when the listener says so"
    assert (await server.api.post(f"/runs/{late}/actions/force-cancel")).status_code == 409
    known = [msgspec.structs.replace(each, cancel="cancel") for each in held]
    for message, is_answered in ((wire.Beat(leases=held), True), (wire.Beat(leases=known), False)):
        beating = asyncio.create_task(listener.beat(message, wait_s=20))
        if is_answered:
            assert (await asyncio.wait_for(beating, 5)).cancels == {late: "cancel"}
        else:
            await until(lambda: _is_waiting(server, listener))  # else it would ask again without end
            await Run.filter(id=late).update(force_cancel_available_at=clock.now())
            assert (await server.api.post(f"/runs/{late}/actions/force-cancel")).status_code == 202
            assert (await asyncio.wait_for(beating, 5)).cancels == {late: "force-cancel"}
    await listener.report(late, wire.Report(phase="plan", status="canceled"), work.lease.number)
    assert await server.status(late) == "canceled"
    assert (await server.api.post(f"/runs/{late}/actions/cancel")).status_code == 409


async def _is_waiting(server: Running, listener: ListenerClient) -> bool:
    return bool(server.services.bus._waiting.get(f"listener:{listener.identity.kept.listener_id}"))


async def test_runs_need_what_they_are_run_with(server: Running) -> None:
    workspace = await server.workspace()
    none = await server.run(workspace["id"])
    assert (none.status_code, "no uploaded configuration" in none.text) == (422, True)
    assert (await server.post("/runs", {}, "runs")).status_code == 422
    configuration = await server.configuration(workspace["id"])
    old = await server.run(workspace["id"], configuration["id"], **{"terraform-version": "1.0.0"})
    assert (old.status_code, "1.0.0" in old.text) == (422, True)


async def test_the_same_request_within_a_minute_is_one_run(server: Running, tmp_path: Path) -> None:
    await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    configuration = await server.configuration(workspace["id"])
    ids = {(await server.run(workspace["id"], configuration["id"])).json()["data"]["id"] for _ in range(2)}
    assert len(ids) == 1


async def test_old_leases_change_nothing(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"])).json()["data"]["id"]
    work = await take(listener)
    refusal = wire.Report(phase="plan", status="refused", reason="engine missing")
    await listener.report(run, refusal, work.lease.number)
    with pytest.raises(errors.LeaseEnded):
        await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    again = await take(listener)
    assert again.lease.number > work.lease.number
    with pytest.raises(errors.LeaseEnded):
        await listener.call("PUT", f"{listener.base}/runs/{run}/plan/log?offset=0", body=b"x", lease=work.lease.number)
    with pytest.raises(errors.Conflict) as gap:
        await listener.call("PUT", f"{listener.base}/runs/{run}/plan/log?offset=7", body=b"x", lease=again.lease.number)
    assert gap.value.meta["expected"] == 0


async def test_a_lost_plan_is_queued_again_and_a_lost_apply_is_held(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"])).json()["data"]["id"]
    work = await take(listener)
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    await _expire(run, "plan")
    await leases.sweep(server.services)
    assert await server.status(run) == "plan_queued"
    await plan_it(listener, await take(listener), tmp_path)
    await server.api.post(f"/runs/{run}/actions/apply")
    work = await take(listener)
    await listener.report(run, wire.Report(phase="apply", status="applying"), work.lease.number)
    await _expire(run, "apply")
    await leases.sweep(server.services)
    shown = (await server.api.get(f"/runs/{run}")).json()["data"]["attributes"]
    assert (shown["status"], "listener was lost" in shown["status-message"]) == ("applying", True)
    pulse = await listener.beat(wire.Beat(leases=[wire.HeldLease(run_id=run, phase="apply", number=work.lease.number)]))
    assert pulse.leases[0].verdict == "resumed"
    await _expire(run, "apply")
    await leases.sweep(server.services)
    assert (await server.api.post(f"/runs/{run}/actions/release")).status_code == 202
    assert await server.status(run) == "errored"
    raw = state_bytes(1)
    (tmp_path / "late").write_bytes(raw)
    query = f"serial=1&lineage=aaaa&md5={hashlib.md5(raw).hexdigest()}"
    late = await listener.call(
        "PUT", f"{listener.base}/runs/{run}/state?{query}", file=tmp_path / "late", lease=work.lease.number
    )
    assert late.status_code == 202, "kept aside"
    assert (await server.api.get(f"/workspaces/{workspace['id']}/current-state-version")).status_code == 404


async def _expire(run: str, kind: str) -> None:
    await Phase.filter(id=leases.phase_id_of(run, kind)).update(lease_until=-1.0)


async def test_events_are_streamed_and_resumed(server: Running, tmp_path: Path) -> None:
    await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    path = f"/workspaces/{workspace['id']}/runs/events"

    async def first_events(headers: dict[str, str], count: int) -> list[str]:
        found: list[str] = []
        async with server.api.stream("GET", path, headers=headers) as answer:
            if not headers:
                await server.run(workspace["id"])
            async for line in answer.aiter_lines():
                found += [line] if line.startswith(("id:", "event:")) else []
                if len(found) >= 2 * count:
                    return found
        return found

    live = await asyncio.wait_for(first_events({}, 2), 10)
    assert live[1] == "event: run_update"
    first = int(live[0].partition(" ")[2])
    resumed = await asyncio.wait_for(first_events({"Last-Event-ID": str(first)}, 1), 10)
    assert int(resumed[0].partition(" ")[2]) == first + 1


async def test_races_on_postgres(pg_server: Running, tmp_path: Path) -> None:
    server = pg_server
    listener = await server.listener(tmp_path / "home", "one")
    pool, listener_id = await server.pool_id(), listener.identity.kept.listener_id
    made = []
    for _ in range(5):
        workspace = await server.workspace()
        await server.configuration(workspace["id"])
        made.append((await server.run(workspace["id"])).json()["data"]["id"])
    claimed = [
        p
        for p in await asyncio.gather(*(claiming.claim(listener_id, pool, ["terraform 1.15.5"]) for _ in range(20)))
        if p
    ]
    assert sorted(phase.run_id for phase in claimed) == sorted(made), "each phase once"

    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    answers = await asyncio.gather(*(server.run(workspace["id"], message=str(n)) for n in range(8)))
    assert {answer.status_code for answer in answers} == {201}
    statuses = sorted([await server.status(answer.json()["data"]["id"]) for answer in answers])
    assert statuses == ["pending"] * 7 + ["plan_queued"], "never two that could apply"

    work = await take(listener)
    await plan_it(listener, work, tmp_path)
    verbs = ["apply", "discard"] * 4
    answers = await asyncio.gather(*(server.api.post(f"/runs/{work.run_id}/actions/{verb}") for verb in verbs))
    won = {verb for verb, answer in zip(verbs, answers, strict=True) if answer.status_code == 202}
    assert len(won) == 1, "either confirmed or discarded"
    assert {answer.status_code for answer in answers} == {202, 409}


async def test_join_tokens_and_locks_race_on_postgres(pg_server: Running, tmp_path: Path) -> None:
    from terrapod_listener.link.join import join  # noqa: PLC0415

    token = await pg_server.join_token()

    async def attempt(number: int) -> bool:
        try:
            await join(tmp_path / f"home{number}", pg_server.url, token, f"listener-{number}", None)
        except errors.Unauthorized:
            return False
        return True

    assert sum(await asyncio.gather(*(attempt(number) for number in range(8)))) == 1
    workspace = await pg_server.workspace()
    path = f"/workspaces/{workspace['id']}/actions/lock"
    locks = await asyncio.gather(*(pg_server.api.post(path) for _ in range(8)))
    assert sorted(answer.status_code for answer in locks) == [200] + [409] * 7


async def test_hostile_configurations_are_refused(server: Running) -> None:
    workspace = await server.workspace()
    made = await server.post(f"/workspaces/{workspace['id']}/configuration-versions", {"auto-queue-runs": False})
    url = made.json()["data"]["attributes"]["upload-url"]
    assert "upload-url" not in (await server.api.get(f"/configuration-versions/{made.json()['data']['id']}")).text
    good = tar({"main.tf": b""})
    for bad in (b"", b"no archive", good[:-9], tar({"../x": b""}), tar({"/etc/x": b""})):
        answer = await server.api.put(url, content=bad)
        assert answer.status_code == 422, (bad[:20], answer.text)
    assert (await server.api.put(url, content=good)).status_code == 200
    assert (await server.api.put(url, content=good)).status_code == 200
    assert (await server.api.put(url[:-2] + "AA", content=good)).status_code == 404


async def log_of(server: Running, run: str, kind: str) -> bytes:
    shown = (await server.api.get(f"/runs/{run}/{kind}")).json()["data"]["attributes"]
    answer = await server.api.get(shown["log-read-url"] + "?limit=65536&offset=0")
    assert answer.status_code == 200
    return answer.content


async def put_log(listener: ListenerClient, work: wire.Work, offset: int, body: bytes) -> None:
    path = f"{listener.base}/runs/{work.run_id}/{work.phase}/log?offset={offset}"
    await listener.call("PUT", path, body=body, lease=work.lease.number)


async def test_a_plan_that_was_canceled_meanwhile_is_not_planned(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace(**{"auto-apply": True})
    await server.configuration(workspace["id"])
    run, following = [(await server.run(workspace["id"])).json()["data"]["id"] for _ in range(2)]
    work = await take(listener)
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    await server.api.post(f"/runs/{run}/actions/cancel")
    await plan_it(listener, work, tmp_path)
    assert [await server.status(one) for one in (run, following)] == ["canceled", "plan_queued"]
    assert await log_of(server, run, "plan") == b"\x02one\ntwo\nthree\nplanned\n\x03"
    apply = (await server.api.get(f"/runs/{run}/apply")).json()["data"]["attributes"]
    assert apply["status"] == "unreachable"


@pytest.mark.parametrize("how", ["lost", "refused"])
async def test_a_plan_is_queued_again_three_times(server: Running, tmp_path: Path, how: str) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"])).json()["data"]["id"]
    found = []
    work = await take(listener)
    for number in range(4):
        work = work if number == 0 else await take(listener)
        assert work.log_offset == 2 * number
        await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
        await put_log(listener, work, 2 * number, b"%d\n" % number)
        if how == "lost":
            await _expire(run, "plan")
            await leases.sweep(server.services)
        else:
            refusal = wire.Report(phase="plan", status="refused", reason="no disk")
            await listener.report(run, refusal, work.lease.number)
        found.append(await server.status(run))
    assert found == ["plan_queued"] * 3 + ["errored"]
    message = (await server.api.get(f"/runs/{run}")).json()["data"]["attributes"]["error-message"]
    assert "4 times" in message
    assert ("no disk" in message) is (how == "refused")
    assert await log_of(server, run, "plan") == b"\x020\n1\n2\n3\n\x03"
    with pytest.raises(errors.LeaseEnded):
        await listener.report(run, wire.Report(phase="plan", status="errored"), work.lease.number)


async def test_the_log_of_a_lost_plan_stays_when_the_run_is_canceled(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"])).json()["data"]["id"]
    work = await take(listener)
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    await put_log(listener, work, 0, b"begun\n")
    await _expire(run, "plan")
    await leases.sweep(server.services)
    assert (await server.api.post(f"/runs/{run}/actions/cancel")).status_code == 202
    assert await log_of(server, run, "plan") == b"\x02begun\n\x03"


async def test_the_log_of_a_released_apply_stays(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace(**{"auto-apply": True})
    await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"])).json()["data"]["id"]
    await plan_it(listener, await take(listener), tmp_path)
    work = await take(listener)
    await listener.report(run, wire.Report(phase="apply", status="applying"), work.lease.number)
    await put_log(listener, work, 0, b"applying\n")
    assert await log_of(server, run, "apply") == b"\x02applying\n"
    await _expire(run, "apply")
    await leases.sweep(server.services)
    assert (await server.api.post(f"/runs/{run}/actions/release")).status_code == 202
    assert await log_of(server, run, "apply") == b"\x02applying\n\x03"
    phase = await Phase.get(id=work_phase(work))
    assert (phase.log_size, phase.log_sealed) == (9, True)


def work_phase(work: wire.Work) -> str:
    return leases.phase_id_of(work.run_id, work.phase)


async def test_an_apply_ends_only_with_its_state(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace(**{"auto-apply": True})
    await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"])).json()["data"]["id"]
    await plan_it(listener, await take(listener), tmp_path)
    work = await take(listener)
    await listener.report(run, wire.Report(phase="apply", status="applying"), work.lease.number)
    report = wire.Report(phase="apply", status="applied", state="uploaded")
    with pytest.raises(errors.Conflict, match="not here yet: state"):
        await listener.report(run, report, work.lease.number)
    assert await server.status(run) == "applying"
    await apply_it(listener, work, tmp_path)
    assert await server.status(run) == "applied"


async def test_positions_in_the_queue(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace, other = await server.workspace(), await server.workspace()
    for one in (workspace, other):
        await server.configuration(one["id"])

    async def begin(kind: str = "", where: str = workspace["id"]) -> str:
        run_id: str = (await server.run(where, **{kind: True} if kind else {})).json()["data"]["id"]
        return run_id

    saved = await begin("save-plan")
    await plan_it(listener, await take(listener), tmp_path)
    assert await server.status(saved) == "planned_and_saved"
    first, only, second, third = await begin(), await begin("plan-only"), await begin(), await begin()
    elsewhere = await begin(where=other["id"])

    async def positions() -> dict[str, int]:
        rows = (await server.api.get("/organizations/default/runs")).json()["data"]
        return {row["id"]: row["attributes"]["position-in-queue"] for row in rows}

    assert await positions() == {saved: 0, first: 0, only: 0, second: 1, third: 2, elsewhere: 0}
    assert (await server.api.post(f"/runs/{saved}/actions/apply")).status_code == 202
    assert await server.status(saved) == "confirmed"
    assert await positions() == {saved: 1, first: 0, only: 0, second: 2, third: 3, elsewhere: 0}


async def test_lists_are_filtered(server: Running, tmp_path: Path) -> None:
    await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    kinds = {"normal": {}, "only": {"plan-only": True}, "saved": {"save-plan": True}, "destroy": {"is-destroy": True}}
    for message, attributes in kinds.items():
        assert (await server.run(workspace["id"], message=message, **attributes)).status_code == 201

    async def found(**params: str) -> set[str]:
        answer = await server.api.get(f"/workspaces/{workspace['id']}/runs", params=params)
        assert answer.status_code == 200, answer.text
        return {row["attributes"]["message"] for row in answer.json()["data"]}

    assert await found(**{"filter[operation]": "plan_only"}) == {"only"}
    assert await found(**{"filter[operation]": "plan_only,save_plan"}) == {"only", "saved"}
    assert await found(**{"filter[operation]": "plan_and_apply,destroy,nonsense"}) == {"normal", "destroy"}
    assert await found(**{"filter[operation]": "nonsense"}) == set()
    email = (await server.api.get("/account/details")).json()["data"]["attributes"]["email"]
    assert await found(**{"search[user]": email.upper()}) == set(kinds)
    assert await found(**{"search[user]": f"{email}x"}) == set()
    assert await found(**{"search[user]": email, "filter[operation]": "save_plan"}) == {"saved"}


async def test_a_log_that_two_processes_take_in_turn(server: Running, tmp_path: Path) -> None:
    """The second copy of the module is what another process knows; both have one store and one database."""
    spec = importlib.util.find_spec(logs.__name__)
    assert spec is not None
    assert spec.loader is not None
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    listener = await server.listener(tmp_path / "home")
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    run = (await server.run(workspace["id"])).json()["data"]["id"]
    work = await take(listener)
    await listener.report(run, wire.Report(phase="plan", status="planning"), work.lease.number)
    services, phase = server.services, await Phase.get(id=work_phase(work))

    assert await logs.append(services, phase, 0, b"aa") == 2
    assert await other.append(services, phase, 2, b"bb") == 4
    assert await logs.append(services, phase, 4, b"cc") == 6, "the first looks again"
    with pytest.raises(errors.Conflict) as gap:
        await other.append(services, phase, 9, b"x")
    assert gap.value.meta["expected"] == 6
    assert await other.append(services, phase, 6, b"dd") == 8
    assert await logs.append(services, phase, 6, b"ddee") == 10, "the answer was lost: again, to another, and longer"
    assert await logs.append(services, phase, 10, b"ff") == 12
    with pytest.raises(errors.Conflict, match="other bytes"):
        await other.append(services, phase, 6, b"xx")

    shown = (await server.api.get(f"/runs/{run}/plan")).json()["data"]["attributes"]["log-read-url"]
    assert await other.append(services, phase, 12, b"gg") == 14

    async def is_read() -> bool:  # the process that serves was a writer until just now
        return (await server.api.get(shown)).content == b"\x02aabbccddeeffgg"

    await until(is_read, 5)
    assert await logs.size(services, phase) == await other.size(services, phase) == 14
    await listener.report(run, wire.Report(phase="plan", status="errored", log_bytes=14), work.lease.number)

    async def is_sealed() -> bool:
        return await Phase.exists(id=phase.id, log_sealed=True)

    await until(is_sealed)
    key = f"workspaces/{workspace['id']}/runs/{run}/plan.log"
    assert await services.store.whole(key, 100) == b"aabbccddeeffgg"
    assert (await server.api.get(shown)).content == b"\x02aabbccddeeffgg\x03"
    await other.seal(services, phase.id)
    assert (await server.api.get(shown)).content == b"\x02aabbccddeeffgg\x03"
    before = await Phase.get(id=phase.id)  # a reader that looked at the row just before it was sealed
    before.log_sealed = False
    assert await logs.read(services, before, await Run.get(id=run), 0, 100) == b"\x02aabbccddeeffgg\x03"


def test_the_diagram_is_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "run-states.md").read_text()
    assert f"```mermaid\n{states.mermaid()}\n```" in text
