"""A phase's log: written to disk as fast as it comes, sent in chunks as fast as the server takes it.

terraform never waits for the network: its output goes to a spool file, and a
task of its own sends what is new, within 100 ms of its being written.
"""

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from terrapod_listener.link.client import PASSING, Server, pause_s
from terrapod_listener.supervise.masking import Masker
from terrapod_shared import errors, wire

log = logging.getLogger(__name__)
CHUNK = 1 << 20
GATHER_S = 0.08


class LogSpool:
    """The log's file and its sender. `base` is what an earlier listener has sent of the phase's log.

    `resume`: an earlier life of this listener began the file; the server is asked where it is.
    """

    def __init__(self, path: Path, server: Server, work: wire.Work, *, resume: bool = False) -> None:
        self._file = path.open("a+b" if resume else "w+b", buffering=0)
        self._server, self._work = server, work
        self._base = work.log_offset
        self._most = max(0, work.limits.log_bytes - self._base)
        self._written = os.fstat(self._file.fileno()).st_size
        self._sent = 0
        self._ask = resume
        self._is_full = False
        self._is_broken = False
        self._masker = Masker(())
        self._fresh = asyncio.Event()
        self._over = False
        self._task = asyncio.create_task(self._send())

    @property
    def end(self) -> int:
        """The size of the phase's log so far, an earlier listener's part included."""
        return self._base + self._written

    def mask(self, masker: Masker) -> None:
        """From here on nothing is written down but what this one lets through."""
        self._append(self._masker.flush())
        self._masker = masker

    def settle(self) -> None:
        """Writes down what is held back: somebody else goes on with the file."""
        self._append(self._masker.flush())

    def masked(self, text: str) -> str:
        """A text that leaves by another way than the log."""
        return self._masker.all(text)

    def write(self, chunk: bytes) -> None:
        """Keeps a chunk without its secrets; past the limit only a line that says so."""
        self._append(self._masker.feed(chunk))

    def _append(self, chunk: bytes) -> None:
        if self._is_full or not chunk:
            return
        if self._written + len(chunk) > self._most:
            self._is_full = True
            room = max(0, self._most - self._written)
            chunk = chunk[:room] + b"\n[the log is at its limit; the run goes on]\n"
        try:
            self._written += os.pwrite(self._file.fileno(), chunk, self._written)
        except OSError as error:  # a full disk costs the log, never the run or its state
            if not self._is_broken:
                self._is_broken = True
                log.error("the log of %s is not whole: %s", self._work.run_id, error)  # noqa: TRY400
            return
        self._fresh.set()

    def look(self) -> None:
        """Takes note of what a keeper has appended, which keeps to the limit itself."""
        size = os.fstat(self._file.fileno()).st_size
        if size > self._written:
            self._written = size
            self._is_full = size > self._most
            self._fresh.set()

    def line(self, text: str) -> None:
        self.write(f"{text}\n".encode())

    async def finish(self) -> None:
        """Returns once all is sent. Raises what the server refuses."""
        self._append(self._masker.flush())
        self._over = True
        self._fresh.set()
        await self._task

    async def send_again(self, start: object) -> bool:
        """Sends once more what is behind that offset, where it is ours: a server may come back with less than it had.

        Whether there was anything to be sent. Raises what the server refuses.
        """
        if not isinstance(start, int) or not self._base <= start < self.end:
            return False
        self._sent = start - self._base
        self._task = asyncio.create_task(self._send())
        await self._task
        return True

    async def abandon(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, errors.TerrapodError):
            await self._task
        self._file.close()

    def close(self) -> None:
        self._file.close()

    async def _send(self) -> None:
        attempt = 0
        while True:
            if self._sent == self._written and not self._ask:
                if self._over:
                    return
                await self._fresh.wait()
                self._fresh.clear()
                if not self._over:
                    await asyncio.sleep(GATHER_S)  # what comes together goes together
                continue
            try:
                await self._chunk()
                attempt = 0
            except PASSING as error:
                log.warning("the log of %s waits: %s", self._work.run_id, error.detail)
                await asyncio.sleep(pause_s(attempt))
                attempt += 1

    async def _chunk(self) -> None:
        if self._ask:  # an empty chunk at the end changes nothing, and is told where to go on
            self._sent = self._written
        chunk = await asyncio.to_thread(os.pread, self._file.fileno(), CHUNK, self._sent)
        chunk = chunk[: self._written - self._sent]
        work, offset = self._work, self._base + self._sent
        path = f"{self._server.base}/runs/{work.run_id}/{work.phase}/log?offset={offset}"
        try:
            answer = await self._server.call("PUT", path, body=chunk, lease=work.lease.number)
        except errors.Conflict as error:
            expected = error.meta.get("expected")
            if isinstance(error, errors.LeaseEnded) or not isinstance(expected, int) or expected < self._base:
                raise
            self._sent, self._ask = expected - self._base, False
            return
        following = self._server.read(answer, wire.LogAnswer).next_offset
        if self._ask and following > offset:  # a power cut took the end of the file, which the server has
            self._base += following - offset
        self._ask, self._sent = False, following - self._base
