"""Identifiers: `<prefix>-` and 26 lower-case letters and digits, ordered by time.

The tail is 48 bits of milliseconds and 80 random bits in Crockford's base 32.
It holds no hyphen, since pytfe takes `ws-` plus letters and digits for an id
and anything else for a name.
"""

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
PREFIXES = frozenset(
    [
        "ws",
        "run",
        "plan",
        "apply",
        "cv",
        "sv",
        "wsout",
        "var",
        "varset",
        "apool",
        "at",
        "user",
        "listener",
        "vcs",
        "rt",
        "nc",
        "re",
        "prj",
        "tag",
        "modver",
        "prov",
        "provver",
        "provpltfrm",
        "mod",
        "key",
        "ae",
        "late",
    ]
)
_TAIL_MIN, _TAIL_MAX = 20, 26
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
_SHIFTS = range(120, -1, -10)
_LATEST_MS = (1 << 48) - 1
_LETTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz")


def make(prefix: str) -> str:
    """A new id; two made in different milliseconds sort in the order of their making."""
    return f"{prefix}-{tail()}"


def tail() -> str:
    """The part behind the prefix: a plan and an apply share the one of their run."""
    return _text(time.time_ns() // 1_000_000, secrets.randbits(80))


def make_at(prefix: str, at_ms: int) -> str:
    """A new id as if it were made at that time, in milliseconds of the epoch."""
    return f"{prefix}-{_text(at_ms, secrets.randbits(80))}"


def first_at(prefix: str, at_ms: int) -> str:
    """What no id of that millisecond or a later one sorts before."""
    return f"{prefix}-{_text(max(0, min(at_ms, _LATEST_MS)), 0)}"


def _text(at_ms: int, random: int) -> str:
    number = at_ms << 80 | random
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def is_valid(text: str, prefix: str) -> bool:
    """Whether `text` could be an id of that kind at all; the answer needs no database."""
    head, _, rest = text.partition("-")
    return head == prefix and _TAIL_MIN <= len(rest) <= _TAIL_MAX and _LETTERS.issuperset(rest)
