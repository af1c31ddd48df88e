"""What an uploaded archive must be: a gzip tar with names that stay inside. Reads a stream, keeps nothing.

Whoever unpacks checks all of it again with everything else that an archive
can do; here a hostile or broken upload is refused while its sender still
listens. What other readers of tar could read otherwise than this one
(sparse files, sizes in extended headers, unknown kinds) is not taken.
"""

import asyncio
import tarfile
import zlib
from collections.abc import AsyncIterator
from pathlib import PurePosixPath

from terrapod_server.store.port import gathered
from terrapod_shared.errors import Invalid

ENTRIES_MOST = 100_000
UNPACKED_MOST = 4 << 30
_BLOCK = 512
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
#: A name, or the extended header that carries one, is not longer than this.
_NAMES_MOST = 1 << 20


class Unfit(Exception):
    """Why the archive is refused, for its sender."""


async def checked(chunks: AsyncIterator[bytes], what: str, unpacked_most: int = UNPACKED_MOST) -> AsyncIterator[bytes]:
    """The same bytes, for a store that keeps nothing of a stream that raises. Raises Invalid at what is wrong."""
    checker, empty = Checker(unpacked_most), True
    try:
        async for chunk in gathered(chunks):
            empty = False
            await asyncio.to_thread(checker.feed, chunk)
            yield chunk
        if empty:
            message = "the body is empty; it must be a gzip tar"
            raise Invalid(message)
        await asyncio.to_thread(checker.end)
    except Unfit as error:
        message = f"the {what} is refused: {error}"
        raise Invalid(message) from None


class Checker:
    """Fed with the archive's chunks in a thread; raises Unfit at the first thing that is wrong."""

    def __init__(self, unpacked_most: int = UNPACKED_MOST) -> None:
        self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._unpacked_most = unpacked_most
        self._buffer = bytearray()
        self._skip = 0
        self._kept: bytearray | None = None  #: the content of an extended header, being gathered
        self._kept_size = 0
        self._kept_type = b""
        self._names: dict[str, str] = {}  #: `path` and `linkpath` that an extended header gives the next entry
        self._links: set[str] = set()
        self._entries = 0
        self._unpacked = 0
        self._ended = False

    def feed(self, chunk: bytes) -> None:
        data = chunk
        while data:
            if self._gzip.eof:
                message = "something follows the archive's end"
                raise Unfit(message)
            try:
                plain = self._gzip.decompress(data, 1 << 20)
            except zlib.error as error:
                message = f"not a gzip archive: {error}"
                raise Unfit(message) from None
            self._unpacked += len(plain)
            if self._unpacked > self._unpacked_most:
                message = f"it holds more than {self._unpacked_most} bytes"
                raise Unfit(message)
            self._blocks(plain)
            data = self._gzip.unused_data if self._gzip.eof else self._gzip.unconsumed_tail

    def end(self) -> None:
        """To be called after the last chunk."""
        if not self._gzip.eof:
            message = "the archive is cut off"
            raise Unfit(message)
        if self._skip or self._buffer.strip(b"\0") or not (self._ended or self._entries):
            message = "the tar inside is cut off"
            raise Unfit(message)

    def _blocks(self, plain: bytes) -> None:
        at = 0
        while at < len(plain) and not self._ended:
            if self._skip:
                step = min(self._skip, len(plain) - at)
                if self._kept is not None:
                    self._kept += plain[at : at + step]
                self._skip -= step
                at += step
                if not self._skip and self._kept is not None:
                    self._extended()
                continue
            step = min(_BLOCK - len(self._buffer), len(plain) - at)
            self._buffer += plain[at : at + step]
            at += step
            if len(self._buffer) == _BLOCK:
                block = bytes(self._buffer)
                self._buffer.clear()
                self._header(block)

    def _header(self, block: bytes) -> None:
        if not block.strip(b"\0"):
            self._ended = True
            return
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            message = f"not a tar inside: {error}"
            raise Unfit(message) from None
        self._entries += 1
        if self._entries > ENTRIES_MOST:
            message = f"it has more than {ENTRIES_MOST} entries"
            raise Unfit(message)
        names_more = entry.type in (*_LONG, *_EXTENDED)
        if entry.size < 0 or (names_more and entry.size > _NAMES_MOST):
            message = "an entry's size cannot be"
            raise Unfit(message)
        self._skip = -(-entry.size // _BLOCK) * _BLOCK if entry.type in _PLAIN or names_more else 0
        if names_more:
            self._kept, self._kept_size, self._kept_type = bytearray(), entry.size, entry.type
        else:
            self._entry(entry.type, self._names.get("path", entry.name), self._names.get("linkpath", entry.linkname))
            self._names = {}

    def _entry(self, kind: bytes, name: str, target: str) -> None:
        if kind not in (*_PLAIN, *_LINKS, tarfile.DIRTYPE):
            message = f"{name[:200]!r} is a device, a sparse file or of another kind that is not taken"
            raise Unfit(message)
        _inside(name)
        path = PurePosixPath(name)
        if ".." in path.parts:
            message = f"{name[:200]!r} has a '..' in it"
            raise Unfit(message)
        if self._links and any(str(parent) in self._links for parent in path.parents):
            message = f"{name[:200]!r} lies behind a link"
            raise Unfit(message)
        if kind == tarfile.SYMTYPE:
            _inside(str(path.parent / target))
            self._links.add(str(path))
        elif kind == tarfile.LNKTYPE:
            _inside(target)

    def _extended(self) -> None:
        """A long name of GNU's or POSIX's kind: the header behind it shows only a part."""
        content = bytes(self._kept or b"")[: self._kept_size]
        self._kept = None
        if self._kept_type in _LONG:
            which = "path" if self._kept_type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            self._names[which] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            return
        while content:
            digits, _, rest = content.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < len(str(_NAMES_MOST)) else 0
            record = content[len(digits) + 1 : length - 1]
            if not rest or length <= len(digits) + 1 or content[length - 1 : length] != b"\n":
                message = "an extended header cannot be read"
                raise Unfit(message)
            self._record(*record.partition(b"=")[::2])
            content = content[length:]

    def _record(self, key: bytes, value: bytes) -> None:
        if key in (b"path", b"linkpath") and self._kept_type != tarfile.XGLTYPE:
            self._names[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key in (b"path", b"linkpath", b"size") or key.startswith(b"GNU.sparse."):
            message = f"an extended header says {key.decode()}, which is not taken there"
            raise Unfit(message)


def _inside(name: str) -> None:
    """Raises Unfit for a name that is absolute or climbs out."""
    depth = 0
    for part in PurePosixPath(name).parts:
        depth += -1 if part == ".." else 1
        if part.startswith("/") or depth < 0:
            message = f"{name[:200]!r} lies outside the archive"
            raise Unfit(message)
