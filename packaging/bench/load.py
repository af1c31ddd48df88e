"""The load's client, a process of its own: `load.py`, with a JSON object on standard input.

{"url", "token", "clients", "seconds"} -> {"rate", "p50_ms", "p95_ms"}. Keep-alive connections, one request at a time each.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    url: str
    token: str
    clients: int
    seconds: float


async def _client(order: Order, until: float, took: list[float]) -> None:
    url = urlsplit(order.url)
    target = url.path + (f"?{url.query}" if url.query else "")
    request = (
        f"GET {target} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {order.token}\r\n"
        "Accept: application/vnd.api+json\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    while (begun := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if head.startswith(b"HTTP/1.1 200") and length:
            await reader.readexactly(int(length[1]))
        elif not head.startswith(b"HTTP/1.1 204"):
            sys.exit(f"{order.url}: {head.decode()}")
        took.append(time.perf_counter() - begun)
        if _CLOSE.search(head):  # a server may end a connection after so many requests
            writer.close()
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.close()


async def main(order: Order) -> None:
    warm: list[float] = []
    await _client(order, time.perf_counter() + 0.1, warm)
    took: list[float] = []
    begun = time.perf_counter()
    await asyncio.gather(*(_client(order, begun + order.seconds, took) for _ in range(order.clients)))
    spent = time.perf_counter() - begun
    took.sort()
    found = {
        "rate": len(took) / spent,
        "p50_ms": took[len(took) // 2] * 1000,
        "p95_ms": took[len(took) * 95 // 100] * 1000,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    uvloop.run(main(Order(**json.load(sys.stdin))))
