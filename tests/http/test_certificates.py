"""A renewed certificate is used without a restart; one that cannot be used changes nothing, and is told of."""

import asyncio
import os
import shutil
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from kit.postgres import free_port
from kit.process import Process, metric
from kit.serving import Running, until
from terrapod_server import app, serving
from terrapod_server.commands import tls as authority
from terrapod_server.config.load import load
from terrapod_server.config.settings import Tls
from terrapod_server.store.cipher import KeyRing

END = 'terrapod_certificate_expiry_timestamp_seconds{certificate="server"}'


class Issued:
    """Certificates of one authority, which come to the folder that a server reads."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._ring = folder, KeyRing.create(folder / "keys-of-authority")
        self.certificate, self.key = self.again("127.0.0.1")
        self.ca = folder / "ca.pem"

    def again(self, host: str) -> tuple[Path, Path]:
        """One more for that name; the same two files."""
        for file in authority.files(self._folder):
            file.unlink(missing_ok=True)
        return authority.ensure(self._folder, host, self._ring, ())

    @property
    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


def served(port: int) -> int:
    """Serial number of the certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain, context.wrap_socket(plain) as tls:
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


@pytest.fixture
async def tls(tmp_path: Path, migrated_sqlite: Path) -> AsyncIterator[tuple[Process, Running, Issued]]:
    data, issued = tmp_path / "data", Issued(tmp_path)
    data.mkdir()
    shutil.copyfile(migrated_sqlite, data / "terrapod.sqlite3")
    settings = {"TERRAPOD_TLS__CERTIFICATE": str(issued.certificate), "TERRAPOD_TLS__KEY": str(issued.key)}
    process = Process(data, f"sqlite://{data / 'terrapod.sqlite3'}", **settings)
    process.over_tls(issued.ca)
    async with process.prepared() as server:
        await process.start()
        yield process, server, issued


async def test_a_renewed_certificate_is_used_without_a_restart(tls: tuple[Process, Running, Issued]) -> None:
    process, server, issued = tls
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port, ssl=process.verify)
    old_end = await metric(server, END)
    assert await asyncio.to_thread(served, process.port) == issued.serial
    issued.again("127.0.0.1")
    process.signal(signal.SIGHUP)

    async def is_new() -> bool:
        return await asyncio.to_thread(served, process.port) == issued.serial

    await until(is_new)
    assert await metric(server, END) >= old_end
    # a connection that was open goes on
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 200 \r\n"
    writer.close()
    # what is no certificate of the key changes nothing, once it is looked at, and is told of
    good, before = issued.certificate.read_bytes(), issued.serial
    issued.certificate.write_bytes(issued.ca.read_bytes())
    process.signal(signal.SIGHUP)

    async def is_refused() -> bool:
        return await metric(server, "terrapod_certificate_refused") == 1

    await until(is_refused)
    assert await asyncio.to_thread(served, process.port) == before
    assert f"stays: {issued.certificate} and {issued.key} are no certificate with its key" in process.log
    issued.certificate.unlink()
    process.signal(signal.SIGHUP)

    async def is_told() -> bool:
        return f"the certificate in use stays: {issued.certificate}: No such file or directory" in process.log

    await until(is_told)
    assert await asyncio.to_thread(served, process.port) == before
    # a pipe that nobody writes into is not waited for
    os.mkfifo(issued.certificate)
    process.signal(signal.SIGHUP)

    async def is_no_file() -> bool:
        return f"{issued.certificate} is no regular file" in process.log

    await until(is_no_file)
    issued.certificate.unlink()
    assert "Traceback" not in process.log
    # without a signal, once the files rest
    issued.certificate.write_bytes(good)
    issued.again("127.0.0.1")
    await until(is_new)
    assert await metric(server, "terrapod_certificate_refused") == 0
    process.terminate()
    await process.ended(30)


async def test_a_server_without_tls_takes_no_harm_of_a_signal(tmp_path: Path, migrated_sqlite: Path) -> None:
    shutil.copyfile(migrated_sqlite, tmp_path / "terrapod.sqlite3")
    process = Process(tmp_path, f"sqlite://{tmp_path / 'terrapod.sqlite3'}")
    async with process.prepared() as server:
        await process.start()
        process.signal(signal.SIGHUP)

        async def is_told() -> bool:
            return "there is no certificate to load again" in process.log

        await until(is_told)
        assert (await server.api.get(f"{server.url}/health")).status_code == 200


async def test_a_server_that_cannot_load_its_certificate_is_never_ready(tmp_path: Path, migrated_sqlite: Path) -> None:
    """The files were good when the settings were checked: `up` makes them, or another program writes them meanwhile."""
    shutil.copyfile(migrated_sqlite, tmp_path / "terrapod.sqlite3")
    issued = Issued(tmp_path)
    config = load(
        {}, None, data=str(tmp_path), database_url=f"sqlite://{tmp_path / 'terrapod.sqlite3'}", port=free_port()
    )
    config = msgspec.structs.replace(config, tls=Tls(certificate=str(issued.certificate), key=str(issued.key)))
    issued.certificate.write_text("no certificate")
    stop, ready = asyncio.Event(), asyncio.Event()
    with pytest.raises(app.Unusable, match="are no certificate with its key"):
        await asyncio.wait_for(serving.serve_until(config, stop, ready), 30)
    assert not ready.is_set()
