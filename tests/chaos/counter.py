"""What terraform really did, told by the resources themselves: each says when it begins and when it is made."""

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Self

#: What a resource runs, with bash alone: a line to the counter, and its answer.
SAY = 'say() {{ exec 3<>/dev/tcp/127.0.0.1/{port} && echo "$*" >&3 && read -r _ <&3; }}'


@dataclass
class Made:
    """One creation that came to its end."""

    run: str
    at: float


@dataclass
class Tally:
    """Of one workspace, by the resource's key."""

    begun: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    made: dict[str, list[Made]] = field(default_factory=lambda: defaultdict(list))


class Counting:
    """Takes lines `begin|end WORKSPACE RUN KEY` and `exec WORKSPACE RUN apply`."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.applies: Counter[str] = Counter()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            word, workspace, run, key = (await reader.readline()).decode().split()
            if word == "exec":
                self.applies[run] += 1
            elif word == "begin":
                self.tallies[workspace].begun[key].append(run)
            else:
                self.tallies[workspace].made[key].append(Made(run, time.monotonic()))
            writer.write(b"ok\n")
            await writer.drain()
        except (ValueError, OSError):  # killed in the middle of its word
            pass
        finally:
            writer.close()
