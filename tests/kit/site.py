"""`terrapod-server up` as real processes, and the real terraform against it."""

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import pexpect
import pytest
import readiness
import terraform_shim

from kit import scripted
from kit.postgres import free_port

BIN = Path(sys.executable).parent
#: In the environment of server and listener; no run may see it.
CANARY = "canary-of-the-hosts-environment"
CLOUD = """\
terraform {{
  cloud {{
    hostname     = "{host}"
    organization = "default"
    workspaces {{ {workspaces} }}
  }}
}}
"""
REMOTE = """\
terraform {{
  backend "remote" {{
    hostname     = "{host}"
    organization = "default"
    workspaces {{ name = "{name}" }}
  }}
}}
"""


#: Marks a test that runs on a site of each database.
both = pytest.mark.parametrize("site", ["sqlite", "postgres"], indirect=True)


def terraform_program(folder: Path) -> Path:
    return terraform_shim.write(folder)


@dataclass
class Done:
    """What a command printed, and its exit code. Tests look at both."""

    code: int
    out: str


class Site:
    """Server and listener on this host."""

    def __init__(
        self, folder: Path, terraform: Path, *, options: Sequence[str] = ("--no-path-engines",), **settings: str
    ) -> None:
        """`settings` go into the environment of the server, and so of its listener's start."""
        self.folder, self.terraform, self.options, self.settings = folder, terraform, options, settings
        self.data = folder / "data"
        self.shared = folder / "shared"  #: what runs may change besides their own folder: isolation hides the rest
        self.shared.mkdir(parents=True)
        self.shared.chmod(0o777)
        self.port = free_port()
        self.host = f"localhost:{self.port}"
        self.rc = self.data / "terraform.rc"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        home = self.data / "listener"
        home.mkdir(parents=True, mode=0o700)
        (home / "listener.toml").write_text(self.listener_settings())
        self.start()
        return self

    def listener_settings(self) -> str:
        """What stands in `listener.toml`."""
        files = f'["{self.terraform}", "{terraform_shim.library()}"]'
        return (
            f'capacity = 3\nwritable = ["{self.shared}"]\n{terraform_shim.settings()}[[engines]]\ntool = "terraform"\nversion = "{terraform_shim.VERSION}"\n'
            f'path = "{self.terraform}"\nfiles = {files}\n'
            f'[[engines]]\ntool = "terraform"\nversion = "{scripted.VERSION}"\n'
            f'path = "{scripted.program(self.folder / "bin")}"\n'
        )

    def start(self) -> None:
        """Returns once its listener has an engine to offer."""
        before = self._listener()
        with (self.folder / "up.log").open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "terrapod-server", "up", "--data", str(self.data), "--port", str(self.port), *self.options],
                stdout=log,
                stderr=log,
                env={**os.environ, "AWS_SECRET_ACCESS_KEY": CANARY, "TERRAPOD_TOKEN": CANARY, **self.settings},
            )
        until = time.monotonic() + 30
        while self._listener() == before or not self._is_ready():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.05)

    def _listener(self) -> str:
        lock = self.data / "listener" / "lock"
        return lock.read_text() if lock.exists() else ""

    def _is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return readiness.has_engine(self.data, self.host)
        return False

    def kill(self) -> None:
        """The server's process alone, as a crash does."""
        assert self._process
        self._process.kill()
        self._process.wait()

    def move(self) -> None:
        """Ends it well; the next start is at another port."""
        assert self._process
        self._process.terminate()
        assert self._process.wait(60) == 0, self.log
        self.port = free_port()
        self.host = f"localhost:{self.port}"

    @property
    def pid(self) -> int:
        """Of the server."""
        assert self._process
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        assert self._process
        ended = self._process.poll()
        assert ended is None, f"ended by itself with {ended}:\n{self.log}"
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        assert code == 0, f"SIGTERM was answered with {code}:\n{self.log}"
        left = subprocess.run(["pgrep", "-f", str(self.data)], capture_output=True, text=True, check=False)
        assert left.stdout == "", f"left running: {left.stdout}"

    @property
    def log(self) -> str:
        return (self.folder / "up.log").read_text()

    @property
    def token(self) -> str:
        return (self.data / "admin-token").read_text()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "SSL_CERT_FILE": str(self.data / "ca.pem"),
            "TF_CLI_CONFIG_FILE": str(self.rc),
            "CHECKPOINT_DISABLE": "1",
        }

    def signal_server(self, number: signal.Signals) -> None:
        """To the server's process alone; the listener has one of its own."""
        assert self._process
        self._process.send_signal(number)

    def api(self) -> httpx.Client:
        """A client with the first administrator's token."""
        return httpx.Client(
            base_url=f"https://{self.host}/api/v2/",
            verify=ssl.create_default_context(cafile=self.data / "ca.pem"),
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=30,
        )

    def example(self, name: str, body: str, *, workspaces: str = "", head: str = "") -> Path:
        """A folder with a configuration whose cloud block names the workspace."""
        folder = self.folder / "examples" / name
        folder.mkdir(parents=True)
        block = head or CLOUD.format(host=self.host, workspaces=workspaces or f'name = "{name}"')
        (folder / "main.tf").write_text(block + body)
        return folder

    def remote(self, name: str, body: str) -> Path:
        return self.example(f"{name}-remote", body, head=REMOTE.format(host=self.host, name=name))

    def run(self, folder: Path, *argv: str, program: Path | None = None, **environment: str) -> Done:
        done = subprocess.run(
            [str(program or self.terraform), *argv], cwd=folder, env={**self.environment, **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300, check=False,
        )  # fmt: skip
        return Done(done.returncode, done.stdout.decode("utf-8", "replace"))

    def ok(self, folder: Path, *argv: str, **environment: Any) -> str:
        done = self.run(folder, *argv, **environment)
        assert done.code == 0, f"{argv}: {done.code}\n{done.out}\n{self.log[-3000:]}"
        return done.out

    def interactive(self, folder: Path, *argv: str) -> "pexpect.spawn[str]":
        """The command on a terminal of its own."""
        return pexpect.spawn(
            str(self.terraform), list(argv), cwd=str(folder), env=self.environment, timeout=60, encoding="utf-8"
        )
