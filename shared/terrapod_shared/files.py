"""Files that nobody else may read and that are on the disk when the call returns; paths without links."""

import errno
import os
import secrets
from pathlib import Path


def real_path(path: Path) -> Path:
    """The absolute path without links, whether or not anything is there. Raises OSError for a link that leads to itself.

    `Path.resolve` raises RuntimeError for such a link up to Python 3.12, and returns it from 3.13 on.
    """
    real = Path(os.path.realpath(path))
    try:
        real.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    return real


def write_private(path: Path, data: bytes) -> None:
    """Writes a file of mode 0600, whole or not at all; missing folders are made with mode 0700. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
