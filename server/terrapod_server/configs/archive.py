"""Is this a configuration at all: a gzip tar with names that stay inside? Reads a stream, keeps nothing.

The listener unpacks, and checks all of it again with everything else that an
archive can do; here a hostile or broken upload is refused while its sender
still listens.
"""

import io
import tarfile
import zlib
from pathlib import PurePosixPath

ENTRIES_MOST = 100_000
UNPACKED_MOST = 4 << 30
_BLOCK = 512


class Unfit(Exception):
    """Why the archive is refused, for its sender."""


class Checker:
    """Fed with the archive's chunks in a thread; raises Unfit at the first thing that is wrong."""

    def __init__(self) -> None:
        self._gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._buffer = bytearray()
        self._skip = 0
        self._entries = 0
        self._unpacked = 0
        self._ended = False

    def feed(self, chunk: bytes) -> None:
        data = chunk
        while data:
            try:
                plain = self._gzip.decompress(data, 1 << 20)
            except zlib.error as error:
                message = f"not a gzip archive: {error}"
                raise Unfit(message) from None
            self._unpacked += len(plain)
            if self._unpacked > UNPACKED_MOST:
                message = f"it holds more than {UNPACKED_MOST >> 30} GiB"
                raise Unfit(message)
            self._headers(plain)
            data = self._gzip.unconsumed_tail
            if self._gzip.eof:
                return

    def end(self) -> None:
        """To be called after the last chunk."""
        if not self._gzip.eof:
            message = "the archive is cut off"
            raise Unfit(message)
        if self._skip or self._buffer.strip(b"\0"):
            message = "the tar inside is cut off"
            raise Unfit(message)

    def _headers(self, plain: bytes) -> None:
        at = 0
        while at < len(plain) and not self._ended:
            if self._skip:
                step = min(self._skip, len(plain) - at)
                self._skip -= step
                at += step
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
        carries = entry.isreg() or entry.type in (
            tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
        )  # fmt: skip
        if entry.size < 0:
            message = "an entry has a negative size"
            raise Unfit(message)
        self._skip = -(-entry.size // _BLOCK) * _BLOCK if carries else 0
        if entry.ischr() or entry.isblk() or entry.isfifo():
            message = f"{entry.name[:200]!r} is a device"
            raise Unfit(message)
        path = PurePosixPath(entry.name)
        if path.is_absolute() or ".." in path.parts:
            message = f"{entry.name[:200]!r} lies outside the configuration"
            raise Unfit(message)


def check(data: bytes) -> None:
    """The same for an archive that is in memory."""
    checker = Checker()
    reader = io.BytesIO(data)
    while chunk := reader.read(1 << 16):
        checker.feed(chunk)
    checker.end()
