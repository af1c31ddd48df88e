"""A release site on loopback: index, signed checksums and zips, in the forms of the two publishers."""

import contextlib
import hashlib
import io
import json
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kit.openpgp import Signer


def release_zip(tool: str, content: bytes = b"#!/bin/sh\necho terraform\n") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(tool, content)
        archive.writestr("LICENSE.txt", "text")
    return buffer.getvalue()


@dataclass
class ReleaseSite:
    """What it serves, and how often each path was asked for."""

    url: str = ""
    signer: Signer = field(default_factory=Signer)
    keys: str = ""  #: file of the signer's public key
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status_of_missing: int = 404
    #: While it is clear, zips are not answered.
    gate: threading.Event = field(default_factory=threading.Event)

    def release(
        self,
        tool: str,
        version: str,
        content: bytes | None = None,
        *,
        listed: str = "",
        signer: Signer | None = None,
        signature: str = "",
    ) -> bytes:
        """Adds a release; `listed` is another digest in its checksums than its own, `signature` another name of that file."""
        raw = content or release_zip(tool)
        name = f"{tool}_{version}_linux_amd64.zip"
        base = f"/terraform/{version}" if tool == "terraform" else f"/tofu/v{version}"
        self.files[f"{base}/{name}"] = raw
        digest = listed or hashlib.sha256(raw).hexdigest()
        sums = f"{digest}  {name}\n".encode()
        self.files[f"{base}/{tool}_{version}_SHA256SUMS"] = sums
        suffix = signature or (".gpgsig" if tool == "tofu" else ".sig")
        self.files[f"{base}/{tool}_{version}_SHA256SUMS{suffix}"] = (signer or self.signer).sign(sums)
        return raw

    def index(self, *versions: str) -> None:
        self.files["/terraform/index.json"] = json.dumps(
            {"name": "terraform", "versions": {v: {} for v in versions}}
        ).encode()
        self.files["/tofu/api.json"] = json.dumps({"versions": [{"id": v} for v in versions]}).encode()

    @property
    def engines(self) -> dict[str, str]:
        """The settings that point here."""
        return {
            "terraform_url": f"{self.url}/terraform",
            "tofu_url": f"{self.url}/tofu",
            "tofu_index_url": f"{self.url}/tofu/api.json",
            "terraform_keys": self.keys,
            "tofu_keys": self.keys,
        }


@contextlib.contextmanager
def release_site() -> Iterator[ReleaseSite]:
    site = ReleaseSite()
    site.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            if self.path.endswith(".zip"):
                site.gate.wait()
            body = site.files.get(self.path)
            self.send_response(200 if body is not None else site.status_of_missing)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
                self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    folder = tempfile.TemporaryDirectory()
    site.keys = site.signer.write(Path(folder.name) / "keys.asc")
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        folder.cleanup()
