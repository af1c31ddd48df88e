"""Whom a client of TLS trusts: one authority, or those of the host."""

import functools
import os
import ssl
from pathlib import Path


def only(*, file: str | os.PathLike[str] | None = None, pem: str = "") -> ssl.SSLContext:
    """Trusts the authority of this file or text alone. Raises OSError."""
    return _checked(ssl.create_default_context(cafile=file, cadata=pem or None))


def host() -> ssl.SSLContext:
    """Trusts SSL_CERT_FILE and SSL_CERT_DIR, or the system's authorities.

    To read them takes tens of milliseconds, so all clients of a process share
    them until the file is another.
    """
    paths = ssl.get_default_verify_paths()
    file, folder = paths.cafile or "", paths.capath or ""
    return _of_host(file, folder, Path(file).stat().st_mtime_ns if file else 0)


@functools.lru_cache(4)
def _of_host(_file: str, _folder: str, _changed_ns: int) -> ssl.SSLContext:
    return _checked(ssl.create_default_context())


def _checked(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
