"""What a summary needs of a state, cut out of a stream of any size. Pure; only small, shallow JSON comes out.

The state's own members are kept, and of some members as many levels as asked
for: of `resources` four levels are `[{"type": "x", "instances": [{}, {}]}]`,
whatever the instances hold. A deeper array or object becomes an empty one.
What lies in there is never looked at, so it can do no harm.
"""

import re
from collections.abc import Callable, Mapping

from terrapod_server.kit.jsonscan import Malformed, Slice

EVERYTHING = 1 << 30
_BRACKET = re.compile(rb"[\[\]{}]")
_CLOSED = {0x5B: b"[]", 0x7B: b"{}"}
#: A longer name or text of a kept level becomes an empty object, which no reader takes for text.
_TEXT_MOST = 1024
_HEAD_MOST = 64 << 10
#: Elements of an array are handed over when they take so much.
_BATCH = 1 << 20


class Skeleton:
    """Watches a scanner. `keep` says how many levels are kept of which member, counted from the state as 1.

    `head` becomes the state with its arrays and objects empty, `members` what is kept of those in `keep`. Elements of
    the member `batched`, an array, go to `batch` instead, some at a time, as a JSON array. A member of which more than
    `most` bytes would be kept is in `cut` instead. Raises Malformed.
    """

    def __init__(
        self, keep: Mapping[str, int], most: int, batched: str = "", batch: Callable[[bytes], object] | None = None
    ) -> None:
        self.head = bytearray()
        self.members: dict[str, bytearray] = {}
        self.cut: set[str] = set()
        self._keep, self._most, self._batched, self._batch = keep, most, batched, batch
        self._depth, self._limit = 0, 1
        self._name = ""  #: of the member whose value comes or is there
        self._last = b""  #: what stood before, in the state itself
        self._text: bytearray | None = None  #: of a kept level, while it is read
        self._out = self.head

    def watch(self, part: Slice) -> None:
        if self._depth > self._limit and part.least > self._limit:
            self._depth = part.depth  # all of it lies deeper than what is kept
            return
        inside = part.inside
        for index, piece in enumerate(part.original()):
            if index:
                inside = not inside
                if self._depth <= self._limit:
                    self._quote(is_start=inside)
            if not inside:
                self._outside(piece)
            elif self._text is not None:
                self._text += piece if self._is_whole else piece[: _TEXT_MOST + 1]
                if len(self._text) > max(self._most, _TEXT_MOST):
                    self._overflow()
        self._bound()

    @property
    def _is_whole(self) -> bool:
        """Whether texts are kept however long they are."""
        return self._limit == EVERYTHING

    def _quote(self, *, is_start: bool) -> None:
        if is_start:
            self._text = bytearray()
            return
        text, self._text = bytes(self._text or b""), None
        is_short = len(text) <= _TEXT_MOST
        self._out += b'"%s"' % text if is_short or self._is_whole else b"{}"
        if self._depth == 1 and self._last in (b"{", b","):
            self._name = text.decode("utf-8", "replace") if is_short else ""

    def _outside(self, piece: bytes) -> None:
        at = 0
        for found in _BRACKET.finditer(piece):
            start = found.start()
            if self._depth <= self._limit:
                self._out += piece[at:start]
            at = start + 1
            if piece[start] in _CLOSED:
                self._open(piece[start])
            else:
                self._close(piece[start])
        if self._depth <= self._limit:
            self._out += piece[at:]
        if self._depth == 1 and (rest := piece[at:].rstrip(b" \n\r\t")):
            self._last = rest[-1:]

    def _open(self, byte: int) -> None:
        if self._depth == 1:
            self._limit = self._keep.get(self._name, 1)
            self.head += _CLOSED[byte]
            if self._limit > 1:
                self._out = self.members[self._name] = bytearray()
        elif self._depth == self._limit:
            self._out += _CLOSED[byte]
        if self._depth < self._limit:
            self._out.append(byte)
        self._depth += 1
        self._last = b"{" if self._depth == 1 else b""

    def _close(self, byte: int) -> None:
        if self._depth <= self._limit:
            self._out.append(byte)
        self._depth -= 1
        if self._depth == 1:
            self._limit, self._out = 1, self.head
        elif self._depth == 2 and self._name == self._batched and len(self._out) > _BATCH:  # noqa: PLR2004
            self._flush()

    def _flush(self) -> None:
        """The elements so far; the array goes on."""
        if self._batch is not None and self._limit > 1:
            self._batch(b"[%s]" % bytes(self._out).lstrip(b"[ \n\r\t,"))
            self._out[:] = b"["

    def _bound(self) -> None:
        if len(self.head) > _HEAD_MOST:
            raise Malformed("what it says of itself is too large")
        if self._out is not self.head and len(self._out) > self._most:
            self._overflow()

    def _overflow(self) -> None:
        """The rest of the member is passed over."""
        if self._out is self.head:
            raise Malformed("what it says of itself is too large")
        self.cut.add(self._name)
        self.members.pop(self._name, None)
        self._out, self._limit, self._text = self.head, 1, None
