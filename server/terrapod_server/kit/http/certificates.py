"""The server's certificate: loaded again when its files change, so that no renewal needs a restart.

New connections get the new one; those that are open keep what they have. Files
that cannot be used change nothing: the certificate in use stays, and the log
and the metrics say so.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from terrapod_shared.operator_errors import explain_os_error

log = logging.getLogger(__name__)
#: How often the files are looked at.
LOOK_S = 5.0
_Mark = tuple[tuple[int, ...], ...]


class Certificate:
    """Certificate and key of two PEM files; `make` loads them into a new context."""

    def __init__(self, certificate: Path, key: Path, make: Callable[[], ssl.SSLContext]) -> None:
        self._files, self._make = (certificate, key), make
        self._context: ssl.SSLContext | None = None
        self._mark: _Mark = ()  #: of the files as they were when they were last loaded, or refused
        self._lock = asyncio.Lock()
        #: Unix time of the certificate's end.
        self.ends_at = 0.0
        #: Whether the files hold something that cannot be used.
        self.is_refused = False

    @property
    def context(self) -> ssl.SSLContext:
        """What new connections are to use. To be called once `load` has returned."""
        if self._context is None:
            message = "no certificate is loaded"
            raise RuntimeError(message)
        return self._context

    @property
    def is_loaded(self) -> bool:
        return self._context is not None

    async def load(self) -> None:
        """Loads the files. Raises OSError (ssl.SSLError is one) and ValueError for those that cannot be used."""
        async with self._lock:
            self._mark = await asyncio.to_thread(self._look)
            self._context, self.ends_at = await asyncio.to_thread(self._read)

    async def reload(self) -> None:
        """Loads the files again; keeps what there is where they cannot be used."""
        try:
            await self.load()
        except (OSError, ValueError) as error:
            self.is_refused = True
            log.error("the certificate in use stays: %s", self.why_refused(error))  # noqa: TRY400  no stack trace: it is the operator's to mend
        else:
            self.is_refused = False
            log.info("the certificate of %s is loaded, and good until %s", self._files[0], self._shown_end())

    def why_refused(self, error: OSError | ValueError) -> str:
        """What `load` raised, in words."""
        if isinstance(error, OSError) and error.filename is not None:
            return explain_os_error(error)
        certificate, key = self._files
        return f"{certificate} and {key} are no certificate with its key: {error}"

    async def watch(self) -> None:
        """Loads the files again whenever they have changed, and then not for one look: a renewal writes one after the other."""
        seen = self._mark
        while True:
            await asyncio.sleep(LOOK_S)
            now = await asyncio.to_thread(self._look)
            if now == seen and now != self._mark:
                await self.reload()
            seen = now

    def _look(self) -> _Mark:
        found: list[tuple[int, ...]] = []
        for file in self._files:
            try:
                status = os.stat(file)  # noqa: PTH116  what a link leads to, as it is opened
            except OSError as error:
                found.append((error.errno or 0,))
            else:
                found.append((status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))
        return tuple(found)

    def _read(self) -> tuple[ssl.SSLContext, float]:
        for file in self._files:
            if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would be waited for
                message = f"{file} is no regular file"
                raise ValueError(message)
        certificate, _ = (file.read_bytes() for file in self._files)  # which says of which file an error is
        # a key with a passphrase is refused: whoever makes the context would ask for it on a terminal, and wait
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files, lambda: "")
        return self._make(), end_of(certificate)

    def _shown_end(self) -> str:
        return x509.load_pem_x509_certificate(self._files[0].read_bytes()).not_valid_after_utc.isoformat()


def end_of(pem: bytes) -> float:
    """Unix time of the end of a PEM text's first certificate. Raises ValueError."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
