"""The log protocol over a real socket: marks, pieces of any size, ends, and what people and programs see."""

import io
import itertools
import json

import pytest

from kit.answering import OWN, Answer, Asked, Scripted, answer, scripted
from terrapod_cli.logs import Printer, pieces
from terrapod_shared.client import Client, Resource


class Log:
    """A phase whose framed log grows by a part at each look at the phase."""

    def __init__(self, server: Scripted, parts: list[bytes], size: int, *, ends: str = "finished") -> None:
        self.framed, self._parts, self._size, self._ends = b"", list(parts), size, ends
        self._url = f"{server.url}/log"
        server.otherwise = self.read
        self.reads = itertools.count()

    async def phase(self) -> Resource:
        if self._parts:
            self.framed += self._parts.pop(0)
        status = "running" if self._parts else self._ends
        return {"id": "plan-1", "attributes": {"status": status, "log-read-url": self._url}}

    def read(self, asked: Asked) -> Answer:
        offset = int(asked.query["offset"])
        return 200, OWN, self.framed[offset : offset + min(self._size, int(asked.query["limit"]))]


async def collected(parts: list[bytes], size: int, *, follow: bool = True, ends: str = "finished") -> bytes:
    async with scripted() as server:
        log, client = Log(server, parts, size, ends=ends), Client(server.url, "t")
        found = b"".join([piece async for piece in pieces(client, log.phase, follow=follow)])
        assert all("authorization" not in asked.headers for asked in server.asked)
        await client.close()
        return found


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_a_framed_log_ends_at_its_mark(size: int) -> None:
    assert await collected([b"", b"\x02one\n", b"two\n", b"\x03"], size) == b"one\ntwo\n"


async def test_a_mark_in_the_middle_is_no_end() -> None:
    assert await collected([b"\x02one\x03", b"two\n", b"\x03"], 100) == b"one\x03two\n"


@pytest.mark.parametrize("ends", ["finished", "errored", "canceled", "unreachable"])
async def test_without_marks_it_ends_with_the_phase(ends: str) -> None:
    assert await collected([b"", b"one\n", b"two\n"], 2, ends=ends) == b"one\ntwo\n"


async def test_a_lost_end_is_not_waited_for_for_ever() -> None:
    assert await collected([b"\x02one\n", b"two"], 100) == b"one\ntwo"


async def test_without_following_it_is_what_is_there() -> None:
    assert await collected([b"\x02one\n", b"two\x03"], 100, follow=False) == b"one\n"


async def test_an_old_url_is_asked_for_anew() -> None:
    async with scripted() as server:
        log, client = Log(server, [b"\x02one\x03"], 100), Client(server.url, "t")
        server.answers.append(answer(404))
        assert b"".join([piece async for piece in pieces(client, log.phase, follow=True)]) == b"one"
        await client.close()


def printed(chunks: list[bytes], *, as_json: bool = False, raw: bool = False, colour: bool = False) -> str:
    to = io.StringIO()
    printer = Printer("plan", to, colour=colour, as_json=as_json, raw=raw)
    for chunk in chunks:
        printer.feed(chunk)
    printer.end()
    return to.getvalue()


STRUCTURED = b'{"@level":"info","@message":"a: Creating...","type":"apply_start"}\n'


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_lines_for_people(size: int) -> None:
    raw = b"header\n" + STRUCTURED + b'text {"@message": "no"}\nrest'
    chunks = [raw[at : at + size] for at in range(0, len(raw), size)]
    assert printed(chunks) == 'header\na: Creating...\ntext {"@message": "no"}\nrest'
    assert printed(chunks, raw=True) == raw.decode()


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_lines_for_programs(size: int) -> None:
    raw = "é\x1b[31mred\x1b[0m\n".encode() + STRUCTURED + b"rest"
    lines = printed([raw[at : at + size] for at in range(0, len(raw), size)], as_json=True).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"phase": "plan", "line": line} for line in ("éred", "a: Creating...", "rest")
    ]


def test_what_has_no_line_end_is_shown_at_once() -> None:
    to = io.StringIO()
    printer = Printer("plan", to, colour=False)
    printer.feed(b"waiting for ")
    assert to.getvalue() == "waiting for "
    printer.feed(b"x" * (3 << 20))
    assert len(to.getvalue()) > 3 << 20, "a line of any length passes"
