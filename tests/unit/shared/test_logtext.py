"""A log as text for people: the same however it is cut into chunks, and without an escape whichever way it is spelled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrapod_shared.logtext import LogText

RAW = (
    b"header\r\n\x1b[31mred\x1b[0m\n"
    b'{"@level":"info","@message":"a: \\u001b[2J\\u001b[31mCreating\\u202e...","type":"apply_start"}\n'
    b'{"@level":"info","@message":"Terraform 1.15.5","type":"version"}\n'
    b'{"@message":"x","type":"provision_progress","hook":{"resource":{"addr":"b"},"output":"\\u001b]0;title\\u0007out"}}\n'
    b'text {"@message": "no"}\nrest'
)
TEXT = 'header\nred\na: Creating...\nb: (provisioner) out\ntext {"@message": "no"}\nrest'


def shown(log: bytes, size: int, **how: bool) -> str:
    reader = LogText(**how)
    return "".join(reader.feed(log[at : at + size]) for at in range(0, len(log), size)) + reader.end()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_it_is_the_same_however_it_is_cut(size: int) -> None:
    assert shown(RAW, size) == TEXT
    assert shown(RAW, size, colour=True).replace("\x1b[31m", "").replace("\x1b[0m", "") == TEXT
    assert "\x1b[2J" not in shown(RAW, size, colour=True)


def test_no_more_than_a_line_of_a_mebibyte_is_held() -> None:
    reader, given = LogText(), 0
    for _ in range(64):
        given += len(reader.feed(b'{"@message":"' + b"x" * (64 << 10)))
    assert given > 2 << 20


UNITS = ['{"@message":"a"}', '{"@message":"x","type":"log"}', "{", '{"', '{"@', "x", "\n", "\r", "\n\n", "\x1b[31m"]


@given(st.lists(st.sampled_from(UNITS), max_size=14).map("".join), st.integers(1, 12), st.booleans())
def test_lines_that_are_given_together_are_those_that_are_given_one_by_one(text: str, size: int, is_raw: bool) -> None:
    reader, raw = LogText(raw=is_raw), text.encode()
    pieces = [piece for at in range(0, len(raw), size) for piece in reader.pieces(raw[at : at + size])]
    one_by_one = "".join(line + end for line, end in [*pieces, *reader.last()])
    assert shown(raw, size, raw=is_raw) == one_by_one
