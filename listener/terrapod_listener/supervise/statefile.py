"""State files that a run can write to: opened without following its links, judged, copied to the spool.

Standard library alone, without a module of ours: the keeper of an apply loads
it by its path, in a bare interpreter.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

_HEAD = 8192
_CHUNK = 1 << 20
#: Bytes of a state that is read or copied; a larger one stays where it is.
LARGEST = 2 << 30
#: Of a file that is not in terraform's form: quotes and brackets that are looked at, and bytes of what is kept of it.
_MARKS_MOST, _TOP_MOST, _TEXT_MOST = 4_000_000, 16 << 20, 4096
_IN_TEXT, _OUTSIDE = re.compile(rb'["\\]'), re.compile(rb'["{}\[\]]')
_OPENING = (b"{", b"[")


class Torn(ValueError):
    """The file is no whole state: its writer was killed, or still writes."""


def open_below(root: Path, path: Path) -> IO[bytes]:
    """A regular file below a folder that a run may write to; no link on the way is followed. Raises OSError."""
    *folders, name = path.relative_to(root).parts
    at = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        for part in folders:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def mark(file: IO[bytes], *, whole: bool = True) -> dict[str, Any]:
    """Serial, lineage and md5 of an open state file; of half a one too unless `whole`. Raises Torn, OSError.

    Nothing is read whole: it may be of any size, and full of holes.
    """
    size = file.seek(0, os.SEEK_END)
    if size > LARGEST:
        raise Torn(f"it has {size} bytes, and {LARGEST} are the most that are read")
    try:
        serial, lineage = _facts(file, whole)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise Torn(str(error)) from None
    md5 = hashlib.md5(usedforsecurity=False)
    file.seek(0)
    while chunk := file.read(_CHUNK):
        _check(chunk, whole=whole)
        md5.update(chunk)
    return {"serial": serial, "lineage": lineage, "md5": md5.hexdigest()}


def _check(chunk: bytes, *, whole: bool) -> None:
    """A hole reads as NULs, which no JSON text has. Raises Torn."""
    if whole and b"\0" in chunk:
        raise Torn("it holds NUL bytes")


def _facts(file: IO[bytes], whole: bool) -> tuple[int, str]:
    """terraform writes serial and lineage first, and ends with a brace at the margin; another writer's file is scanned."""
    file.seek(0)
    head = file.read(_HEAD)
    serial = re.search(rb'^[ \t]*"serial":[ \t]*(\d+)', head, re.MULTILINE)
    lineage = re.search(rb'^[ \t]*"lineage":[ \t]*"([^"\\]*)"', head, re.MULTILINE)
    file.seek(-min(3, file.seek(0, os.SEEK_END)), os.SEEK_END)
    is_whole = file.read() == b"\n}\n" or not whole
    if is_whole and serial and lineage and head.find(b'"outputs"') > max(serial.end(), lineage.end()):
        return int(serial[1]), lineage[1].decode()
    file.seek(0)
    document = json.loads(_skeleton(file))
    return int(document["serial"]), str(document["lineage"])


def _skeleton(file: IO[bytes]) -> bytes:
    """A JSON object without what is in its members: nested ones are null, long texts empty. Raises ValueError.

    In one pass and constant memory, whatever its size and depth. Of what is left
    out only quotes and brackets are looked at: the rest is for the server to judge.
    """
    out, depth, marks, begin, is_text, skip = bytearray(), 0, 0, 0, False, 0
    while chunk := file.read(_CHUNK):
        _check(chunk, whole=True)
        start, look, skip = 0, skip, 0
        while found := (_IN_TEXT if is_text else _OUTSIDE).search(chunk, look):
            sign, look = found[0], found.end()
            marks += 1
            if marks > _MARKS_MOST or depth < 0 or len(out) > _TOP_MOST:
                raise ValueError("it is not in terraform's form, and too much is in it to be looked through")
            if sign == b"\\":
                skip = int(look == len(chunk))  # the letter after it may be in the next chunk
                look += 1
                continue
            if depth <= 1 and len(out) - begin <= _TEXT_MOST:
                out += chunk[start : look - 1]
            start = look
            if sign == b'"':
                if is_text and len(out) - begin > _TEXT_MOST:
                    del out[begin:]
                out += sign * (depth <= 1)
                is_text, begin = not is_text, len(out)
            elif sign in _OPENING:
                out += (sign, b"null", b"")[min(depth, 2)]
                depth, begin = depth + 1, len(out)
            else:
                depth, begin = depth - 1, len(out)
                out += sign * (depth <= 0)
        if depth <= 1 and len(out) - begin <= _TEXT_MOST:
            out += chunk[start:]
    return bytes(out)


def newest(root: Path, candidates: Iterable[Path], *, whole: bool = True) -> tuple[Path, dict[str, Any]] | None:
    """Of several files, the whole one with the highest serial; of equals the first. None where there is none."""
    best: tuple[Path, dict[str, Any]] | None = None
    for path in candidates:
        try:
            with open_below(root if path.is_relative_to(root) else path.parent, path) as file:
                found = mark(file, whole=whole)
        except (OSError, Torn):
            continue
        if best is None or (found["lineage"] == best[1]["lineage"] and found["serial"] > best[1]["serial"]):
            best = path, found
    return best


def torn(root: Path, candidates: Iterable[Path]) -> int | None:
    """Size in bytes of the largest of these files that is there and no whole state; None where there is none."""
    sizes = []
    for path in candidates:
        try:
            with open_below(root if path.is_relative_to(root) else path.parent, path) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    mark(file)
                except Torn:
                    sizes.append(size)
        except OSError:
            continue
    return max(sizes, default=None)


def keep(root: Path, state: Path, target: Path, *, whole: bool = True) -> dict[str, Any]:
    """Copies a whole state, so that it is on the disk when this returns; its mark. Raises OSError, Torn.

    A file that changes while it is copied is Torn.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open_below(root, state) as source:
            before = os.fstat(source.fileno())
            handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w+b") as file:
                if before.st_size > LARGEST:
                    raise Torn(f"it has {before.st_size} bytes, and {LARGEST} are the most that are copied")
                left = before.st_size  # what is written meanwhile makes it torn
                while left > 0 and (chunk := source.read(min(left, _CHUNK))):
                    _check(chunk, whole=whole)
                    file.write(chunk)
                    left -= len(chunk)
                file.flush()
                os.fsync(file.fileno())
                found = mark(file, whole=whole)
            after = os.fstat(source.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise Torn("it changed meanwhile")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    for folder in (target.parent, target.parent.parent):
        sync(folder)
    return found


def sync(folder: Path) -> None:
    """A folder's entries are on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
