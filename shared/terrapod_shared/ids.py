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
    ]
)
_TAIL_MIN, _TAIL_MAX = 20, 26
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
_SHIFTS = range(120, -1, -10)
_LETTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz")


def make(prefix: str) -> str:
    """A new id; two made in different milliseconds sort in the order of their making."""
    return f"{prefix}-{tail()}"


def tail() -> str:
    """The part behind the prefix: a plan and an apply share the one of their run."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def is_valid(text: str, prefix: str) -> bool:
    """Whether `text` could be an id of that kind at all; the answer needs no database."""
    head, _, rest = text.partition("-")
    return head == prefix and _TAIL_MIN <= len(rest) <= _TAIL_MAX and _LETTERS.issuperset(rest)
