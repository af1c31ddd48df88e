"""A proxy that ends HTTP in front of a server, and does what a test tells it to do with requests and answers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

import httpx

from kit.answering import CUT, OWN, Answer, Asked, foreign

_OF_THE_CONNECTION = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive", "date"})
#: Answers of what stands in front of a server, and one of its own that was cut off and closed as if it were whole.
FOREIGN: tuple[Answer, ...] = (
    foreign(404), foreign(403, {"message": "forbidden"}), (401, {}, b"<html>who are you?</html>"),
    foreign(302, Location="https://portal.example/"), (200, {"Content-Type": "text/html"}, b"<html>sign in here</html>"),
    foreign(204), foreign(409), foreign(426), foreign(502), foreign(503), foreign(504), CUT,
    foreign(404, {"errors": [{"status": "404", "title": "Not Found"}]}), (200, OWN, b'{"server_time": 1'),
)  # fmt: skip


@dataclass
class Ingress:
    """`before` may answer a request itself or change its body, `after` may change the server's answer to it; None leaves it as it is."""

    url: str = ""
    before: Callable[[Asked], Answer | None] = lambda _: None
    after: Callable[[Asked, Answer], Answer | None] = lambda *_: None
    asked: list[Asked] = field(default_factory=list)

    async def serve(
        self, server: httpx.AsyncClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, httpx.TransportError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:]) if k}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                url = urlsplit(target)
                asked = Asked(method, url.path, dict(parse_qsl(url.query)), headers, body)
                self.asked.append(asked)
                found = self.before(asked)
                if found is None:
                    kept = {name: value for name, value in headers.items() if name not in _OF_THE_CONNECTION}
                    answer = await server.request(method, target, headers=kept, content=asked.body)
                    more = {k: v for k, v in answer.headers.items() if k not in _OF_THE_CONNECTION}
                    found = (answer.status_code, more, answer.content)
                    found = self.after(asked, found) or found
                status, more, content = found
                if not status:
                    break
                length = [f"Content-Length: {len(content)}"] if status != 204 else []
                lines = [f"HTTP/1.1 {status} X", *length, *(f"{name}: {value}" for name, value in more.items())]
                writer.write("\r\n".join([*lines, "", ""]).encode() + content * (status != 204))
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def ingress(server_url: str) -> AsyncIterator[Ingress]:
    made, open_ = Ingress(), set[asyncio.Task[None]]()
    async with httpx.AsyncClient(base_url=server_url, timeout=90) as client:

        async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            open_.add(task)
            with contextlib.suppress(asyncio.CancelledError):
                await made.serve(client, reader, writer)

        server = await asyncio.start_server(met, "127.0.0.1", 0, limit=1 << 20)
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield made
        finally:
            server.close()
            for task in open_:
                task.cancel()
            await asyncio.gather(*open_, return_exceptions=True)
