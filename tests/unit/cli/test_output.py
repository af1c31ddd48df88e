"""Lists on a terminal: what fits, what is shortened, and what is said while a question is open."""

import asyncio
import contextlib
import os
import re
import sys
import termios
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from terrapod_cli import audit, pools, roles, runs, states, tokens, users, workspaces
from terrapod_cli.output import Column, Columns, Keep, Named, Output, fitted, relative
from terrapod_shared import clock, ids

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
ALL: dict[str, Columns] = {
    "workspaces": workspaces.COLUMNS, "runs": runs.COLUMNS, "pools": pools.COLUMNS, "listeners": pools.LISTENERS,
    "join tokens": pools.TOKENS, "tokens": tokens.COLUMNS, "users": users.COLUMNS, "roles": roles.COLUMNS,
    "assignments": roles.ASSIGNMENTS, "audit": audit.COLUMNS, "states": states.COLUMNS,
}  # fmt: skip


class Long(dict[str, Any]):
    """A row that has every member, most of them too long."""

    def __missing__(self, name: str) -> Any:
        if name.endswith(("-at", "timestamp")):
            return clock.stamp(clock.now() - timedelta(days=3))
        if name == "waits-for":
            return {"kind": "x" * 30}
        return {"env": "x" * 100} if name.endswith("labels") else ids.make("late") if name == "id" else "x" * 100

    def get(self, name: str, _default: Any = None) -> Any:
        return self[name]


Screen = Callable[[Callable[[], None]], str]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    """Does something with a real terminal of 80 columns as stdout; gives what was written to it, without colours."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    os.set_blocking(master, False)

    def shown(do: Callable[[], None]) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setenv("COLUMNS", "80")
            patch.setenv("TERM", "xterm")
            do()
        terminal.flush()
        found = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(master, 1 << 16):
                found += chunk
        return re.sub(r"\x1b\[[0-9;]*m", "", found.decode()).replace("\r", "")

    with os.fdopen(slave, "w") as terminal:
        yield shown
    os.close(master)


@pytest.mark.parametrize("columns", ALL.values(), ids=ALL)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_list_fits_80_columns(screen: Screen, columns: Columns, count: int) -> None:
    rows = [Long() for _ in range(count)]
    lines = screen(lambda: Output().rows(rows, columns)).splitlines()
    assert len(lines) == count + 1, "no row is folded"
    assert max(map(len, lines)) <= 80, lines
    if count and columns[0].keep is Keep.ALL:
        assert all(re.match(r"late-\w{26}  ", line) for line in lines[1:]), "what commands take is never cut"


def test_ids_take_the_place_of_names_and_are_whole(screen: Screen) -> None:
    columns = (
        Column("NAME", "name", Keep.LONG), Column("ID", "id", Keep.ALL, only_ids=True), Column("POOL", Named("pool")),
    )  # fmt: skip
    row = {"name": "n" * 90, "id": ids.make("ws"), "pool": ids.make("apool"), "pool-name": "dmz"}
    plain = screen(lambda: Output().rows([row], columns))
    assert (row["id"] in plain, row["pool"] in plain, "dmz" in plain) == (False, False, True)
    with_ids = screen(lambda: Output(ids=True).rows([row], columns))
    assert (row["id"] in with_ids, row["pool"] in with_ids, "dmz" in with_ids) == (True, True, False)
    assert f"dmz ({row['pool']})" in screen(lambda: Output(ids=True).row(row, (("Pool", Named("pool")),)))


def test_a_pipe_gets_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows(
        [{"name": "n" * 300, "made-at": "2026-01-01T00:00:00.123Z"}], (Column("N", "name"), Column("M", "made-at"))
    )
    assert capsys.readouterr().out.splitlines()[1] == f"{'n' * 300}  2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("ago_s", "shown"),
    [(0, "now"), (-9, "now"), (10, "10s ago"), (59, "59s ago"), (61, "1m ago"), (47 * 3600, "47h ago"), (49 * 3600, "2d ago"), (-90, "in 1m"),
     (-86400 * 30, "in 30d"), (200 * 86400, "2026-05-14")],
)  # fmt: skip
def test_relative_times(ago_s: int, shown: str) -> None:
    assert relative(clock.stamp(NOW - timedelta(seconds=ago_s)), NOW) == shown


@pytest.mark.parametrize("text", ["", "-", "yesterday", "0001-01-01T00:00:00+23:59", "2026-01-01T00:00:00"])
def test_what_is_no_time_stays(text: str) -> None:
    assert relative(text, NOW) == text


def test_what_carries_most_is_kept() -> None:
    keeps = [(30, Keep.ALL), (90, Keep.LONG), (20, Keep.EXTRA), (90, Keep.SHORT), (20, Keep.EXTRA)]
    assert fitted(keeps, 300) == {0: 30, 1: 90, 2: 20, 3: 90, 4: 20}
    assert fitted(keeps, 80).keys() == {0, 1, 2, 3}
    assert sum(fitted(keeps, 80).values()) == 80 - 3 * 2
    assert fitted(keeps, 10) == {0: 30, 1: 8, 3: 4}, "ids stay whole on a screen that is too narrow"


async def test_nothing_is_said_over_a_question(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    waiting = asyncio.ensure_future(out.free())
    await waiting
    with out.question():
        out.say("first")
        out.say("first")
        out.say("second")
        late = asyncio.ensure_future(out.free())
        await asyncio.sleep(0)
        assert (capsys.readouterr().err, late.done()) == ("", False)
    await late
    assert capsys.readouterr().err == "first\nsecond\n"
