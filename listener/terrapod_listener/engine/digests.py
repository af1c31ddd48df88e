"""Digests of files and of the host's own engines, remembered for as long as a file does not change."""

import hashlib
import time
from pathlib import Path

from terrapod_listener.config import LocalEngine

#: How old a file's last change must be for its digest to be remembered: one in the same instant of the
#: file system's clock as the one before would not be seen.
_SETTLED_NS = 1_000_000_000


class Digests:
    """SHA-256, worked out once for as long as inode, size and both times stay; an engine has 100 MB, a run a second.

    Whoever writes to a file can set its size and its time of modification, but not that of its last change.
    """

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int, int, int], str]] = {}

    def of_file(self, path: Path) -> str:
        """Of one file. To be called in a thread."""
        now = path.stat()
        mark = (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
        known = self._known.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time_ns() - now.st_ctime_ns > _SETTLED_NS:
            self._known[path] = (mark, digest)
        return digest

    def is_remembered(self, path: Path) -> bool:
        return path in self._known

    def of_engine(self, engine: LocalEngine) -> str:
        """Over name and content of all its files, in the order of their names. To be called in a thread."""
        digest = hashlib.sha256()
        for path in sorted(Path(name) for name in (engine.files or [engine.path])):
            digest.update(f"{path.name}\0{self.of_file(path)}\n".encode())
        return digest.hexdigest()
