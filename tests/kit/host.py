"""A listener on a host of its own, which a test starts, kills and replaces, and an apply that waits for the test."""

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import httpx
import terraform_shim

from kit import scripted
from kit.programs import PRESENT, Programs
from kit.remote import Remote, wait_for

#: Each creation leaves a line in `made`; `slow` waits for `go`.
CONFIG = """
resource "terraform_data" "first" {{
  provisioner "local-exec" {{ command = "echo first >> {made}" }}
}}
resource "terraform_data" "slow" {{
  depends_on = [terraform_data.first]
  provisioner "local-exec" {{ command = "echo slow >> {made}; until [ -e {go} ]; do sleep 0.05; done; echo gone on" }}
}}
resource "terraform_data" "last" {{
  depends_on = [terraform_data.slow]
  provisioner "local-exec" {{ command = "echo last >> {made}" }}
}}
"""


class Address(Protocol):
    """Where a server is: its name with the port, and the folder with its authority's certificate."""

    data: Path
    host: str


class Host:
    """A listener in a process that is started and killed by the test; of a pool of its own, or of the one `beside` it."""

    def __init__(
        self,
        site: Address,
        api: httpx.Client,
        folder: Path,
        terraform: Path,
        beside: "Host | None" = None,
        programs: Programs = PRESENT,
    ) -> None:
        """`programs`: whose listener it is; a later `start` may be of another release."""
        self.programs = programs
        self.home, self.log = folder / "listener", folder / "listener.log"
        shared: Path = beside.made.parent if beside else folder / "shared"  # runs may change it, isolated as they are
        self.made: Path = shared / "made"
        self.go: Path = shared / "go"
        self.home.mkdir()
        shared.mkdir(exist_ok=True)
        shared.chmod(0o777)
        files = f'["{terraform}", "{terraform_shim.library()}"]'
        (self.home / "listener.toml").write_text(
            f'poll_s = 5.0\nwritable = ["{shared}"]\n{terraform_shim.settings()}[[engines]]\ntool = "terraform"\nversion = "{terraform_shim.VERSION}"\n'
            f'path = "{terraform}"\nfiles = {files}\n'
            f'[[engines]]\ntool = "terraform"\nversion = "{scripted.VERSION}"\n'
            f'path = "{scripted.program(folder / "bin")}"\n'
        )
        if beside:
            self.pool: str = beside.pool
        else:
            made = api.post("organizations/default/agent-pools", json={"data": {"attributes": {"name": folder.name}}})
            assert made.status_code == 201, made.text
            self.pool = made.json()["data"]["id"]
        token = api.post(
            f"agent-pools/{self.pool}/authentication-tokens", json={"data": {"attributes": {"description": "t"}}}
        )
        text = token.json()["data"]["attributes"]["token"]
        ca = str(site.data / "ca.pem")
        self.call("join", "--server", f"https://{site.host}", "--token", text, "--name", folder.name, "--ca", ca)
        self.process: subprocess.Popen[bytes] | None = None
        self.remote = Remote(
            api,
            **{"terraform-version": terraform_shim.VERSION, "execution-mode": "agent", "agent-pool-id": self.pool},
        )

    def call(self, *argv: str) -> str:
        return self.programs.call(self.programs.listener, argv[0], "--home", self.home, *argv[1:])

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.programs.listener, "run", "--home", self.home],
                env=self.programs.environment, stdout=log, stderr=log,
            )  # fmt: skip

    def until_heard(self) -> None:
        """The server knows of its engine."""
        listeners = f"agent-pools/{self.pool}/listeners"
        wait_for(lambda: terraform_shim.VERSION in self.remote.api.get(listeners).text)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """Seconds until it had left after a SIGTERM."""
        assert self.process
        asked = time.monotonic()
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-3000:]
        return time.monotonic() - asked

    def journal(self, run: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.home / "journal" / run / "journal.json").read_bytes())
            return found
        return {}

    def keeper(self, run: str) -> int:
        found: int = wait_for(lambda: self.journal(run).get("keeper"))
        return found

    def engine(self, run: str) -> int:
        child = self.home / "journal" / run / "child.json"
        pid: int = json.loads(child.read_bytes())["pid"]
        return pid

    def begin(self) -> str:
        """A run whose apply waits in its second resource."""
        self.remote.upload(main_tf=CONFIG.format(made=self.made, go=self.go))
        run = self.remote.begin()
        wait_for(lambda: self.made.exists() and "slow" in self.made.read_text())
        return run

    def state(self) -> dict[str, Any]:
        shown = self.remote.api.get(f"workspaces/{self.remote.id}/current-state-version").json()["data"]["attributes"]
        raw = self.remote.api.get(shown["hosted-state-download-url"], follow_redirects=True)
        found: dict[str, Any] = raw.json()
        return found

    def names(self) -> list[str]:
        return sorted(each["name"] for each in self.state()["resources"])


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
