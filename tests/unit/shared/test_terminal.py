"""What of somebody else's bytes reaches the terminal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrapod_shared import structured, terminal
from terrapod_shared.terminal import Cleaner

E = "\x1b"


def cleaned(text: str, *, colour: bool = True, size: int = 10_000) -> str:
    cleaner = Cleaner(colour=colour)
    raw = text.encode("utf-8", "surrogatepass")
    shown = "".join(cleaner.feed(raw[at : at + size]) for at in range(0, len(raw), size))
    return (shown + cleaner.end()).removesuffix(f"{E}[0m") if colour else shown + cleaner.end()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (f"{E}[1m{E}[32m+ a{E}[0m\n", f"{E}[1m{E}[32m+ a{E}[0m\n"),
        (f"{E}[38;5;8mgrey{E}[48;2;1;8;3mdeep", f"{E}[38;5;8mgrey{E}[48;2;1;8;3mdeep"),
        (f"a{E}[8mhidden", "ahidden"),
        (f"a{E}[1;8mhidden", "ahidden"),
        (f"a{E}[2J{E}[1;1H{E}[?25lb", "ab"),
        (f"a{E}]0;title\x07b", "ab"),
        (f"a{E}]52;c;Y3VybA=={E}\\b", "ab"),
        (f"a{E}]8;;http://x{E}\\b", "ab"),
        (f"a{E}Pq#0{E}\\b", "ab"),
        (f"a{E}]0;never ended\nnext line", "a\nnext line"),
        (f"a{E}cb{E}7c", "abc"),
        ("Plan: 9 to destroy\rPlan: 0 to destroy\r\n", "Plan: 9 to destroy\nPlan: 0 to destroy\n"),
        ("a\x08\x08b\x00\x07c\x9b2Jd", "abc2Jd"),
        ("\u202egnp.exe\u2066", "gnp.exe"),
        (f"a{E}", "a"),
        (f"a{E}[31", "a"),
        (f"{E * 3}[31mred{E}[{E}]{E}P{E}[1m{E}[{E}[2Jbold", f"{E}[31mred{E}[1mbold"),
        (f"a{(E + ']') * 3000}b\nc{E * 3000}[31md", f"a\nc{E}[31md"),
        ("\0" * 3000 + "a", "a"),
        ("tab\tstays é 漢\n", "tab\tstays é 漢\n"),
    ],
)
def test_escapes(written: str, shown: str) -> None:
    assert cleaned(written) == shown
    for size in (1, 2, 3, 7):
        assert cleaned(written, size=size) == shown, size


def test_without_colour_nothing_is_left() -> None:
    assert cleaned(f"{E}[1m{E}[32m+ a{E}[0m", colour=False) == "+ a"


@given(
    st.text(alphabet=st.sampled_from(list("ab\n\r\t[]0123;:mJ?P\\^_\x07\x1b\x9b\x9d\x02\x03é\u202e")), max_size=40),
    st.integers(1, 5),
)
def test_only_colours_whole_and_in_any_pieces(text: str, size: int) -> None:
    once = cleaned(text)
    assert cleaned(text, size=size) == once
    rest = re.sub("\x1b\\[[0-9;:]*m", "", once)
    assert not [letter for letter in rest if (ord(letter) < 32 and letter not in "\n\t") or 127 <= ord(letter) < 160]
    assert "\x1b" not in cleaned(text, colour=False)
    assert cleaned(once) == once


def test_a_name_is_one_line() -> None:
    assert terminal.plain(f"a\r\nb{E}[31mc\x07") == "a b[31mc"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain text", "plain text"),
        ('{"@level":"info"', '{"@level":"info"'),
        ('{"@level":"info"}', '{"@level":"info"}'),
        ('{"@message":"half \\ud800 a letter"}', "half \ufffd a letter"),
        ('{"@message":"whole \\ud83d\\ude00"}', "whole \U0001f600"),
        ('{"@message":"x","type":"outputs","outputs":{"\\udfff":{"value":1}}}', "Outputs:\n\n\ufffd = 1"),
        ('{"@message":"a list","type":[]}', "a list"),
        ('{"@message":"an object","type":{"a":1}}', "an object"),
        ('{"@message":"Terraform 1.15.5","type":"version"}', None),
        ('{"@message":"a: Creating...","type":"apply_start"}', "a: Creating..."),
        (
            '{"@message":"x","type":"provision_progress","hook":{"resource":{"addr":"r.a"},"provisioner":"local-exec","output":"hi"}}',
            "r.a: (local-exec) hi",
        ),
        (
            '{"@message":"x","type":"outputs","outputs":{"a":{"value":[1]},"b":{"sensitive":true},"c":{"action":"create"}}}',
            "Outputs:\n\na = [1]\nb = <sensitive>\nc = create",
        ),
        (
            '{"@message":"x","type":"outputs","outputs":{"n":{"value":%s}}}' % ("9" * 5000),
            'Outputs:\n\nn = "%s"' % ("9" * 5000),
        ),
        (
            (
                '{"@message":"Error: bad","type":"diagnostic","diagnostic":{"severity":"error","summary":"bad",'
                '"detail":"one\\ntwo","address":"r.a","range":{"filename":"main.tf","start":{"line":3}}}}'
            ),
            "Error: bad\n  with r.a\n  on main.tf line 3\n\n  one\n  two\n",
        ),
    ],
)
def test_structured_lines(line: str, shown: str | None) -> None:
    assert structured.readable(line) == shown
