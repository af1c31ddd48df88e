"""The buckets of rate limits, by a clock of the test's own."""

from typing import Any

import pytest
from starlette.requests import Request

from terrapod_server.config.settings import RateLimits
from terrapod_server.kit.caller import ANONYMOUS, Principal
from terrapod_server.kit.http import rate_limits
from terrapod_server.kit.http.rate_limits import Buckets, Limiter
from terrapod_shared.errors import TooManyRequests


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def request(**headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "client": ("203.0.113.1", 1), "headers": raw})


def shown(headers: rate_limits.Headers) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    buckets = Buckets(10, 2, clock)
    for left in range(19, -1, -1):
        headers = shown(buckets.take("a"))
        assert headers == {"x-ratelimit-limit": "10", "x-ratelimit-remaining": str(left), "x-ratelimit-reset": "0"}
    with pytest.raises(TooManyRequests) as refused:
        buckets.take("a")
    told = refused.value.headers
    assert 0.1 <= float(told.pop("X-RateLimit-Reset")) < 0.102
    assert told == {"Retry-After": "1", "X-RateLimit-Remaining": "0", "X-RateLimit-Limit": "10"}
    buckets.take("b")
    clock.now += 0.1
    buckets.take("a")
    with pytest.raises(TooManyRequests):
        buckets.check("a")
    clock.now += 100
    assert shown(buckets.take("a"))["x-ratelimit-remaining"] == "19", "it never holds more than the burst"


def test_no_limit_and_one_that_go_tfe_could_not_live_with() -> None:
    assert Buckets(0, 60, Clock()).take("a") == ()
    assert "x-ratelimit-limit" not in shown(Buckets(2, 60, Clock()).take("a"))
    assert Limiter(RateLimits(user_per_s=3)).announced == ""
    assert Limiter(RateLimits(user_per_s=30)).announced == "30"
    once = Buckets(0.1, 1, Clock())
    once.take("a")
    with pytest.raises(TooManyRequests):
        once.take("a")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "_MOST", 10)
    buckets = Buckets(10, 2, Clock())
    for number in range(100):
        buckets.take(str(number))
    assert len(buckets._full_at) == 10


def test_each_class_has_its_own_buckets() -> None:
    settings: dict[str, Any] = {f"{name}_per_s": 1 for name in ("anonymous", "user", "session", "run", "listener")}
    limiter = Limiter(RateLimits(**settings, burst_s=2), Clock())
    callers = [
        ANONYMOUS,
        Principal(kind="user", id="u", token_id="at-1"),
        Principal(kind="user", id="u", token_id="at-2"),
        Principal(kind="user", id="u", session_id="s"),
        Principal(kind="run", id="run-1", phase="plan"),
        Principal(kind="listener", id="listener-1"),
    ]
    for _ in range(2):
        for caller in callers:
            limiter.take(request(), caller, "203.0.113.1")
    for caller in callers:
        with pytest.raises(TooManyRequests):
            limiter.take(request(), caller, "203.0.113.1")
    limiter.take(request(), ANONYMOUS, "203.0.113.2")


def test_a_flood_of_bad_tokens_stops_at_its_address_and_leaves_good_ones_alone() -> None:
    limiter = Limiter(RateLimits(anonymous_per_s=1, burst_s=3), Clock())
    good, bad = request(authorization="Bearer good"), request(authorization="Bearer bad")
    limiter.enter(good, "203.0.113.1")
    limiter.take(good, Principal(kind="user", id="u", token_id="at-1"), "203.0.113.1")
    for _ in range(3):
        limiter.enter(bad, "203.0.113.1")
        limiter.refused(bad, "203.0.113.1")
    for stranger in (bad, request(authorization="Bearer worse"), request()):
        with pytest.raises(TooManyRequests):
            limiter.enter(stranger, "203.0.113.1")
    limiter.enter(good, "203.0.113.1")
    limiter.enter(bad, "203.0.113.2")
