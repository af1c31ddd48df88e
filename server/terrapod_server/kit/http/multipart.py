"""Reads `multipart/form-data` (RFC 7578) as it comes, and holds no more than a part's head or a field.

Only what browsers send is read: no preamble, no nested parts, no transfer encodings.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from terrapod_shared.errors import BadRequest, TooLarge

MULTIPART = "multipart/form-data"
#: Of a form: how many parts it may have, and how long the head of one may be.
PARTS_MOST, HEAD_MOST = 100, 4 << 10
_BOUNDARY_MOST = 70
_END_OF_HEAD = b"\r\n\r\n"


@dataclass
class Part:
    """A field, or a file if it has a `filename`, which is the client's word and never a path to use."""

    name: str
    filename: str | None
    media: str
    _content: AsyncIterator[bytes] = field(repr=False)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._content

    async def read(self, most: int) -> bytes:
        """All of it. Raises TooLarge past `most` bytes."""
        raw = b""
        async for chunk in self._content:
            raw += chunk
            if len(raw) > most:
                raise TooLarge(f"the field {self.name[:40]!r} makes the form larger than {most} bytes")
        return raw


class Multipart:
    """The parts of a body, one after the other. Raises BadRequest for what is no form."""

    def __init__(self, content_type: str, chunks: AsyncIterator[bytes]) -> None:
        boundary = parameters(content_type).get("boundary", "")
        if not 0 < len(boundary) <= _BOUNDARY_MOST or not boundary.isascii() or not boundary.isprintable():
            raise BadRequest("the form has no boundary, or one that may not be")
        self._delimiter = b"\r\n--" + boundary.encode()
        self._chunks = chunks
        self._buffer = b"\r\n"  # the first delimiter is at the very begin, without the line end of the others
        self._count = 0
        self._is_between = False  #: a delimiter was read, and not what is behind it
        self._is_over = False

    async def part(self) -> Part | None:
        """The next part; what nobody read of the one before is passed over. None: there is no other."""
        if not self._is_between and not self._is_over:
            async for _ in self._content():
                if self._count == 0:
                    raise BadRequest("the form does not begin with its boundary")
        if self._is_over or await self._ends():
            return None
        self._count += 1
        if self._count > PARTS_MOST:
            raise TooLarge(f"a form has {PARTS_MOST} parts at most")
        return await self._head()

    async def _ends(self) -> bool:
        """Whether the last delimiter was the closing one; then the rest is read too, which may be a line end."""
        while len(self._buffer) < len(b"--"):
            await self._more()
        behind, rest = self._buffer[:2], self._buffer[2:]
        self._buffer = rest
        if behind == b"\r\n":
            return False
        if behind != b"--":
            raise BadRequest("there is something behind the form's boundary")
        async for chunk in self._chunks:
            rest += chunk
            if len(rest) > len(b"\r\n"):
                break
        if rest not in (b"", b"\r\n"):
            raise BadRequest("there is something behind the form's end")
        self._is_over = True
        return True

    async def _head(self) -> Part:
        while (end := self._buffer.find(_END_OF_HEAD)) < 0 and len(self._buffer) <= HEAD_MOST:
            await self._more()
        if not 0 <= end <= HEAD_MOST:
            raise BadRequest(f"the head of a part of the form is longer than {HEAD_MOST} bytes")
        raw, self._buffer = self._buffer[:end], self._buffer[end + len(_END_OF_HEAD) :]
        try:
            lines = raw.decode().split("\r\n")
        except UnicodeDecodeError:
            raise BadRequest("the head of a part of the form is not UTF-8") from None
        heads = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        given = parameters(heads.get("content-disposition", ""))
        if given[""] != "form-data" or "name" not in given:
            raise BadRequest("a part of the form has no name")
        if heads.get("content-transfer-encoding", "binary").lower() not in ("binary", "7bit", "8bit"):
            raise BadRequest("a part of the form is encoded in another way than browsers do")
        self._is_between = False
        return Part(given["name"], given.get("filename"), heads.get("content-type", ""), self._content())

    async def _content(self) -> AsyncIterator[bytes]:
        """What comes before the next delimiter."""
        keep, number = len(self._delimiter) - 1, self._count
        while not self._is_between and number == self._count:
            at = self._buffer.find(self._delimiter)
            if at >= 0:
                found, self._buffer = self._buffer[:at], self._buffer[at + len(self._delimiter) :]
                self._is_between = True
            else:
                cut = max(0, len(self._buffer) - keep)
                found, self._buffer = self._buffer[:cut], self._buffer[cut:]
            if found:
                yield found
            elif not self._is_between:
                await self._more()

    async def _more(self) -> None:
        chunk = await anext(self._chunks, None)
        if chunk is None:
            raise BadRequest("the form breaks off")
        self._buffer += chunk


def parameters(header: str) -> dict[str, str]:
    """A header's value, under the empty name, and its parameters. Raises BadRequest for one that comes twice."""
    value, _, rest = header.partition(";")
    found = {"": value.strip().lower()}
    while rest := rest.lstrip(" \t"):
        name, _, rest = rest.partition("=")
        if rest.startswith('"'):
            text, quote, rest = rest[1:].partition('"')
            between, _, rest = rest.partition(";")
            is_good = bool(quote) and not between.strip()
        else:
            text, _, rest = rest.partition(";")
            text, is_good = text.strip(), True
        name = name.strip().lower()
        if not is_good or not name or name in found:
            raise BadRequest("a header of the form cannot be read")
        for sent, meant in (("%22", '"'), ("%0D", "\r"), ("%0A", "\n")):  # as browsers write them
            text = text.replace(sent, meant)
        found[name] = text
    return found


__all__ = ["HEAD_MOST", "MULTIPART", "PARTS_MOST", "Multipart", "Part", "parameters"]
