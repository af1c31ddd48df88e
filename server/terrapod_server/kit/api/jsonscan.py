"""Bounds of a JSON document, checked by one linear pass over its bytes before any C parser sees them. Pure.

The pass works on slices of 64 KiB with the C methods of `bytes`, so it costs a
few milliseconds a MiB, holds no more than some slices, and lets other threads
run in between. It checks bounds, UTF-8 and that the brackets balance; the
grammar is the parser's business.
"""

import codecs
import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, islice

SLICE = 64 << 10
UNBOUNDED = 1 << 60
BRACKET = re.compile(rb"[\[\]{}]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = [{0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}.get(byte, 0) for byte in range(256)]
#: A byte of a number becomes `0`, any other a blank.
_NUMBERS = bytes(0x30 if byte in b"0123456789+-.eE" else 0x20 for byte in range(256))


class Beyond(ValueError):
    """Which bound the document is over; nothing of the document is quoted."""


class Malformed(ValueError):
    """The document cannot be JSON."""


@dataclass(frozen=True)
class Bounds:
    """What a document may have at most. `text` is at least a slice."""

    depth: int  #: arrays and objects inside each other
    number: int  #: characters of one number
    text: int = UNBOUNDED  #: bytes of one text or name
    values: int = UNBOUNDED  #: commas and opening brackets


@dataclass
class Slice:
    """Some of a document, cut at its quotes."""

    data: bytes
    pieces: list[bytes]  #: what lies between the quotes, with escapes masked by as many bytes
    inside: bool  #: whether the first piece is inside a text
    levels: list[int]  #: the depth at its beginning, and after each bracket

    @property
    def depth(self) -> int:
        """The depth at its end."""
        return self.levels[-1]

    @cached_property
    def least(self) -> int:
        """The least depth in it."""
        return min(self.levels)

    @cached_property
    def starts(self) -> list[int]:
        """Where each piece begins."""
        return list(accumulate((len(piece) + 1 for piece in self.pieces), initial=0))

    @cached_property
    def _counts(self) -> list[int]:
        """How many brackets there are up to the end of each piece that is outside of texts."""
        outside = self.pieces[self.inside :: 2]
        return list(accumulate(len(piece.translate(None, _NO_BRACKET)) for piece in outside))

    def bracket(self, number: int) -> tuple[int, int]:
        """In which piece the bracket is, of which `number - 1` stand before it, and where in the piece."""
        index = bisect_left(self._counts, number)
        before = self._counts[index - 1] if index else 0
        index = 2 * index + self.inside
        found = next(islice(BRACKET.finditer(self.pieces[index]), number - before - 1, None))
        return index, found.start()


class Scanner:
    """Fed with the document's chunks in order, then ended. `watch` is told of each slice. Raises Malformed.

    `beyond` says which bound was the first that the document was over; "" while it is over none. It is for the caller
    to stop: what is fed after that is still followed.
    """

    def __init__(self, bounds: Bounds, watch: Callable[[Slice], object] | None = None) -> None:
        self.beyond = ""
        self._bounds, self._watch = bounds, watch
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._escape = b""  #: a backslash whose second half is in the next slice
        self._inside = False
        self._depth = self._number = self._text = self._values = 0
        self._too_long = b"0" * (bounds.number + 1) if bounds.number < UNBOUNDED else b""

    def feed(self, chunk: bytes) -> None:
        for at in range(0, len(chunk), SLICE):
            self._slice(chunk[at : at + SLICE])

    def end(self) -> None:
        """To be called after the last chunk."""
        try:
            self._utf8.decode(b"", final=True)
        except UnicodeDecodeError:
            raise Malformed("it is not UTF-8") from None
        if self._depth or self._inside or self._escape:
            raise Malformed("it is cut off")

    def _slice(self, data: bytes) -> None:
        try:
            self._utf8.decode(data)
        except UnicodeDecodeError:
            raise Malformed("it is not UTF-8") from None
        data, pieces = self._cut(data)
        inside = self._inside
        self._inside = inside ^ (len(pieces) % 2 == 0)
        outside = b'"'.join(pieces[inside::2])
        levels = self._brackets(outside)
        self._numbers(outside, inside)
        self._texts(pieces, inside)
        if self._bounds.values < UNBOUNDED:
            self._values += outside.count(b",") + outside.count(b"[") + outside.count(b"{")
            if self._values > self._bounds.values:
                self._over(f"more than {self._bounds.values} values")
        if self._watch is not None:
            self._watch(Slice(data, pieces, inside, levels))

    def _over(self, bound: str) -> None:
        self.beyond = self.beyond or bound

    def _cut(self, data: bytes) -> tuple[bytes, list[bytes]]:
        """The data with what an earlier slice kept back, and its pieces between quotes that are not escaped."""
        data = self._escape + data
        self._escape = b""
        if b"\\" not in data:
            return data, data.split(b'"')
        masked = data.replace(b"\\\\", b"__")
        if masked.endswith(b"\\"):
            data, masked, self._escape = data[:-1], masked[:-1], b"\\"
        return data, masked.replace(b'\\"', b"__").split(b'"')  # as long as the data

    def _brackets(self, outside: bytes) -> list[int]:
        """The depth at the beginning, and after each bracket."""
        brackets = outside.translate(None, _NO_BRACKET)
        levels = list(accumulate(map(_STEPS.__getitem__, brackets), initial=self._depth))
        self._depth = levels[-1]
        if min(levels) < 0:
            raise Malformed("a bracket is closed that was not opened")
        if max(levels) > self._bounds.depth:
            self._over(f"nesting deeper than {self._bounds.depth} levels")
        return levels

    def _numbers(self, outside: bytes, inside: bool) -> None:
        if not self._too_long:
            return
        marks = outside.translate(_NUMBERS)
        if not inside and self._number:
            marks = b"0" * self._number + marks
        if self._too_long in marks:
            self._over(f"a number of more than {self._bounds.number} characters")
        run = 0 if self._inside else len(marks) - len(marks.rstrip(b"0"))
        self._number = min(run, self._bounds.number + 1)

    def _texts(self, pieces: list[bytes], inside: bool) -> None:
        """A text that lies within one slice is short enough."""
        self._text += len(pieces[0]) if inside else 0
        if self._text > self._bounds.text:
            self._over(f"a text of more than {self._bounds.text} bytes")
        if len(pieces) > 1:
            self._text = len(pieces[-1]) if self._inside else 0


def check(raw: bytes, bounds: Bounds) -> None:
    """A whole document. Raises Beyond and Malformed."""
    scanner = Scanner(bounds)
    for at in range(0, len(raw), SLICE):
        scanner.feed(raw[at : at + SLICE])
        if scanner.beyond:
            raise Beyond(scanner.beyond)
    scanner.end()
