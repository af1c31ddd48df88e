"""Rate limits, the brake on guessing, and the headers that every answer has."""

import asyncio
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
import msgspec
import pytest

from kit.serving import Running, running, until
from terrapod_server.config.load import load
from terrapod_server.kit import html
from terrapod_server.kit.http import headers, lockout
from terrapod_server.kit.http.rate_limits import Limiter
from terrapod_server.kit.model import Brake
from terrapod_shared import wire
from terrapod_shared.errors import TooManyRequests

QUARTER_S = 900.0
OWNER = "owner@example.com"


async def tried(
    guesses: Iterable[tuple[str, str]], start: float, within_s: float, *, device: str = "", at_once: int = 20
) -> int:
    """How many guesses, spread over a time, get past the brake to the password; all are wrong."""
    waiting = list(guesses)
    step = within_s / len(waiting)

    async def guess(number: int, address: str, account: str) -> bool:
        try:
            await lockout.check("sign-in", address, account, device, now=start + number * step)
        except TooManyRequests as error:
            assert int(error.headers["Retry-After"]) >= 1
            return False
        return True

    done = 0
    for first in range(0, len(waiting), at_once):
        some = enumerate(waiting[first : first + at_once], first)
        done += sum(await asyncio.gather(*(guess(number, *one) for number, one in some)))
    return done


async def came_in(address: str, now: float, device: str = "", account: str = OWNER) -> None:
    await lockout.succeeded(await lockout.check("sign-in", address, account, device, now=now), device, now=now)


@pytest.mark.usefixtures("server")
@pytest.mark.slow
async def test_a_thousand_guesses_from_one_address() -> None:
    now = time.time()
    for within_s in (1.0, QUARTER_S):  # in a rush, and spread over the quarter of an hour
        accounts = [f"user-{number}@example.com" for number in range(1000)]
        now += 86_400
        assert 5 <= await tried([("203.0.113.1", account) for account in accounts], now, within_s) < 20
        now += 86_400
        assert 5 <= await tried([("203.0.113.1", OWNER)] * 1000, now, within_s) < 20
    now += 86_400
    one_customer = [(f"2001:db8:1:2::{number:x}", OWNER) for number in range(1000)]
    assert await tried(one_customer, now, QUARTER_S) < 20


@pytest.mark.usefixtures("server")
async def test_a_thousand_addresses_on_one_account_do_not_lock_its_owner_out() -> None:
    now = time.time()
    device = secrets.token_urlsafe(24)
    await came_in("198.51.100.1", now)
    await came_in("198.51.100.2", now, device)
    attack = [(f"203.0.{number // 250}.{number % 250}", OWNER) for number in range(1000)]
    now += 86_400
    assert 5 <= await tried(attack, now, QUARTER_S) < 20
    end = now + QUARTER_S
    with pytest.raises(TooManyRequests):
        await lockout.check("sign-in", "192.0.2.1", OWNER, now=end)
    with pytest.raises(TooManyRequests):
        await lockout.check("sign-in", "192.0.2.1", OWNER, secrets.token_urlsafe(24), now=end)
    await came_in("198.51.100.1", end)
    await came_in("192.0.2.1", end, device)
    await came_in("203.0.0.7", end, device)  # even from an address that guesses
    other = [("192.0.2.9", "other@example.com")] * 50
    assert await tried(other, end, 1, device=device) == lockout.TRIES, "the device vouches for nobody else"


@pytest.mark.usefixtures("server")
async def test_who_guesses_at_a_known_address_is_braked_too() -> None:
    now = time.time()
    device = secrets.token_urlsafe(24)
    await came_in("198.51.100.1", now, device)
    assert 5 <= await tried([("198.51.100.1", OWNER)] * 1000, now, QUARTER_S) < 20
    assert 5 <= await tried([("192.0.2.1", OWNER)] * 1000, now, QUARTER_S, device=device) < 20


@pytest.mark.usefixtures("server")
async def test_who_comes_in_costs_nothing_and_opens_nothing() -> None:
    now = time.time()
    for number in range(100):
        await came_in("198.51.100.1", now, account=f"user-{number}@example.com")
    wrong = 0
    for number in range(100):  # an account of one's own between the guesses gives none back
        try:
            await lockout.check("sign-in", "203.0.113.1", OWNER, now=now + number)
            wrong += 1
            await came_in("203.0.113.1", now + number, account="mallory@example.com")
        except TooManyRequests:
            continue
    assert wrong < 20


async def test_unknown_accounts_are_braked_alike_and_rows_go(server: Running) -> None:
    now = time.time() - 86_400
    answers = []
    for account in (OWNER, "nobody@example.com"):
        for number in range(lockout.TRIES + 1):
            try:
                await lockout.check("sign-in", f"203.0.113.{number}", account, now=now)
            except TooManyRequests as error:
                answers.append((number, error.detail))
    assert len(set(answers)) == 1
    rows = await Brake.all()
    assert all(OWNER not in row.id and len(row.id) == 64 for row in rows)
    await lockout.purge(server.services)
    assert await Brake.all().count() == 0


