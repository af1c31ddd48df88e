"""A service manager that listens to what services say of themselves, as systemd does."""

import socket
from pathlib import Path
from typing import Self

from kit.serving import until


class Notified:
    """Its socket is `address`: below a folder, or an abstract name (`@`)."""

    def __init__(self, address: Path | str) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self._said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def said(self) -> list[str]:
        while True:
            try:
                self._said += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self._said

    async def hears(self, text: str) -> None:
        """Waits for a line that holds the text."""

        async def is_there() -> bool:
            return any(text in line for line in self.said)

        await until(is_there, 40)
