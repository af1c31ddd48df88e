"""A server over TLS whose data outlives its programs: one release after another serves it at the same port."""

import ssl
import subprocess
import time
from pathlib import Path

import httpx

from kit.postgres import free_port
from kit.programs import Programs

#: No test asks the internet for engines.
_NOWHERE = {
    "TERRAPOD_ENGINES__TERRAFORM_URL": "http://127.0.0.1:9/terraform",
    "TERRAPOD_ENGINES__TOFU_URL": "http://127.0.0.1:9/tofu",
    "TERRAPOD_ENGINES__TOFU_INDEX_URL": "http://127.0.0.1:9/tofu.json",
}


class Server:
    """`terrapod-server up` without a listener. `database_url`: empty for the SQLite file in the data folder."""

    def __init__(self, folder: Path, database_url: str, **settings: str) -> None:
        self.data, self.log = folder / "data", folder / "up.log"
        self.port = free_port()
        self.host = f"localhost:{self.port}"
        self.settings = {**_NOWHERE, **settings}
        if database_url:
            self.settings["TERRAPOD_DATABASE_URL"] = database_url
        self.database_url = database_url or f"sqlite://{self.data / 'terrapod.sqlite3'}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, programs: Programs) -> None:
        """Returns once it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*programs.server, "up", "--no-listener", "--data", self.data, "--port", str(self.port)],
                env={**programs.environment, **self.settings}, stdout=log, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + 60
        while not self._is_ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        if not (self.data / "ca.pem").exists():
            return False
        try:
            return httpx.get(f"https://{self.host}/ready", verify=self.trust()).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """As a service manager does it; it must end well."""
        assert self.process
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.read_text()[-3000:]

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def command(self, programs: Programs, *argv: object, stdin: str = "") -> str:
        """What a command of `terrapod-server` printed; it must succeed."""
        return programs.call(programs.server, *argv, "--data", self.data, stdin=stdin, **self.settings)

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.data / "ca.pem")

    def client(self, token: str = "") -> httpx.Client:
        """A client with this token, or the first administrator's. To be closed."""
        token = token or (self.data / "admin-token").read_text()
        return httpx.Client(
            base_url=f"https://{self.host}/api/v2/",
            verify=self.trust(), headers={"Authorization": f"Bearer {token}"}, timeout=30,
        )  # fmt: skip