async def test_guesses_at_join_tokens(database_url: str, tmp_path: Path) -> None:
    async with running(tmp_path / "data", database_url, trusted_proxies=["127.0.0.1"]) as server:
        body = msgspec.json.encode(wire.Join(join_token="wrong", name="x", version="1"))
        async with httpx.AsyncClient(base_url=server.url) as stranger:

            async def join(address: str) -> int:
                sent = {"X-Forwarded-For": f"9.9.9.9, {address}"}
                return (await stranger.post("/api/v2/agent-pools/join", content=body, headers=sent)).status_code

            codes = [await join("203.0.113.1") for _ in range(100)]
            assert (codes.count(401), codes.count(429)) == (lockout.TRIES, 100 - lockout.TRIES)
            assert await join("203.0.113.2") == 401

            async def recorded() -> bool:
                found = (await server.api.get("/admin/audit-log?page[size]=100")).json()["data"]
                return {"203.0.113.1", "203.0.113.2"} <= {one["attributes"]["actor-ip"] for one in found}

            await until(recorded)
        await server.listener(tmp_path / "one")


async def test_limits_are_told_and_kept(database_url: str, tmp_path: Path) -> None:
    limits = {"user_per_s": 5, "anonymous_per_s": 0.5, "burst_s": 2}
    async with running(tmp_path / "data", database_url, rate_limits=limits) as server:
        ping = await server.api.get("/ping")
        assert ping.headers["x-ratelimit-limit"] == "5"
        first = await server.api.get("/account/details")
        assert first.status_code == 200
        assert (first.headers["x-ratelimit-limit"], first.headers["x-ratelimit-remaining"]) == ("5", "9")
        answers = await asyncio.gather(*(server.api.get("/account/details") for _ in range(60)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 0 < len(refused) <= 51
        for answer in refused:
            assert answer.headers["x-ratelimit-limit"] == "5"
            assert float(answer.headers["x-ratelimit-reset"]) > 0
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["errors"][0]["status"] == "429"
        for _ in range(30):
            assert (await server.api.get("/ping")).status_code == 204
        async with httpx.AsyncClient(base_url=server.url) as stranger:
            codes = [(await stranger.get("/api/v2/account/details")).status_code for _ in range(30)]
            assert set(codes) == {401, 429}
            assert (await stranger.get("/api/v2/logs/nonsense")).status_code == 404, "log reads are exempt"
            assert (await stranger.get("/ready")).status_code == 200


async def test_no_stranger_fills_the_audit_log(database_url: str, tmp_path: Path) -> None:
    limits = {"anonymous_per_s": 0.5, "burst_s": 8}
    async with (
        running(tmp_path / "data", database_url, rate_limits=limits) as server,
        httpx.AsyncClient(base_url=f"{server.url}/api/v2") as stranger,
    ):
        listener = await server.listener(tmp_path / "one")
        for method, path, refused in (
            ("PUT", "/uploads/states/nonsense", 404),
            ("PUT", "/uploads/configurations/nonsense", 404),
            ("POST", "/listeners/listener-00000000000000000000000000/heartbeat", 426),
            ("POST", "/organizations/other/workspaces", 404),
            ("POST", "/organizations/default/workspaces?x=%00", 400),
        ):
            server.services.limits = Limiter(server.services.config.rate_limits)
            assert (await server.api.get("/account/details")).status_code == 200  # known as good from now on
            codes = [(await stranger.request(method, path)).status_code for _ in range(30)]
            assert set(codes) == {refused, 429}, (path, codes)
            assert codes.count(refused) <= 6, path
        await listener.beat(wire.Beat(free_slots=1, capacity=1))  # at the same address
        workspace_id = (await server.workspace())["id"]
        version = await server.configuration(workspace_id)
        assert version["id"]


async def test_every_answer_has_the_headers(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url) as anybody:
        for path in ("/health", "/nothing", "/api/v2/account/details"):
            answer = await anybody.get(path)
            assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            assert "camera=()" in answer.headers["permissions-policy"]
            assert answer.headers["cache-control"] == "no-store"
            assert "strict-transport-security" not in answer.headers
            assert len(answer.headers.get_list("x-request-id")) == 1


def test_strict_transport_security_stays_off_names_that_developers_share() -> None:
    def told(url: str) -> bool:
        return any(name == b"strict-transport-security" for name, _ in headers.common(load({}, None, public_url=url)))

    assert told("https://terrapod.example.com")
    assert not any(told(url) for url in ("http://terrapod.example.com", "https://localhost:8443", "https://127.0.0.1"))


def test_the_policy_of_pages() -> None:
    policy = html.message("a", "b").headers["Content-Security-Policy"]
    assert "script-src" not in policy
    assert policy.startswith("default-src 'none'")
    assert "style-src 'self';" in policy
    assert "form-action 'self';" in policy
    leading = html.page("message.html", forms="http://localhost:*", title="a", text="b", link=("/", "c"))
    assert "form-action 'self' http://localhost:*;" in leading.headers["Content-Security-Policy"]
