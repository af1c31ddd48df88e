"""An HTTP server on loopback that answers what it was told to, in order, and keeps what it was asked."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = tuple[int, dict[str, str], bytes]
#: The connection ends without an answer.
CUT: Answer = (0, {}, b"")


#: The server says in every answer that it is its own.
OWN = {"TFP-AppName": "Terrapod"}


def answer(status: int, document: Any = None, **headers: str) -> Answer:
    """The server's."""
    status, more, body = foreign(status, document, **headers)
    return status, {**OWN, **more}, body


def foreign(status: int, document: Any = None, **headers: str) -> Answer:
    """Another's: of a proxy, or of a server that is no Terrapod."""
    body = b"" if document is None else json.dumps(document).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Scripted:
    url: str
    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    open: list[asyncio.Task[None]] = field(default_factory=list)
    #: Answers where the list is empty.
    otherwise: Callable[[Asked], Answer] = lambda _: answer(404)

    async def met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.open.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:]) if k}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                url = urlsplit(target)
                self.asked.append(Asked(method, url.path, dict(parse_qsl(url.query)), headers, body))
                status, more, content = self.answers.pop(0) if self.answers else self.otherwise(self.asked[-1])
                if not status:
                    break
                lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}"]
                lines += [f"{name}: {value}" for name, value in more.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def scripted(*answers: Answer) -> AsyncIterator[Scripted]:
    made = Scripted("", list(answers))
    server = await asyncio.start_server(made.met, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in made.open:
            task.cancel()
