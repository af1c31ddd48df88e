"""Changing and refused requests, a process of its own: `changes.py`, with a JSON object on standard input.

{"url", "token", "seconds", "paths": [[[method, path, body], …] for each client]} -> {"rate"}. Each client goes round its own requests.
"""

import asyncio
import json
import re
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


async def _client(order: dict[str, Any], rounds: list[list[str]], until: float, done: list[int]) -> None:
    url = urlsplit(order["url"])
    texts = [
        (
            f"{method} /api/v2/{path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {order['token']}\r\n"
            f"Content-Type: application/vnd.api+json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        for method, path, body in rounds
    ]
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    number = 0
    while time.perf_counter() < until or number % len(texts):  # what was locked is unlocked
        writer.write(texts[number % len(texts)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length:
            await reader.readexactly(int(length[1]))
        if int(head[9:12]) not in (200, 201, 204, 401):
            sys.exit(head.decode())
        number += 1
        if _CLOSE.search(head):
            writer.close()
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
    done.append(number)
    writer.close()


async def main(order: dict[str, Any]) -> None:
    done: list[int] = []
    begun = time.perf_counter()
    until = begun + order["seconds"]
    await asyncio.gather(*(_client(order, rounds, until, done) for rounds in order["paths"]))
    print(json.dumps({"rate": sum(done) / (time.perf_counter() - begun)}))


if __name__ == "__main__":
    uvloop.run(main(json.load(sys.stdin)))
