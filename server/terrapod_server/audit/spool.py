"""Entries that the database would not take: lines of a file of mode 0600, until it does."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from terrapod_server.audit.rules import Entry


class Spool:
    """The file of one process, locked as long as it lives. All methods block; call them from threads."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._handle = -1
        self.is_empty = True

    def append(self, entries: Sequence[Entry]) -> None:
        """They are on the disk when the call returns, all or none. Raises OSError."""
        if self._handle < 0:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        size = os.fstat(self._handle).st_size
        data = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
        try:
            while data:
                data = data[os.write(self._handle, data) :]
            os.fsync(self._handle)
        except OSError:
            os.ftruncate(self._handle, size)
            raise
        self.is_empty = False

    def read(self, at: int, most: int) -> tuple[list[Entry], int]:
        """Some entries from a byte offset, and the offset behind them."""
        return read(self.file, at, most)

    def clear(self) -> None:
        os.ftruncate(self._handle, 0)
        self.is_empty = True

    def close(self) -> None:
        """The file goes if nothing waits in it."""
        if self._handle >= 0:
            if self.is_empty:
                self.file.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1


def read(file: Path, at: int, most: int) -> tuple[list[Entry], int]:
    """Some entries from a byte offset, and the offset behind them. A line that was cut off is passed over."""
    found = []
    with file.open("rb") as opened:
        opened.seek(at)
        for line in opened:
            at += len(line)
            try:
                found.append(msgspec.json.decode(line, type=Entry))
            except msgspec.DecodeError:
                continue
            if len(found) == most:
                break
    return found, at


def left_behind(folder: Path) -> Iterator[Path]:
    """Spools with entries of processes that are gone; each is locked while the caller has it."""
    for file in sorted(folder.glob("*.spool")):
        handle = os.open(file, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_size:
                yield file
        except BlockingIOError:  # its process lives
            continue
        finally:
            os.close(handle)


__all__ = ["Spool", "left_behind", "read"]
