"""The fleet's client, a process of its own: `polls.py`, with a JSON object on standard input.

{"port", "ca", "path", "server_key", "identities": [[listener id, key], ...]}: each keeps a connection over TLS and a
signed long poll of 30 s on it; `path` names the poll of `{id}`. What happens is a line of JSON on standard output:
{"polling": count} once all of them wait, {"run", "got"} for work, with the time of the decoded and verified answer.
It ends with its standard input.
"""

import asyncio
import base64
import gc
import hashlib
import json
import random
import re
import ssl
import sys
import time
from dataclasses import dataclass

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terrapod_shared import signing, wire

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SIGNATURE = re.compile(rb"\r\nterrapod-answer-signature: *(\S+)", re.IGNORECASE)
_EMPTY = hashlib.sha256(b"").digest()
#: So many connect at once.
_GREETING = 20


@dataclass(frozen=True)
class Order:
    port: int
    ca: str
    path: str
    server_key: str


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


class Client:
    """One listener that has nothing to do."""

    def __init__(self, order: Order, listener_id: str, key: str) -> None:
        self._order, self._id = order, listener_id
        self._key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(key))
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def connect(self, tls: ssl.SSLContext) -> None:
        self._reader, self._writer = await asyncio.open_connection("localhost", self._order.port, ssl=tls)

    async def _ask(self, method: str, path: str, body: bytes = b"", lease: int = 0) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer, whose signature was verified where it says something."""
        nonce = signing.new_nonce()
        digest = hashlib.sha256(body).digest() if body else _EMPTY
        url = f"https://localhost:{self._order.port}{path}"
        headers = signing.sign_request(
            self._key, self._id, method, url, body_sha256=digest, lease=lease, now=time.time(), nonce=nonce
        )
        lines = [f"{method} {path} HTTP/1.1", f"Host: localhost:{self._order.port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        status, content = int(head[9:12]), await self._reader.readexactly(int(length[1]) if length else 0)
        if status == 200:
            found = _SIGNATURE.search(head)
            signing.verify_answer(
                self._order.server_key, self._id, nonce, status, content, found[1].decode() if found else ""
            )
        return status, head, content

    async def poll(self, wait_s: float) -> None:
        path = self._order.path.replace("{id}", self._id)
        status, _, body = await self._ask("GET", f"{path}?wait={wait_s:.2f}")
        if status == 200:
            got, work = time.time(), json.loads(body)
            say(run=work["run_id"], got=got)
            report = f"/api/v2/listeners/{self._id}/runs/{work['run_id']}"
            for facts in ({"status": "planning"}, {"status": "errored", "error_message": "bench"}):
                told = json.dumps({"phase": work["phase"], **facts}).encode()
                status, _, body = await self._ask("PATCH", report, told, work["lease"]["number"])
                if status != 200:
                    sys.exit(f"{report}: {status} {body.decode()}")
        elif status != 204:
            sys.exit(f"{path}: {status} {body.decode()}")

    async def wait_for_ever(self) -> None:
        """The first poll is as long as the rest of one that began before: they do not all end together."""
        await self.poll(random.uniform(0.5, wire.POLL_S))  # noqa: S311
        while True:
            await self.poll(wire.POLL_S)


async def main() -> None:
    gc.disable()  # going through the connections of thousands would be counted as the server's time
    line = await asyncio.to_thread(sys.stdin.readline)
    facts = json.loads(line)
    identities = facts.pop("identities")
    order = Order(**facts)
    tls = ssl.create_default_context(cafile=order.ca)
    clients = [Client(order, *identity) for identity in identities]
    waiting = []
    for at in range(0, len(clients), _GREETING):
        group = clients[at : at + _GREETING]
        await asyncio.gather(*(client.connect(tls) for client in group))
        waiting += [asyncio.create_task(client.wait_for_ever()) for client in group]
    say(polling=len(clients))
    end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    done, _ = await asyncio.wait({end, *waiting}, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {end}:
        task.result()


if __name__ == "__main__":
    uvloop.run(main())
