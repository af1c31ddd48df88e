"""What systemd is told: sent to its socket, once, and nothing without one."""

import asyncio
import os
import secrets
import time
from pathlib import Path

import pytest

from kit.notified import Notified
from kit.serving import until
from terrapod_shared.notify import Manager


@pytest.mark.parametrize("is_abstract", [False, True])
async def test_it_is_told_once(tmp_path: Path, is_abstract: bool) -> None:
    with Notified(f"@terrapod-{secrets.token_hex(8)}" if is_abstract else tmp_path / "notify") as systemd:
        manager = Manager.of({"NOTIFY_SOCKET": systemd.address})
        for _ in range(2):
            manager.ready()
            manager.status("two\nlines=1")
        manager.stopping()
        assert systemd.said == ["READY=1", "STATUS=two lines=1", "STOPPING=1"]


def test_no_child_speaks_for_us() -> None:
    environ = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "PATH": "/bin",
    }
    assert Manager.of(environ).watchdog_s == 3.0
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(("usec", "pid"), [("3000000", "1"), ("soon", ""), ("", "")])
def test_a_watchdog_of_somebody_else_is_none_of_ours(usec: str, pid: str) -> None:
    assert Manager.of({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).watchdog_s == 0


async def test_a_manager_that_is_away_stops_nobody(tmp_path: Path) -> None:
    Manager(str(tmp_path / "none")).ready()
    Manager().ready()


async def test_the_watchdog_is_fed_only_while_the_loop_turns(tmp_path: Path) -> None:
    with Notified(tmp_path / "notify") as systemd:
        alive = asyncio.create_task(Manager(systemd.address, 0.2).keep_alive())

        async def is_fed() -> bool:
            return len(systemd.said) >= 3

        await until(is_fed)
        before = len(systemd.said)
        time.sleep(0.5)  # noqa: ASYNC251  the loop stands still: that is what the watchdog is for
        assert len(systemd.said) == before
        alive.cancel()
