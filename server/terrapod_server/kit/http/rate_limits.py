"""Rate limits by who asks: buckets in the memory of this process.

Each credential has a bucket of its own; whoever shows none shares that of
the address. A bad credential costs its address, and an address that has
nothing left is refused before its credential is looked up, unless that was
good a while ago: so a flood from an address keeps nobody else there out.

A bucket is one number, the time at which it will be full again (the generic
cell rate algorithm), so thousands of them cost little; the least used go first.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import Request

from terrapod_server.config.settings import RateLimits
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.http.browser import Browser
from terrapod_server.kit.http.networks import group
from terrapod_shared.errors import TooManyRequests

_MOST = 20_000
#: go-tfe gives itself a third of the limit as burst; with less than this it would refuse every request by itself.
_LEAST_ANNOUNCED = 4
Headers = tuple[tuple[bytes, bytes], ...]


class Buckets:
    """The buckets of one class of callers."""

    def __init__(self, per_s: float, burst_s: float, clock: Callable[[], float]) -> None:
        self.per_s = per_s
        self._cost_s = 1 / per_s if per_s else 0.0
        self._depth_s = max(burst_s, self._cost_s)
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._limit = b"%d" % per_s

    def take(self, key: str) -> Headers:
        """Takes one request out; what the answer says of the limit. Raises TooManyRequests."""
        if not self.per_s:
            return ()
        now = self._clock()
        used_s = max(0.0, self._full_at.get(key, 0.0) - now) + self._cost_s
        if used_s > self._depth_s + 1e-9:
            raise self._refusal(used_s - self._depth_s)
        self._full_at[key] = now + used_s
        self._full_at.move_to_end(key)
        if len(self._full_at) > _MOST:
            self._full_at.popitem(last=False)
        left = b"%d" % int((self._depth_s - used_s) * self.per_s + 1e-6)
        shown = (b"x-ratelimit-remaining", left), (b"x-ratelimit-reset", b"0")
        return ((b"x-ratelimit-limit", self._limit), *shown) if self.per_s >= _LEAST_ANNOUNCED else shown

    def check(self, key: str) -> None:
        """Raises TooManyRequests where nothing is left; takes nothing."""
        if self.per_s:
            over_s = self._full_at.get(key, 0.0) - self._clock() + self._cost_s - self._depth_s
            if over_s > 1e-9:  # noqa: PLR2004  less than rounding
                raise self._refusal(over_s)

    def _refusal(self, wait_s: float) -> TooManyRequests:
        error = TooManyRequests(f"more than {self.per_s:g} requests a second; try again in {wait_s:.1f} s")
        error.headers |= {
            "Retry-After": str(math.ceil(wait_s)),
            "X-RateLimit-Reset": f"{math.ceil(wait_s * 1000) / 1000:.3f}",
        }
        error.headers["X-RateLimit-Remaining"] = "0"
        if self.per_s >= _LEAST_ANNOUNCED:
            error.headers["X-RateLimit-Limit"] = f"{self.per_s:.0f}"
        return error


class Limiter:
    """All classes of callers."""

    def __init__(self, settings: RateLimits, clock: Callable[[], float] = time.monotonic) -> None:
        def buckets(per_s: float) -> Buckets:
            return Buckets(per_s, settings.burst_s, clock)

        self._anonymous = buckets(settings.anonymous_per_s)
        self._users, self._sessions = buckets(settings.user_per_s), buckets(settings.session_per_s)
        self._runs, self._listeners = buckets(settings.run_per_s), buckets(settings.listener_per_s)
        #: Credentials that were good, by their hash within this process.
        self._good: OrderedDict[int, None] = OrderedDict()
        #: What go-tfe is told at its first request; it spreads its own by that.
        self.announced = f"{settings.user_per_s:.0f}" if settings.user_per_s >= _LEAST_ANNOUNCED else ""

    def enter(self, request: Request, address: str) -> None:
        """Before a credential is looked up. Raises TooManyRequests for an address that has nothing left."""
        if hash(_credential(request)) not in self._good:
            self._anonymous.check(group(address))

    def refused(self, request: Request, address: str) -> None:
        """The credential is bad: that costs its address. Raises TooManyRequests."""
        self._good.pop(hash(_credential(request)), None)
        self._anonymous.take(group(address))

    def take(self, request: Request, principal: Principal, address: str) -> Headers:
        """A request of somebody who is known by now. Raises TooManyRequests."""
        if principal.kind == "anonymous":
            return self._anonymous.take(group(address))
        self._remember(hash(_credential(request)))
        if principal.kind == "run":
            return self._runs.take(f"{principal.id} {principal.phase}")
        if principal.kind == "listener":
            return self._listeners.take(principal.id)
        if principal.session_id:
            return self._sessions.take(principal.session_id)
        return self._users.take(principal.token_id or principal.id)

    def _remember(self, credential: int) -> None:
        self._good[credential] = None
        self._good.move_to_end(credential)
        if len(self._good) > _MOST:
            self._good.popitem(last=False)


def _credential(request: Request) -> str:
    """What the caller shows: a session's cookie where it asks for a page, else a bearer token or the name of a listener's key."""
    browser: Browser | None = request.scope.get("browser")
    if browser is not None:
        return browser.session
    headers = request.headers
    if shown := headers.get("authorization"):
        return shown
    if signed := headers.get("signature-input"):
        return signed.partition('keyid="')[2].partition('"')[0]
    return ""


__all__ = ["Buckets", "Headers", "Limiter"]
