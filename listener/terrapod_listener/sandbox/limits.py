"""Memory, processor and processes of a run, limited by a control group of its own where systemd gives one."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from terrapod_listener.sandbox import launching
from terrapod_shared import quantities, wire

_PROBE_S = 20.0


def scope(limits: wire.Limits, processes: int) -> list[str]:
    """What to put before a program. A limit that cannot be read is left out; a workspace cannot be given one."""
    properties = [f"TasksMax={processes}"]
    try:
        if limits.memory:
            properties += [f"MemoryMax={quantities.size(limits.memory)}", "MemorySwapMax=0"]
        if limits.cpu:
            properties.append(f"CPUQuota={max(1, round(quantities.cores(limits.cpu) * 100))}%")
    except ValueError:  # set before the server looked at it
        pass
    words = [word for each in properties for word in ("--property", each)]
    user = [] if os.geteuid() == 0 else ["--user"]
    return ["systemd-run", *user, "--scope", "--quiet", "--collect", "--slice-inherit", *words, "--"]


def is_offered() -> bool:
    """Whether the host gives control groups, by making one. To be called in a thread."""
    if shutil.which("systemd-run") is None or not Path("/run/systemd/system").is_dir():
        return False
    try:
        argv: Sequence[str] = [*scope(wire.Limits(cpu="1", memory="64Mi"), 64), "/bin/true"]
        done = subprocess.run(argv, env=launching.helpers_env(), capture_output=True, timeout=_PROBE_S, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
