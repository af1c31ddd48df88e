"""A process that reads documents which users have made, so that what they do to a parser is not done to the server.

Started by `kit.workers`; imports the standard library and the work itself. On
its standard input comes the name of the work, a function `module:name` of
readable objects that gives chunks of bytes, and then each document in turn;
the answer goes to its standard output. All of it in frames: four bytes of
length, big-endian, and as many bytes; an empty one ends a document.

It has limits of memory and processor time, is the first that a host without
memory ends, ends with the server (its input ends then), and leaves signals to
the server: whoever stops that one lets it finish what it has begun.
"""

import contextlib
import importlib
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

LENGTH = struct.Struct(">I")
FRAME_MOST = 256 << 10
OK, NO_MEMORY, FAILED = b"ok", b"memory", b"failed"
_OOM_SCORE = "800"


class Document:
    """One document on the way in, read once from its beginning."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe, self._left, self._is_over = pipe, 0, False

    def read(self, size: int = -1) -> bytes:
        """At most that many bytes, and at least one before the end; all of them with -1."""
        if size < 0:
            return b"".join(iter(lambda: self.read(FRAME_MOST), b""))
        if not self._left and not self._is_over:
            self._left = LENGTH.unpack(_exactly(self._pipe, LENGTH.size))[0]
            self._is_over = not self._left
        chunk = _exactly(self._pipe, min(size, self._left))
        self._left -= len(chunk)
        return chunk

    def skip(self) -> None:
        while self.read(FRAME_MOST):
            pass


def _exactly(pipe: BinaryIO, size: int) -> bytes:
    chunk = pipe.read(size)
    if len(chunk) < size:
        raise EOFError
    return chunk


def _limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _allow(cpu_s: int) -> None:
    """For one document so much processor time; SIGXCPU ends the process that needs more."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime) + 1 + cpu_s, hard))


def _done(work: str, documents: list[Document]) -> tuple[bytes, Iterable[bytes]]:
    module, _, name = work.partition(":")
    try:
        do: Callable[..., Iterable[bytes]] = getattr(importlib.import_module(module), name)
        return OK, list(do(*documents))
    except EOFError:
        raise
    except MemoryError:
        return NO_MEMORY, ()
    except Exception as error:  # noqa: BLE001  whatever it is, it is of this document; its text may quote what is secret
        return FAILED, (type(error).__name__.encode(),)


def _write(pipe: BinaryIO, chunk: bytes) -> None:
    for at in range(0, len(chunk), FRAME_MOST):
        part = chunk[at : at + FRAME_MOST]
        pipe.write(LENGTH.pack(len(part)))
        pipe.write(part)


def serve(source: BinaryIO, target: BinaryIO, cpu_s: int) -> None:
    """Works until the input ends."""
    while True:
        order = Document(source).read().decode()
        work, _, count = order.partition(" ")
        _allow(cpu_s)
        documents = [Document(source) for _ in range(int(count))]
        state, chunks = _done(work, documents)
        for document in documents:
            document.skip()
        _write(target, state)
        target.write(LENGTH.pack(0))
        for chunk in chunks:
            _write(target, chunk)
        target.write(LENGTH.pack(0))
        target.flush()
        del chunks, documents


def main(memory: int, cpu_s: int) -> None:
    """What the process does. `memory` is bytes, of its whole address space."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    _limit(memory)
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what prints, does not print into the answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        serve(sys.stdin.buffer, target, cpu_s)
    os._exit(0)
