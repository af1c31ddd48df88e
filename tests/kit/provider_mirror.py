"""A network mirror of providers over TLS on loopback, as terraform asks it; its packages hold scripts."""

import base64
import contextlib
import hashlib
import io
import json
import ssl
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import trustme

from terrapod_shared.programs import here

ADDRESS = "registry.example.org/acme/fake"
MAIN = 'terraform {\n  required_providers {\n    fake = { source = "%s" }\n  }\n}\n' % ADDRESS  # noqa: UP031
PROGRAM = b"#!/bin/sh\nexit 1\n"


def package(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def h1(files: dict[str, bytes]) -> str:
    """The digest of a package as lock files have it."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items())]
    return f"h1:{base64.b64encode(hashlib.sha256(''.join(lines).encode()).digest()).decode()}"


@dataclass
class ProviderMirror:
    """What it serves, and what was asked for."""

    url: str = ""
    ca: str = ""  #: file of its authority
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def publish(self, version: str, content: dict[str, bytes] | None = None) -> str:
        """Adds a version for this platform; its digest."""
        files = content or {f"terraform-provider-fake_v{version}": PROGRAM + version.encode(), "LICENSE.txt": b"text"}
        base, name = f"/{ADDRESS}", f"{version}.zip"
        self.files[f"{base}/{name}"] = package(files)
        known = json.loads(self.files.get(f"{base}/index.json", b'{"versions": {}}'))
        known["versions"][version] = {}
        self.files[f"{base}/index.json"] = json.dumps(known).encode()
        archive = {"url": name, "hashes": [h1(files)]}
        self.files[f"{base}/{version}.json"] = json.dumps({"archives": {"_".join(here()): archive}}).encode()
        return h1(files)

    @property
    def downloads(self) -> int:
        return sum(path.endswith(".zip") for path in self.asked)


@contextlib.contextmanager
def provider_mirror(folder: Path) -> Iterator[ProviderMirror]:
    mirror = ProviderMirror()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.asked.append(self.path)
            body = mirror.files.get(self.path)
            self.send_response(200 if body is not None else 404)
            kind = "application/zip" if self.path.endswith(".zip") else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    mirror.ca = str(folder / "mirror-ca.pem")
    authority.cert_pem.write_to_path(mirror.ca)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    mirror.url = f"https://localhost:{server.server_port}"
    try:
        yield mirror
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
