"""Keeps runs from the cloud's metadata address, where a host's own credentials are given out.

A root listener's runs are users of their own: a routing rule prohibits the
addresses to these users, and to nobody else. A listener that is not root cannot
do that; there the service's unit does it (`IPAddressDeny=`), and this looks
whether it does.
"""

import os
import shutil
import subprocess
from pathlib import Path

from terrapod_listener.sandbox.isolation import USERS_MOST, Isolation, Unavailable

#: AWS, Azure, Google, Oracle and others; containers and pods on AWS; Alibaba.
ADDRESSES = ("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "fd00:ec2::254", "fd00:ec2::23")
_PRIORITY = "90"
_ASK_S = 20.0


def block(isolation: Isolation) -> None:
    """For all runs from now on. To be called in a thread. Raises Unavailable."""
    if not isolation.has_users:
        _look_at_the_unit()
        return
    first = isolation.settings.first_uid
    users = f"{first}-{first + USERS_MOST - 1}"
    for address in ADDRESSES:
        family = "-6" if ":" in address else "-4"
        rule = [family, "rule", "add", "to", address, "uidrange", users, "priority", _PRIORITY, "prohibit"]
        done = _asked(["ip", *rule])
        if done.returncode and "File exists" not in done.stderr:
            if family == "-6" and not Path("/proc/net/if_inet6").exists():
                continue
            raise Unavailable(f"block_metadata: {done.stderr.strip() or 'ip rule failed'}")


def _look_at_the_unit() -> None:
    last = Path("/proc/self/cgroup").read_text().strip().rpartition("/")[2]
    how = "a listener that is not root needs IPAddressDeny= in its unit: terrapod-listener install-service --block-metadata"
    if not last.endswith(".service"):
        raise Unavailable(f"block_metadata: {how}")
    done = _asked(["systemctl", "show", "--property=IPAddressDeny", "--value", last])
    denied = done.stdout.split()
    if not any(each in denied for each in ("169.254.169.254", "169.254.169.254/32", "169.254.0.0/16")):
        raise Unavailable(f"block_metadata: {last} does not deny it; {how}")


def _asked(argv: list[str]) -> "subprocess.CompletedProcess[str]":
    program = shutil.which(argv[0], path=f"{os.defpath}:/usr/sbin:/sbin")
    if program is None:
        raise Unavailable(f"block_metadata: {argv[0]} is not installed")
    return subprocess.run(  # noqa: S603  our own words
        [program, *argv[1:]], capture_output=True, text=True, timeout=_ASK_S, check=False
    )
