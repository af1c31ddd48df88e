"""Work that tests give to worker processes."""

import os
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MEMORY = 512 << 20


def echoed(*documents: Any) -> Iterable[bytes]:
    return [b"<" + document.read() + b">" for document in documents]


def modules(_: Any) -> Iterable[bytes]:
    return [" ".join(sys.modules).encode()]


def killed(_: Any) -> Iterable[bytes]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def spinning(_: Any) -> Iterable[bytes]:
    while True:
        pass


def hungry(_: Any) -> Iterable[bytes]:
    return [bytes(MEMORY)]


def raising(_: Any) -> Iterable[bytes]:
    raise KeyError("hunter2")


def exiting(_: Any) -> Iterable[bytes]:
    os._exit(3)


def limits(_: Any) -> Iterable[bytes]:
    return [repr((resource.getrlimit(resource.RLIMIT_AS), Path("/proc/self/oom_score_adj").read_text())).encode()]
