"""Whether this listener takes no more work."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any


class Draining:
    """Of one daemon. `on_begin` is called once, when the drain begins."""

    def __init__(self, on_begin: Callable[[], None]) -> None:
        self._event, self._on_begin = asyncio.Event(), on_begin

    @property
    def is_on(self) -> bool:
        return self._event.is_set()

    def begin(self) -> None:
        """Takes no more work from now on; however often it is called."""
        if not self._event.is_set():
            self._event.set()
            self._on_begin()

    async def wait(self) -> None:
        await self._event.wait()

    async def run_until(self, work: Any) -> Any:
        """The result of `work`, or None where a drain came first."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._event.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await task
        return None
