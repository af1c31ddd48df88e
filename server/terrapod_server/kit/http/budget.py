"""Bytes of memory that requests share: whoever needs more than is left waits its turn, and is refused after a while.

No caller has more than half of all, so that none stops the others.
"""

import asyncio
import contextlib
import ctypes
from collections import Counter
from dataclasses import dataclass

from terrapod_shared.errors import Unavailable

WAIT_S = 20.0
_AGAIN_S = 5
#: A request that holds less is not counted.
FREE = 64 << 10


#: When so much was held and all is given back, the C library gives its free pages back to the host.
_TRIM_AT = 16 << 20
#: By then the request that was the last has let go of its objects; on a busy host, or with a slow client, at the second.
_TRIM_AFTER_S = (1.0, 10.0)


def _trim() -> None:
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(eq=False)
class _Waiter:
    who: str
    size: int
    granted: asyncio.Future[None]

    @property
    def is_granted(self) -> bool:
        return self.granted.done() and not self.granted.cancelled()


class Budget:
    """Of one process. `total` in bytes."""

    def __init__(self, total: int, wait_s: float = WAIT_S) -> None:
        self._total, self._wait_s = total, wait_s
        self._used = self._most = 0
        self._by: Counter[str] = Counter()
        self._waiting: list[_Waiter] = []

    @property
    def used(self) -> int:
        return self._used

    async def take(self, who: str, size: int) -> int:
        """How much was taken, for `give_back`: what is more than anybody may have counts as that much.

        Raises Unavailable where there is not so much for a while.
        """
        size = min(size, self._total // 2)
        if not any(waiter.who == who for waiter in self._waiting) and self._fits(who, size):
            self._add(who, size)
            return size
        waiter = _Waiter(who, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait_s):
                await waiter.granted
        except TimeoutError:
            if not waiter.is_granted:
                error = Unavailable("the server is busy with other large requests; try again")
                error.headers["Retry-After"] = str(_AGAIN_S)
                raise error from None
        except asyncio.CancelledError:
            if waiter.is_granted:
                self._add(who, -size)
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            self._grant()
        return size

    def give_back(self, who: str, size: int) -> None:
        self._add(who, -size)
        self._grant()
        if not self._used and self._most > _TRIM_AT:
            self._most = 0
            loop = asyncio.get_running_loop()
            for after_s in _TRIM_AFTER_S:
                loop.call_later(after_s, loop.run_in_executor, None, _trim)

    def _grant(self) -> None:
        passed: set[str] = set()
        for waiter in list(self._waiting):
            if waiter.who not in passed and self._fits(waiter.who, waiter.size):
                self._waiting.remove(waiter)
                if not waiter.granted.done():
                    self._add(waiter.who, waiter.size)
                    waiter.granted.set_result(None)
            else:
                passed.add(waiter.who)  # of one caller the first comes first; another's may be smaller

    def _fits(self, who: str, size: int) -> bool:
        return self._used + size <= self._total and self._by[who] + size <= self._total // 2

    def _add(self, who: str, size: int) -> None:
        self._used += size
        self._most = max(self._most, self._used)
        self._by[who] += size
        if not self._by[who]:
            del self._by[who]


class Held:
    """What one request holds."""

    def __init__(self, budget: Budget, who: str) -> None:
        self._budget, self._who = budget, who
        self._needed = self._taken = 0

    async def add(self, size: int) -> None:
        """Raises Unavailable."""
        self._needed += size
        if self._needed > FREE:
            more, self._needed = self._needed, 0
            self._taken += await self._budget.take(self._who, more)

    def let_go(self) -> None:
        if self._taken:
            self._budget.give_back(self._who, self._taken)
            self._taken = 0
