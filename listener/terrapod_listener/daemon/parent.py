"""The process that started this listener, such as `terrapod-server up`: whether it is still there.

By a descriptor of the process and not by `PR_SET_PDEATHSIG`, which tells of the
end of the thread that forked, and says nothing of a parent that ended before it
was set; nor by a pipe, which any other child of the parent may hold open.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable


class Parent:
    """Of this process. `pid` is what it said of itself."""

    def __init__(self, pid: int) -> None:
        self._pidfd = -1
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(pid)
        if os.getppid() != pid:  # it ended first, and the number may be another process's by now
            self.close()

    def watch(self, on_end: Callable[[], None]) -> None:
        """Calls `on_end` once it has ended; at the loop's next turn where it has already."""
        loop = asyncio.get_running_loop()
        if self._pidfd < 0:
            loop.call_soon(on_end)
            return

        def ended() -> None:
            loop.remove_reader(self._pidfd)
            on_end()

        loop.add_reader(self._pidfd, ended)

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1
