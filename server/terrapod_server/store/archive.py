"""What an uploaded archive must be: a gzip tar with names that stay inside. Reads a stream, keeps nothing.

Whoever unpacks checks all of it again with everything else that an archive
can do; here a hostile or broken upload is refused while its sender still
listens. What other readers of tar could read otherwise than this one
(sparse files, sizes in extended headers, unknown kinds) is not taken.
"""

import tarfile
import zlib
from collections.abc import AsyncIterator, Iterator

from terrapod_server.store.port import gathered
from terrapod_server.store.threads import Threads
from terrapod_shared.errors import Invalid

ENTRIES_MOST = 100_000
UNPACKED_MOST = 4 << 30
_BLOCK = 512
_NEWLINE = 0x0A
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
#: Of one name or target of a link.
NAME_MOST, PARTS_MOST = 4096, 100
#: An extended header is not longer than this, has no more records, and all of an archive's take no more.
_EXTENDED_MOST, _RECORDS_MOST, _EXTENDED_TOTAL = 1 << 20, 1_000, 32 << 20
#: A record of an extended header that says how long it is with more digits is none.
_LENGTH_DIGITS = 7
#: Archives are looked through in threads of their own: one that takes long makes only others of its kind wait.
_THREADS = Threads("archive", 2)


class Unfit(Exception):
    """Why the archive is refused, for its sender."""


async def checked(chunks: AsyncIterator[bytes], what: str, unpacked_most: int = UNPACKED_MOST) -> AsyncIterator[bytes]:
    """The same bytes, for a store that keeps nothing of a stream that raises. Raises Invalid at what is wrong."""
    checker, empty = Checker(unpacked_most), True
    try:
        async for chunk in gathered(chunks):
            empty = False
            await _THREADS.run(checker.feed, chunk)
            yield chunk
        if empty:
            message = "the body is empty; it must be a gzip tar"
            raise Invalid(message)
        await _THREADS.run(checker.end)
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
        self._links = _Links()
        self._entries = self._unpacked = self._extended_size = 0
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
        if entry.size < 0 or (names_more and entry.size > _EXTENDED_MOST):
            message = "an entry's size cannot be"
            raise Unfit(message)
        self._skip = -(-entry.size // _BLOCK) * _BLOCK if entry.type in _PLAIN or names_more else 0
        if names_more:
            self._extended_size += entry.size
            if self._extended_size > _EXTENDED_TOTAL:
                message = f"its extended headers take more than {_EXTENDED_TOTAL} bytes"
                raise Unfit(message)
            self._kept, self._kept_size, self._kept_type = bytearray(), entry.size, entry.type
        else:
            self._entry(entry.type, self._names.get("path", entry.name), self._names.get("linkpath", entry.linkname))
            self._names = {}

    def _entry(self, kind: bytes, name: str, target: str) -> None:
        parts = _parts(name)
        if kind not in (*_PLAIN, *_LINKS, tarfile.DIRTYPE):
            message = f"{name[:200]!r} is a device, a sparse file or of another kind that is not taken"
            raise Unfit(message)
        _inside(name, parts)
        if ".." in parts:
            message = f"{name[:200]!r} has a '..' in it"
            raise Unfit(message)
        if self._links.is_behind(parts):
            message = f"{name[:200]!r} lies behind a link"
            raise Unfit(message)
        if kind == tarfile.SYMTYPE:
            _inside(target, [*parts[:-1], *_parts(target)])
            self._links.add(parts)
        elif kind == tarfile.LNKTYPE:
            _inside(target, _parts(target))

    def _extended(self) -> None:
        """A long name of GNU's or POSIX's kind: the header behind it shows only a part."""
        content = bytes(self._kept or b"")[: self._kept_size]
        self._kept = None
        if self._kept_type in _LONG:
            which = "path" if self._kept_type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            self._names[which] = _text(content.rstrip(b"\0"))
            return
        at = records = 0
        while at < len(content):
            records += 1
            blank = content.find(b" ", at, at + _LENGTH_DIGITS + 1)
            digits = content[at:blank] if blank > at else b""
            end = at + int(digits) if digits.isdigit() else 0
            if records > _RECORDS_MOST or end <= blank + 1 or end > len(content) or content[end - 1] != _NEWLINE:
                message = "an extended header cannot be read"
                raise Unfit(message)
            equals = content.find(b"=", blank, end - 1)
            value = b"" if equals < 0 else content[equals + 1 : end - 1]
            self._record(content[blank + 1 : end - 1 if equals < 0 else equals], value)
            at = end

    def _record(self, key: bytes, value: bytes) -> None:
        if key in (b"path", b"linkpath") and self._kept_type != tarfile.XGLTYPE:
            self._names[key.decode()] = _text(value)
        elif key in (b"path", b"linkpath", b"size") or key.startswith(b"GNU.sparse."):
            message = f"an extended header says {key[:40].decode('utf-8', 'replace')}, which is not taken there"
            raise Unfit(message)


class _Links:
    """The symbolic links that came so far, each as one number: Python's hash of text has a seed that nobody knows."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def is_behind(self, parts: list[str]) -> bool:
        """Whether one of the folders that it is in is a link."""
        return bool(self._known) and any(path in self._known for path in _paths(parts[:-1]))

    def add(self, parts: list[str]) -> None:
        self._known.update(list(_paths(parts))[-1:])


def _paths(parts: list[str]) -> Iterator[int]:
    """A number for the first part, for the first two, and so on."""
    path = 0
    for part in parts:
        path = hash((path, part))
        yield path


def _text(raw: bytes) -> str:
    """A name. Raises Unfit before it is kept where it is too long."""
    if len(raw) > NAME_MOST:
        message = f"{raw[:200].decode('utf-8', 'replace')!r} and so on is longer than {NAME_MOST} bytes"
        raise Unfit(message)
    return raw.decode("utf-8", "surrogateescape")


def _parts(name: str) -> list[str]:
    """What a name consists of. Raises Unfit where it is too deep."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if len(parts) > PARTS_MOST:
        message = f"{name[:200]!r} has more than {PARTS_MOST} parts"
        raise Unfit(message)
    return parts


def _inside(name: str, parts: list[str]) -> None:
    """Raises Unfit for a name that is absolute, or where the parts climb out."""
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            break
    if depth < 0 or name.startswith("/"):
        message = f"{name[:200]!r} lies outside the archive"
        raise Unfit(message)
