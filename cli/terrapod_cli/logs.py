"""Reading a phase's log: STX, bytes, ETX at offsets, as `docs/listener-protocol.md` and go-tfe know it.

The end is an ETX that is the last byte of a read, with nothing behind it, of
a phase that is over. Without an STX the log ends when the phase is over and a
read is empty.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TextIO

from terrapod_cli import structured
from terrapod_cli.terminal import Cleaner
from terrapod_shared import errors
from terrapod_shared.client import Client, Resource

STX, ETX = b"\x02", b"\x03"
OVER = frozenset({"finished", "errored", "canceled", "unreachable"})
_READ = 1 << 20
#: How many empty reads say that the end of a log was lost.
_LOST_ENDS = 8
_PAUSE_S, _PAUSE_MOST_S = 0.1, 2.0
#: A line that is longer is shown as it is.
_LINE_MOST = 1 << 20


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
        self._phase, self.to, self._as_json, self._raw = phase, to, as_json, raw
        self._cleaner = Cleaner(colour=colour and not as_json)
        self._line = ""
        self._begun = False  #: the line's beginning was shown already

    def feed(self, chunk: bytes) -> None:
        self._write(self._cleaner.feed(chunk))

    def end(self) -> None:
        self._write(self._cleaner.end())
        if self._line:
            self._show(self._line, "\n")
            self._line = ""
        self.to.flush()

    def _write(self, text: str) -> None:
        lines = (self._line + text).split("\n")
        self._line = lines.pop()
        for line in lines:
            self._show(line, "\n")
            self._begun = False
        is_kept = self._as_json or (not self._raw and not self._begun and structured.is_candidate(self._line))
        if self._line and (not is_kept or len(self._line) > _LINE_MOST):
            self._begun = True
            self._show(self._line, "")
            self._line = ""
        self.to.flush()

    def _show(self, line: str, end: str) -> None:
        text = line if self._raw or self._begun else structured.readable(line)
        if text is None:
            return
        if self._as_json:
            self.to.write(json.dumps({"phase": self._phase, "line": text}) + "\n")
        else:
            self.to.write(text + end)
