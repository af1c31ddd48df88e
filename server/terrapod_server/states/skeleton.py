"""What a summary needs of a state, cut out of a stream of any size. Pure.

The state's own members are kept, and of some members as many levels as asked
for: of `outputs` three levels are `{"name": {"value": [], "type": "string"}}`.
A deeper array or object becomes an empty one; what lies in there is never
looked at, so it can do no harm.
"""

from collections.abc import Callable, Mapping

from terrapod_server.kit.api.jsonscan import BRACKET, Malformed, Slice

EVERYTHING = 1 << 30
_CLOSED = {0x5B: b"[]", 0x7B: b"{}"}
#: A longer name or text of a kept level becomes an empty object, which no reader takes for text.
_TEXT_MOST = 1024
_HEAD_MOST = 64 << 10
#: Elements of an array are handed over when they take so much.
_BATCH = 1 << 20
_BETWEEN = b" \n\r\t"
#: How deep the elements of a member lie: in the member, which is in the state.
_ELEMENTS = 2


class Skeleton:
    """Watches a scanner. `keep` says how many levels are kept of which member, counted from the state as 1.

    `head` becomes the state with its arrays and objects empty, `members` what is kept of those in `keep`. Of the member
    `batched`, an array of objects that is kept whole, elements are handed to `batch` on the way, some at a time, as a
    JSON array; what is left at the end may begin with a comma. A member of which more than `most` bytes would be kept
    at once is in `cut` instead. Raises Malformed.
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
        if self._is_whole and part.least >= _ELEMENTS:
            self._add_whole(part)
        else:
            self._walk(part)
        if len(self.head) > _HEAD_MOST:
            raise Malformed("what it says of itself is too large")
        if self._out is not self.head and len(self._out) > self._most:
            self._overflow()

    @property
    def _is_whole(self) -> bool:
        """Whether all is kept of the member that is being read."""
        return self._limit == EVERYTHING

    def _add_whole(self, part: Slice) -> None:
        if self._batch is None or self._name != self._batched or part.least > _ELEMENTS or len(self._out) < _BATCH:
            self._out += part.data
        else:
            end = _last_element(part)
            self._out += part.data[:end]
            if end:
                self._batch(b"[%s]" % bytes(self._out).lstrip(b"[," + _BETWEEN))
                self._out[:] = b"["
            self._out += part.data[end:]
        self._depth = part.depth

    def _walk(self, part: Slice) -> None:
        """Piece by piece, but for what lies deeper than is kept: that is passed over."""
        index = at = brackets = 0
        is_new = False
        while True:
            if self._depth > self._limit:
                try:
                    number = part.levels.index(self._limit, brackets + 1)
                except ValueError:
                    self._depth = part.depth
                    return
                (index, at), brackets, is_new = part.bracket(number), number - 1, False
                self._depth = self._limit + 1
            start = part.starts[index]
            piece = part.data[start : start + len(part.pieces[index])]
            is_inside = (index % 2 == 0) == part.inside
            if is_new:
                self._quote(is_start=is_inside)
            if is_inside:
                self._inside(piece)
            else:
                brackets += self._outside(piece, at)
                if self._depth > self._limit:
                    continue
            index, at, is_new = index + 1, 0, True
            if index == len(part.pieces):
                return

    def _quote(self, *, is_start: bool) -> None:
        if self._is_whole:
            self._out += b'"'
            return
        if is_start:
            self._text = bytearray()
            return
        text, self._text = bytes(self._text or b""), None
        is_short = len(text) <= _TEXT_MOST
        self._out += b'"%s"' % text if is_short else b"{}"
        if self._depth == 1 and self._last in (b"{", b","):
            self._name = text.decode("utf-8", "replace") if is_short else ""

    def _inside(self, piece: bytes) -> None:
        if self._is_whole:
            self._out += piece
        elif self._text is not None and len(self._text) <= _TEXT_MOST:
            self._text += piece[: _TEXT_MOST + 1]

    def _outside(self, piece: bytes, at: int) -> int:
        """Up to a bracket behind which it gets deeper than is kept; how many brackets were read."""
        count = 0
        for found in BRACKET.finditer(piece, at):
            count += 1
            if self._depth <= self._limit:
                self._out += piece[at : found.start()]
            at = found.end()
            self._turn(piece[found.start()])
            if self._depth > self._limit:
                return count
        self._out += piece[at:]
        if self._depth == 1 and (rest := piece[at:].rstrip(_BETWEEN)):
            self._last = rest[-1:]
        return count

    def _turn(self, byte: int) -> None:
        """A bracket."""
        if byte in _CLOSED:
            self._open(byte)
            return
        if self._depth <= self._limit:
            self._out.append(byte)
        self._depth -= 1
        if self._depth == 1:
            self._limit, self._out = 1, self.head

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

    def _overflow(self) -> None:
        """The rest of the member is passed over."""
        self.cut.add(self._name)
        self.members.pop(self._name, None)
        self._out, self._limit, self._text = self.head, 1, None


def _last_element(part: Slice) -> int:
    """Behind which byte the last element of the array ends; 0 where none does."""
    for number in range(len(part.levels) - 1, 0, -1):
        if part.levels[number] == _ELEMENTS and part.levels[number - 1] > _ELEMENTS:
            index, at = part.bracket(number)
            return part.starts[index] + at + 1
    return 0
