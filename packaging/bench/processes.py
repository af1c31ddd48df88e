"""Processes under measurement: a server, with or without a listener, on a port of loopback."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

BIN = Path(sys.executable).parent
START_S = 30.0
MIB = 1 << 20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def memory(pid: int, name: str = "VmRSS") -> float:
    """A figure of /proc/PID/status, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def processor_s(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _environment() -> dict[str, str]:
    """No settings of the user's, and release sites that are nowhere: nothing leaves loopback. One user makes the whole
    load, so there are no rate limits for users."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TERRAPOD_")}
    nowhere = {"TERRAFORM_URL": "terraform", "TOFU_URL": "tofu", "TOFU_INDEX_URL": "tofu.json"}
    sites = {f"TERRAPOD_ENGINES__{name}": f"http://127.0.0.1:9/{path}" for name, path in nowhere.items()}
    return kept | sites | {"TERRAPOD_RATE_LIMITS__USER_PER_S": "0"}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Site:
    """`terrapod-server up`, and a client with the administrator's token."""

    def __init__(
        self, data: Path, *, tls: bool = False, listener: bool = False, settings: dict[str, str] | None = None
    ) -> None:
        self.data, self.port, self._tls = data, free_port(), tls
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}"
        self._options = ([] if tls else ["--plain-http"]) + ([] if listener else ["--no-listener"])
        self._listener, self._environment = listener, _environment() | (settings or {})
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        self.data.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with (self.data / "log").open("ab") as log:
            command = [str(BIN / "terrapod-server"), "up", "--data", str(self.data), "--port", str(self.port)]
            self.process = subprocess.Popen([*command, *self._options], env=self._environment, stdout=log, stderr=log)
        try:
            self._await(self._answers, begun)
            self.ready_s = time.monotonic() - begun
            self._await((self.data / "admin-token").exists, begun)
            if self._listener:
                self._await((self.data / "listener" / "identity.json").exists, begun)
        except BaseException:
            self.process.kill()
            raise
        self.token = (self.data / "admin-token").read_text().strip()
        self.api = httpx.Client(
            base_url=f"{self.url}/api/v2/",
            headers={"Authorization": f"Bearer {self.token}"},
            verify=str(self.data / "ca.pem") if self._tls else True,
            timeout=120,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def _answers(self) -> bool:
        """Whether /ready says yes; over TLS the certificate is of no interest here."""
        try:
            return httpx.get(f"{self.url}/ready", verify=False, timeout=5).status_code == 200  # noqa: S501
        except httpx.TransportError:
            return False

    def _await(self, what: Any, begun: float) -> None:
        while not what():
            if self.process.poll() is not None or time.monotonic() - begun > START_S:
                sys.exit(f"the server did not start:\n{(self.data / 'log').read_text()}")
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, path: str) -> Any:
        return self.api.get(path).raise_for_status().json()["data"]

    def post(self, path: str, kind: str = "", attributes: Any = None, **related: tuple[str, str]) -> Any:
        data: dict[str, Any] = {"type": kind, "attributes": attributes or {}}
        data["relationships"] = {
            name.replace("_", "-"): {"data": {"type": other, "id": key}} for name, (other, key) in related.items()
        }
        answer = self.api.post(path, json={"data": data})
        if answer.is_error:
            sys.exit(f"POST {path}: {answer.status_code} {answer.text}")
        return json.loads(answer.content)["data"]

    def workspace(self, name: str, **attributes: Any) -> str:
        return str(self.post("organizations/default/workspaces", "workspaces", {"name": name, **attributes})["id"])

    def configuration(self, workspace_id: str, archive: bytes) -> str:
        made = self.post(
            f"workspaces/{workspace_id}/configuration-versions", "configuration-versions", {"auto-queue-runs": False}
        )
        self.api.put(made["attributes"]["upload-url"], content=archive).raise_for_status()
        return str(made["id"])


class Watched:
    """The greatest resident memory of a process during a block, over what it was before."""

    def __init__(self, pid: int) -> None:
        self.pid, self.before, self.most = pid, memory(pid), 0.0

    @contextmanager
    def during(self) -> Iterator[None]:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
        yield
        self.most = memory(self.pid, "VmHWM")

    @property
    def growth(self) -> float:
        return self.most - self.before


def clean_environment(data: Path) -> dict[str, str]:
    """What the CLI needs to trust and call a site; nothing of the user's TF_ variables."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("TF_")},
        "SSL_CERT_FILE": str(data / "ca.pem"),
        "TF_CLI_CONFIG_FILE": str(data / "terraform.rc"),
        "CHECKPOINT_DISABLE": "1",
    }
