"""Is this a configuration at all: a gzip tar with names that stay inside? Reads a stream, keeps nothing.

The listener unpacks, and checks all of it again with everything else that an
archive can do; here a hostile or broken upload is refused while its sender
still listens.
"""

import tarfile
import zlib
from pathlib import PurePosixPath

ENTRIES_MOST = 100_000
UNPACKED_MOST = 4 << 30
_BLOCK = 512


class Unfit(Exception):
    """Why the archive is refused, for its sender."""


_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
#: A name, or the extended header that carries one, is not longer than this.
_NAMES_MOST = 1 << 20


class Checker:
    """Fed with the archive's chunks in a thread; raises Unfit at the first thing that is wrong."""

    def __init__(self) -> None:
        self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._buffer = bytearray()
        self._skip = 0
        self._kept: bytearray | None = None  #: the content of an extended header, being gathered
        self._kept_size = 0
        self._kept_type = b""
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
            if self._unpacked > UNPACKED_MOST:
                message = f"it holds more than {UNPACKED_MOST >> 30} GiB"
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
        self._skip = -(-entry.size // _BLOCK) * _BLOCK if entry.isreg() or names_more else 0
        if names_more:
            self._kept, self._kept_size, self._kept_type = bytearray(), entry.size, entry.type
            return
        if entry.ischr() or entry.isblk() or entry.isfifo():
            message = f"{entry.name[:200]!r} is a device"
            raise Unfit(message)
        _inside(entry.name)
        if entry.issym():
            _inside(str(PurePosixPath(entry.name).parent / entry.linkname))
        elif entry.islnk():
            _inside(entry.linkname)

    def _extended(self) -> None:
        """A long name of GNU's or POSIX's kind: the header behind it shows only a part."""
        content = bytes(self._kept or b"")[: self._kept_size]
        self._kept = None
        if self._kept_type in _LONG:
            if self._kept_type == tarfile.GNUTYPE_LONGNAME:
                _inside(content.rstrip(b"\0").decode("utf-8", "surrogateescape"))
            return
        for record in content.split(b"\n"):
            key, _, value = record.partition(b" ")[2].partition(b"=")
            if key in (b"path", b"GNU.sparse.name"):
                _inside(value.decode("utf-8", "surrogateescape"))


def _inside(name: str) -> None:
    """Raises Unfit for a name that is absolute or climbs out."""
    depth = 0
    for part in PurePosixPath(name).parts:
        depth += -1 if part == ".." else part != "/"
        if part == "/" or depth < 0:
            message = f"{name[:200]!r} lies outside the configuration"
            raise Unfit(message)
