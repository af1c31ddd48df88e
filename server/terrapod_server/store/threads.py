"""Threads for file work, apart from the loop's own: what keeps those busy does not stop the store."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Threads:
    """A few threads that one store shares; they are made when they are first needed."""

    def __init__(self, name: str, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """Does the work in a thread. A cancelled caller goes on only when the thread is through.

        Nothing can stop a thread: a file that is closed while one still writes
        to it would hand its descriptor, and the bytes, to the next file.
        """
        future = self.start(work, *arguments, **named)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # seen: the cancellation is what the caller hears of
            raise

    def start(self, work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> asyncio.Future[_T]:
        """The same, to be awaited later or not at all."""
        return asyncio.get_running_loop().run_in_executor(self._pool, lambda: work(*arguments, **named))

    def later(self, work: Callable[[], object]) -> None:
        """For work whose end nobody waits for; done here and now once the pool is closed."""
        try:
            self._pool.submit(work)
        except RuntimeError:
            work()

    def close(self) -> None:
        self._pool.shutdown(wait=False)
