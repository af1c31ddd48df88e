"""What a listener may do, and what nobody else may do in its name."""

import asyncio
import base64
import hashlib
import json
import logging
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from kit.serving import Running, until
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_listener.link.join import join, renew
from terrapod_server.agents.model import JoinToken, Listener
from terrapod_shared import clock, errors, signing, wire


def signed(
    one: ListenerClient, method: str, path: str, body: bytes = b"", *, lease: int = 0, **other: Any
) -> dict[str, str]:
    """The headers of a signed request; `other` puts a wrong key, id or time into it."""
    kept = one.identity.kept
    return signing.sign_request(
        other.get("key", one.identity.key),
        other.get("key_id", kept.listener_id),
        method,
        kept.server + path,
        body_sha256=hashlib.sha256(body).digest(),
        lease=lease,
        now=other.get("now", time.time()),
        protocol=other.get("protocol", wire.PROTOCOL),
    )


async def send(server: Running, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        return await client.request(method, path, headers=headers, content=body)


async def work_for(server: Running, listener: ListenerClient) -> wire.Work:
    workspace = await server.workspace()
    await server.configuration(workspace["id"])
    made = await server.run(workspace["id"])
    assert made.status_code == 201, made.text
    work = await listener.next_work(10)
    assert work is not None
    return work


async def test_only_the_listener_itself_is_answered(server: Running, tmp_path: Path) -> None:
    one, two = await server.listener(tmp_path / "1", "one"), await server.listener(tmp_path / "2", "two")
    path = f"{one.base}/heartbeat"
    good = signed(one, "POST", path, b"{}")
    answer = await send(server, "POST", path, good, b"{}")
    assert (answer.status_code, answer.headers[wire.PROTOCOL_HEADER]) == (200, "2")
    again = await send(server, "POST", path, good, b"{}")
    assert (again.status_code, "seen before" in again.text) == (401, True)
    assert again.headers[wire.PROTOCOL_HEADER] == "2"

    assert (await send(server, "POST", path, {wire.PROTOCOL_HEADER: "2"}, b"{}")).status_code == 401, "unsigned"
    certificate = base64.b64encode(one.identity.kept.certificate.encode()).decode()
    only = {"X-Terrapod-Client-Cert": certificate, "X-Forwarded-Client-Cert": certificate, wire.PROTOCOL_HEADER: "2"}
    assert (await send(server, "POST", path, only, b"{}")).status_code == 401, "a certificate proves no key"
    bearer = {"Authorization": f"Bearer {server.token}", wire.PROTOCOL_HEADER: "2"}
    assert (await send(server, "POST", path, bearer, b"{}")).status_code == 403
    stolen = signed(one, "POST", path, b"{}", key=two.identity.key)
    assert (await send(server, "POST", path, stolen, b"{}")).status_code == 401, "another's key"
    nobody = signed(one, "POST", path, b"{}", key_id="listener-nobody")
    assert (await send(server, "POST", path, nobody, b"{}")).status_code == 404
    for of_two in (f"{two.base}/leave", f"{two.base}/heartbeat", f"/api/v2//listeners/{two.base[18:]}/leave"):
        wrong = await send(server, "POST", of_two, signed(one, "POST", of_two, b"{}"), b"{}")
        assert wrong.status_code == 404, (of_two, wrong.text)
    assert await Listener.exists(id=two.identity.kept.listener_id)
    other_body = await send(server, "POST", path, signed(one, "POST", path, b"{}"), b'{"capacity":9}')
    assert other_body.status_code == 400

    newer = {**signed(one, "POST", path, b"{}"), wire.PROTOCOL_HEADER: "3"}
    mismatch = await send(server, "POST", path, newer, b"{}")
    assert (mismatch.status_code, mismatch.headers[wire.PROTOCOL_HEADER]) == (426, "2")
    assert mismatch.json()["errors"][0]["meta"] == {"least": 1, "most": 2}
    changed = {**signed(one, "POST", path, b"{}"), wire.PROTOCOL_HEADER: "1"}
    assert (await send(server, "POST", path, changed, b"{}")).status_code == 401, "the version is signed"
    for skew in (-90, 90):
        late = await send(server, "POST", path, signed(one, "POST", path, b"{}", now=time.time() + skew), b"{}")
        meta = late.json()["errors"][0]["meta"]
        assert late.status_code == 401
        assert abs(meta["server-time"] - time.time()) < 20


async def test_an_older_listener_ends_what_it_has_and_gets_nothing_new(server: Running, tmp_path: Path) -> None:
    one = await server.listener(tmp_path / "1", "one")
    work = await work_for(server, one)
    base, number = f"{one.base}/runs/{work.run_id}", work.lease.number

    async def old(method: str, path: str, body: bytes = b"", lease: int = number) -> httpx.Response:
        return await send(server, method, path, signed(one, method, path, body, lease=lease, protocol=1), body)

    assert (await old("PATCH", base, b'{"phase":"plan","status":"planning"}')).status_code == 200
    assert (await old("GET", f"{base}/configuration")).status_code == 200
    assert (await old("PUT", f"{base}/plan/log?offset=0", b"a line\n")).json() == {"next_offset": 7}
    lease = {"run_id": work.run_id, "phase": "plan", "number": number}
    beat = await old("POST", f"{one.base}/heartbeat", json.dumps({"leases": [lease]}).encode(), 0)
    assert beat.json()["leases"][0]["verdict"] == "ok"
    ended = b'{"phase":"plan","status":"errored","log_bytes":7}'
    assert (await old("PATCH", base, ended)).json()["status"] == "errored"
    refused = await old("GET", f"{one.base}/runs/next?wait=0", lease=0)
    assert (refused.status_code, refused.headers[wire.PROTOCOL_HEADER]) == (426, "2")
    assert refused.json()["errors"][0]["meta"] == {"least": 2, "most": 2}
    assert "upgrade" in refused.text


@pytest.mark.parametrize("method", ["DELETE", "POST"])
async def test_a_listener_leaves_by_itself(server: Running, tmp_path: Path, method: str) -> None:
    one, two = await server.listener(tmp_path / "1", "one"), await server.listener(tmp_path / "2", "two")
    path = one.base + ("/leave" if method == "POST" else "")
    assert (await send(server, method, path, signed(two, method, path))).status_code == 404
    assert (await send(server, method, path, {wire.PROTOCOL_HEADER: "2"})).status_code == 401
    waiting = asyncio.create_task(one.next_work(20))
    topic = f"listener:{one.identity.kept.listener_id}"

    async def is_waiting() -> bool:
        return bool(server.services.bus._waiting.get(topic))

    await until(is_waiting)
    gone = await send(server, method, path, signed(one, method, path))
    assert (gone.status_code, gone.headers[wire.PROTOCOL_HEADER]) == (204, "2")
    with pytest.raises(errors.Unauthorized):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(errors.NotFound):
        await one.beat(wire.Beat())
    assert (await server.api.delete(f"/listeners/{two.identity.kept.listener_id}")).status_code == 204, "by an admin"
    assert not await Listener.exists()


async def test_certificates_end_and_are_renewed(server: Running, tmp_path: Path) -> None:
    one = await server.listener(tmp_path / "1")
    mine = Listener.filter(id=one.identity.kept.listener_id)
    assert (await one.beat(wire.Beat())).renew is False
    await mine.update(certificate_until=clock.now() + timedelta(hours=11))
    assert (await one.beat(wire.Beat())).renew is True
    await mine.update(certificate_until=clock.now() - timedelta(hours=1))
    with pytest.raises(errors.Unauthorized):
        await one.next_work(0)
    assert (await one.beat(wire.Beat())).renew is True
    before = one.identity.kept.certificate
    csr = signing.make_csr(Ed25519PrivateKey.generate(), "one")
    for sealing_key in ("c2hvcnQ=", "?"):
        body = json.dumps({"csr": csr, "sealing_key": sealing_key}).encode()
        with pytest.raises(errors.Invalid):
            await one.call("POST", f"{one.base}/renew", body=body)
    await renew(one)
    assert one.identity.kept.certificate != before
    assert await one.next_work(0) is None
    await mine.update(revoked_at=clock.now())
    for attempt in (one.next_work(0), one.beat(wire.Beat()), renew(one)):
        with pytest.raises(errors.Unauthorized):
            await attempt


def join_body(token: str, name: str, key: Ed25519PrivateKey | None = None, csr_name: str = "") -> bytes:
    return json.dumps(
        {
            "join_token": token,
            "name": name,
            "csr": signing.make_csr(key or Ed25519PrivateKey.generate(), csr_name or name),
            "sealing_key": signing.raw_public(X25519PrivateKey.generate().public_key()),
        }
    ).encode()


def uses(most: int | None) -> dict[str, Any]:
    return {"max-uses": most}


JOIN = "/api/v2/agent-pools/join"


async def test_names_are_the_servers_and_kept_by_keys(
    server: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = join_body(await server.join_token(), "mallory", csr_name="listener-somebody-else")
    made = await send(server, "POST", JOIN, {}, body)
    assert (made.status_code, made.headers[wire.PROTOCOL_HEADER]) == (201, "2")
    data = made.json()["data"]
    subject = x509.load_pem_x509_certificate(data["certificate"].encode()).subject.rfc4514_string()
    assert subject == f"CN={data['listener_id']}"

    one = await server.listener(tmp_path / "1", "one")
    other = (await server.post("/organizations/default/agent-pools", {"name": "other"})).json()["data"]["id"]
    elsewhere = await send(server, "POST", JOIN, {}, join_body(await server.join_token(other), "one"))
    assert (elsewhere.status_code, "another pool" in elsewhere.text) == (409, True)
    wrong_pool = f"/api/v2/agent-pools/{other}/listeners/join"
    assert (await send(server, "POST", wrong_pool, {}, join_body(await server.join_token(), "x"))).status_code == 409

    token = await server.join_token()
    assert (await send(server, "POST", JOIN, {}, join_body(token, "one"))).status_code == 409
    row = await JoinToken.get(hash=hashlib.sha256(token.encode()).hexdigest())
    assert row.use_count == 0, "a refused join spends nothing"
    serial = (await Listener.get(name="one")).certificate_serial
    allow = await server.api.post(f"/listeners/{one.identity.kept.listener_id}/actions/allow-rejoin")
    assert allow.status_code == 200
    with caplog.at_level(logging.WARNING):
        assert (await send(server, "POST", JOIN, {}, join_body(token, "one"))).status_code == 201
    renewed = (await Listener.get(name="one")).certificate_serial
    assert any(serial in each.message and renewed in each.message for each in caplog.records)
    second = await send(server, "POST", JOIN, {}, join_body(await server.join_token(), "one"))
    assert second.status_code == 409, "allowed once"


async def test_a_signed_join_is_good_once(server: Running, tmp_path: Path) -> None:
    one = await server.listener(tmp_path / "1", "one")
    key = Ed25519PrivateKey.generate()
    body = join_body(await server.join_token(**uses(5)), "one", key)
    headers = signed(one, "POST", JOIN, body)
    changed = await send(server, "POST", JOIN, headers, body + b" ")
    assert changed.status_code == 400, "not the body that was signed"
    assert (await send(server, "POST", JOIN, headers, body)).status_code == 401, "its nonce is spent"
    assert (await send(server, "POST", JOIN, signed(one, "POST", JOIN, body), body)).status_code == 201
    with pytest.raises(errors.Unauthorized):
        await one.beat(wire.Beat())
    rejoined = await join(tmp_path / "2", server.url, await server.join_token(), "two", None)
    assert (await join(tmp_path / "2", server.url, await server.join_token(), "two", None)).kept.listener_id == (
        rejoined.kept.listener_id
    )


async def test_join_tokens_are_good_for_what_they_say(server: Running) -> None:
    async def status(token: str) -> int:
        return (await send(server, "POST", JOIN, {}, join_body(token, uuid.uuid4().hex))).status_code

    twice = await server.join_token(**uses(2))
    assert [await status(twice) for _ in range(3)] == [201, 201, 401]
    over = await server.join_token()
    fingerprint = hashlib.sha256(over.encode()).hexdigest()
    await JoinToken.filter(hash=fingerprint).update(expires_at=clock.now() - timedelta(seconds=1))
    assert await status(over) == 401
    revoked = await server.join_token(**uses(None))
    assert await status(revoked) == 201
    row = await JoinToken.get(hash=hashlib.sha256(revoked.encode()).hexdigest())
    shown = await server.api.get(f"/authentication-tokens/{row.id}")
    assert (shown.status_code, revoked in shown.text, shown.json()["data"]["attributes"]["use-count"]) == (
        200,
        False,
        1,
    )
    assert [await status(row.id), await status(row.hash), await status("")] == [401, 401, 401]
    assert (await server.api.delete(f"/authentication-tokens/{row.id}")).status_code == 204
    assert await status(revoked) == 401


def kept_of_runs(folder: Path) -> set[Path]:
    """All files of the server's but the database and the audit log's, which change at any time."""
    files = (path for path in folder.rglob("*") if path.is_file() and "sqlite" not in path.name)
    return {path for path in files if "audit" not in path.relative_to(folder).parts}


async def test_deliveries_are_checked(server: Running, tmp_path: Path) -> None:
    one, two = await server.listener(tmp_path / "1", "one"), await server.listener(tmp_path / "2", "two")
    work = await work_for(server, one)
    run, number = f"{one.base}/runs/{work.run_id}", work.lease.number
    with pytest.raises((errors.LeaseEnded, errors.NotFound)):
        await two.report(work.run_id, wire.Report(phase="plan", status="planning"), number)
    await one.report(work.run_id, wire.Report(phase="plan", status="planning"), number)
    files = kept_of_runs(server.folder)
    path = f"{run}/plan-file"
    bad = await send(server, "PUT", path, signed(one, "PUT", path, b"good", lease=number), b"evil")
    assert bad.status_code == 400
    assert kept_of_runs(server.folder) == files, "nothing is kept of a body that was not signed"
    with pytest.raises(errors.LeaseEnded):
        await one.call("PUT", path, body=b"old", lease=number - 1)
    good = await one.call("PUT", path, body=b"good", lease=number)
    assert good.headers[wire.DIGEST_HEADER] == hashlib.sha256(b"good").hexdigest()
    assert good.headers[wire.PROTOCOL_HEADER] == "2"
    fetched = await one.call("GET", f"{run}/configuration", lease=number, is_signed=False)
    assert hashlib.sha256(fetched.content).hexdigest() == work.links["configuration"].sha256
    assert fetched.headers[wire.PROTOCOL_HEADER] == "2"
    with pytest.raises((errors.LeaseEnded, errors.NotFound)):
        await two.call("GET", f"{two.base}/runs/{work.run_id}/configuration", lease=number)
    for offset in ("-1", "1e3", "0x1", "9" * 30, "%00", "../1", "\u0661"):
        answer = httpx.URL(f"{server.url}{run}/plan/log", params={"offset": offset}).raw_path.decode()
        with pytest.raises((errors.Invalid, errors.BadRequest)):
            await one.call("PUT", answer, body=b"x", lease=number)
    with pytest.raises(errors.Conflict) as gap:
        await one.call("PUT", f"{run}/plan/log?offset=999999999999", body=b"x", lease=number)
    assert gap.value.meta["expected"] == 0


async def test_work_is_signed_and_its_secrets_are_sealed(server: Running, tmp_path: Path) -> None:
    one = await server.listener(tmp_path / "1")
    workspace = await server.workspace()
    for key, sensitive in (("secret", True), ("plain", False)):
        attributes = {"key": key, "value": f"{key}-canary", "category": "terraform", "sensitive": sensitive}
        assert (await server.post(f"/workspaces/{workspace['id']}/vars", attributes, "vars")).status_code == 201
    await server.configuration(workspace["id"])
    assert (await server.run(workspace["id"])).status_code == 201
    answer = await one.call("GET", f"{one.base}/runs/next?wait=10", timeout_s=20)  # verified
    assert answer.headers[wire.ANSWER_SIGNATURE_HEADER]
    assert b"secret-canary" not in answer.content
    work = json.loads(answer.content)
    sealed = next(each for each in work["variables"] if each["key"] == "secret")
    info = wire.seal_info(work["run_id"], "plan", work["lease"]["number"], "terraform", "secret")
    assert signing.unseal(one.identity.sealing_key, info, sealed["sealed"]) == b"secret-canary"
    with pytest.raises(errors.Unauthorized):
        signing.unseal(one.identity.sealing_key, info + b"x", sealed["sealed"])


async def test_a_clock_that_jumps_costs_no_work(server: Running, tmp_path: Path) -> None:
    """Downloads too: a run would end for it."""
    one = await server.listener(tmp_path / "1", "one")
    work = await work_for(server, one)
    number, target = work.lease.number, tmp_path / "configuration"
    one.offset_s = 600.0
    await one.download(
        work.links["configuration"].path, target, lease=number, sha256=work.links["configuration"].sha256
    )
    assert target.stat().st_size > 0
    assert abs(one.offset_s) < 60
    one.offset_s = -600.0
    planning = wire.Report(phase="plan", status="planning")
    assert (await one.report(work.run_id, planning, number)).status == "planning"


async def test_a_draining_listener_gets_nothing(server: Running, tmp_path: Path) -> None:
    one, two = await server.listener(tmp_path / "1", "one"), await server.listener(tmp_path / "2", "two")
    listener_id = one.identity.kept.listener_id
    waiting = asyncio.create_task(one.next_work(3))
    topic = f"listener:{listener_id}"

    async def is_waiting() -> bool:
        return bool(server.services.bus._waiting.get(topic))

    await until(is_waiting)
    drained = await server.api.post(f"/listeners/{listener_id}/actions/drain")
    assert drained.json()["data"]["attributes"]["status"] == "draining"
    work = await work_for(server, two)
    assert work.listener_id == two.identity.kept.listener_id
    assert await waiting is None
    local = [wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)]
    assert (await one.beat(wire.Beat(local_engines=local))).drain is True
    await server.api.post(f"/listeners/{listener_id}/actions/undrain")
    assert (await work_for(server, one)).listener_id == listener_id


async def test_a_join_token_ends_when_its_maker_says(server: Running) -> None:
    path = f"/agent-pools/{await server.pool_id()}/authentication-tokens"

    async def made(**attributes: Any) -> httpx.Response:
        return await server.post(path, attributes, "authentication-tokens")

    async def until_(**attributes: Any) -> Any:
        answer = await made(**attributes)
        assert answer.status_code == 201, answer.text
        shown = answer.json()["data"]["attributes"]
        assert shown["expires-at"] == shown["expired-at"]
        return shown["expires-at"]

    soon = clock.now() + timedelta(minutes=59)
    assert clock.stamp(soon) < await until_() < clock.stamp(soon + timedelta(minutes=2)), "an hour"
    for name in ("expires-at", "expired-at"):
        assert await until_(**{name: "2999-01-31T13:00:00+01:00"}) == "2999-01-31T12:00:00Z"
        assert await until_(**{name: None}) is None, "for ever, and said so"
    token = await server.join_token(**{"expires-at": None, "max-uses": None})
    for _ in range(2):
        assert (await send(server, "POST", JOIN, {}, join_body(token, uuid.uuid4().hex))).status_code == 201
    for wrong in (
        {"expires-at": "2020-01-01T00:00:00Z"}, {"expired-at": "2020-01-01T00:00:00Z"}, {"expires-at": "tomorrow"},
        {"expires-at": "2999-01-01T00:00:00"}, {"expires-at": 5}, {"expires-at": "9999-12-31T23:59:59-23:00"},
        {"max-uses": 0}, {"max-uses": -1}, {"max-uses": 1 << 40}, {"max-uses": "2"}, {"max-uses": True},
    ):  # fmt: skip
        answer = await made(**wrong)
        assert answer.status_code == 422, (wrong, answer.text)
        assert answer.json()["errors"][0]["source"]["pointer"] == f"/data/attributes/{next(iter(wrong))}"
