"""What systemd is told of a service: ready, stopping, alive (sd_notify(3), without its library).

Nothing is sent where nobody asks: without NOTIFY_SOCKET all of it does nothing.
"""

import asyncio
import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Manager:
    """The service manager of this process. `address` is of a datagram socket, a path or `@` and an abstract name;
    `watchdog_s` is after how many seconds of silence the manager kills this process, 0 for never."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._said: dict[str, str] = {}

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> "Manager":
        """As the environment names it; the variables are taken out, so that no child speaks for us."""
        address = environ.pop("NOTIFY_SOCKET", "")
        pid, microseconds = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        is_meant = microseconds.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address if address[:1] in {"/", "@"} else "", int(microseconds) / 1e6 if is_meant else 0.0)

    def ready(self) -> None:
        """The service does its work from now on."""
        self._once(READY="1")

    def stopping(self) -> None:
        """It ends as soon as its work is done."""
        self._once(STOPPING="1")

    def status(self, text: str) -> None:
        """A line for people, in `systemctl status`."""
        self._once(STATUS=" ".join(text.split()))

    async def keep_alive(self) -> None:
        """Feeds the watchdog until it is cancelled. A loop that does not turn feeds nothing: that is the point."""
        while self._address and self.watchdog_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)

    def _once(self, **facts: str) -> None:
        for name, value in facts.items():
            if self._said.get(name) != value and self._send(f"{name}={value}"):
                self._said[name] = value

    def _send(self, line: str) -> bool:
        """Whether it was sent. A manager that is away is no reason to stop."""
        if not self._address:
            return False
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto(line.encode(), self._address)
        except OSError as error:
            log.warning("systemd could not be told %s: %s", line, error)
            return False
        return True
