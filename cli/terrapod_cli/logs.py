"""Reading a phase's log: STX, bytes, ETX at offsets, as `docs/listener-protocol.md` and go-tfe know it.

The end is an ETX that is the last byte of a read, with nothing behind it, of
a phase that is over. Without an STX the log ends when the phase is over and a
read is empty.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TextIO

from terrapod_shared import errors
from terrapod_shared.client import Client, Resource
from terrapod_shared.logtext import LogText

STX, ETX = b"\x02", b"\x03"
OVER = frozenset({"finished", "errored", "canceled", "unreachable"})
_READ = 1 << 20
#: How many empty reads say that the end of a log was lost.
_LOST_ENDS = 8
_PAUSE_S, _PAUSE_MOST_S = 0.1, 2.0


async def pieces(client: Client, phase: Callable[[], Awaitable[Resource]], *, follow: bool) -> AsyncIterator[bytes]:
    """The log's raw bytes without its marks; `phase` gives the plan or apply anew, and so a fresh URL.

    Following ends with the phase's log, else with what there is now.
    """
    facts = await phase()
    offset, idle = 0, 0
    framed, held = False, b""
    while True:
        was_over = facts["attributes"]["status"] in OVER
        try:
            chunk = await client.read_log(facts["attributes"]["log-read-url"], offset, _READ)
        except errors.NotFound:  # the URL is too old
            facts = await phase()
            chunk = await client.read_log(facts["attributes"]["log-read-url"], offset, _READ)
        if chunk:
            idle = 0
            framed = framed or (offset == 0 and chunk.startswith(STX))
            text, held = held + (chunk[1:] if framed and offset == 0 else chunk), b""
            offset += len(chunk)
            if framed and text.endswith(ETX):
                text, held = text[:-1], ETX
            yield text
            continue
        if not follow or (was_over and (held or not framed or idle >= _LOST_ENDS)):
            return
        if held or not framed or idle % 4 == 0:
            facts = await phase()
        if held and facts["attributes"]["status"] in OVER:
            continue
        idle += 1
        await asyncio.sleep(min(_PAUSE_MOST_S, _PAUSE_S * 2 ** (idle / 5)))


class Printer:
    """Writes a log for people: safe for a terminal, structured lines made readable.

    As JSON each line is `{"phase": "plan", "line": "…"}`.
    """

    def __init__(self, phase: str, to: TextIO, *, colour: bool, as_json: bool = False, raw: bool = False) -> None:
        self._phase, self.to, self._as_json = phase, to, as_json
        self._text = LogText(colour=colour and not as_json, raw=raw, whole=as_json)

    def feed(self, chunk: bytes) -> None:
        self._write(self._text.pieces(chunk))

    def end(self) -> None:
        self._write(self._text.last())

    def _write(self, pieces: list[tuple[str, str]]) -> None:
        for text, end in pieces:
            if self._as_json:
                self.to.write(json.dumps({"phase": self._phase, "line": text}) + "\n")
            else:
                self.to.write(text + end)
        self.to.flush()
