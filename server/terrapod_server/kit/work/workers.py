"""Work on large documents in processes of their own: started when there is work, ended when there was none for a while.

A process that dies (out of memory, out of time, by a fault of a parser) is an
error of the document that it had, and of no other.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator

from terrapod_server.kit.work.worker import FAILED, FRAME_MOST, LENGTH, NO_MEMORY, OK

log = logging.getLogger(__name__)
IDLE_S = 5.0
#: Processor time of one document, and the time after which a process that uses none is ended.
CPU_S, HUNG_S = 60, 900.0
_START = "import sys; sys.path[:] = sys.argv[3:]; from terrapod_server.kit.work import worker; worker.main(*map(int, sys.argv[1:3]))"
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ")


class Died(Exception):
    """Why a document could not be read: words that continue "reading it"."""


class Workers:
    """At most `most` processes at once, of `memory` bytes each; further work waits in line."""

    def __init__(self, most: int, memory: int, cpu_s: int = CPU_S, idle_s: float = IDLE_S) -> None:
        self._free = asyncio.Semaphore(most)
        self._arguments = (str(memory), str(cpu_s))
        self._cpu_s, self._idle_s = cpu_s, idle_s
        self._idle: list[Process] = []
        self._all: set[Process] = set()
        self._is_closed = False

    async def run(self, work: str, *documents: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """What the function `module:name` makes of documents, which are read in order. Raises Died, and what they raise."""
        async with self._free:
            process = self._idle.pop() if self._idle else await self._start()
            is_well = False
            feeding = asyncio.create_task(_feed(process, work, documents))
            try:
                async with asyncio.timeout(HUNG_S):
                    state = b"".join([chunk async for chunk in _answer(process)])
                    await feeding
                    if state == OK:
                        async for chunk in _answer(process):
                            yield chunk
                    else:
                        text = b"".join([chunk async for chunk in _answer(process)]).decode()
                        raise Died(_failure(state, text))
                is_well = True
            except (asyncio.IncompleteReadError, ConnectionError):
                code = await process.wait()
                if (error := await _ended(feeding)) is not None:
                    raise error from None
                raise Died(self._death(code)) from None
            except TimeoutError:
                raise Died("took too long") from None
            finally:
                await _ended(feeding)
                self._give_back(process, is_well=is_well)

    async def _start(self) -> Process:
        arguments = ("-I", "-S", "-c", _START, *self._arguments, *(path for path in sys.path if path))
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, stdin=PIPE, stdout=PIPE, env=environment, limit=FRAME_MOST
            )
        except OSError as error:
            raise Died(f"needs a process, which the host did not give ({error.strerror})") from None
        self._all.add(process)
        return process

    def _give_back(self, process: Process, *, is_well: bool) -> None:
        if is_well and not self._is_closed and process.returncode is None:
            self._idle.append(process)
            asyncio.get_running_loop().call_later(self._idle_s, self._end_idle, process)
            return
        self._end(process)

    def _end_idle(self, process: Process) -> None:
        """A process that had other work meanwhile has a later call of its own."""
        if process in self._idle:
            self._idle.remove(process)
            self._end(process)

    def _end(self, process: Process) -> None:
        self._all.discard(process)
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    def _death(self, code: int) -> str:
        if code == -signal.SIGXCPU:
            return f"took more than {self._cpu_s} s of processor time"
        log.warning("a worker died (%s): the document that it had is not read", code)
        return f"ended its process ({_signal_name(code)})"

    @property
    def pids(self) -> list[int]:
        """Of the processes that there are."""
        return [process.pid for process in self._all]

    async def close(self) -> None:
        self._is_closed = True
        gone = list(self._all)
        for process in gone:
            self._end(process)
        await asyncio.gather(*(process.wait() for process in gone))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _feed(process: Process, work: str, documents: tuple[AsyncIterator[bytes], ...]) -> None:
    """Writes the order and the documents. What a document raises ends the process, which waits for the rest of it."""
    pipe = process.stdin
    assert pipe is not None  # noqa: S101  it was asked for
    try:
        for document in (_once(f"{work} {len(documents)}".encode()), *documents):
            async with _closed(document):
                async for chunk in document:
                    for at in range(0, len(chunk), FRAME_MOST):
                        part = chunk[at : at + FRAME_MOST]
                        pipe.writelines((LENGTH.pack(len(part)), part))
                        await pipe.drain()
            pipe.write(LENGTH.pack(0))
        await pipe.drain()
    except ConnectionError:
        pass  # it has ended: whoever reads its answer sees why
    except Exception:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise


@contextlib.asynccontextmanager
async def _closed(document: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Ends a document that is not read to its end here and now: it may hold a file open."""
    try:
        yield
    finally:
        if isinstance(document, AsyncGenerator):
            await document.aclose()


async def _ended(feeding: asyncio.Task[None]) -> BaseException | None:
    """Ends what feeds; what it failed with."""
    feeding.cancel()
    await asyncio.wait([feeding])
    return None if feeding.cancelled() else feeding.exception()


async def _answer(process: Process) -> AsyncIterator[bytes]:
    """The frames of one part of the answer. Raises IncompleteReadError where the process has ended."""
    pipe = process.stdout
    assert pipe is not None  # noqa: S101  it was asked for
    while size := LENGTH.unpack(await pipe.readexactly(LENGTH.size))[0]:
        yield await pipe.readexactly(size)


def _failure(state: bytes, text: str) -> str:
    if state == NO_MEMORY:
        return "needs more memory than is given for it"
    return f"failed ({text})" if state == FAILED else "failed"


def _signal_name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
