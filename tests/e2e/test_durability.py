"""Nothing is lost: listener, keeper and engine are killed at the steps of an apply, and the state arrives."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import terraform_shim

from kit.remote import Remote, wait_for
from kit.site import BIN, Site

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


class Host:
    """A listener of a pool of its own, in a process that is started and killed by the test."""

    def __init__(self, site: Site, api: httpx.Client, folder: Path, terraform: Path) -> None:
        self.home, self.log = folder / "listener", folder / "listener.log"
        self.made, self.go = folder / "made", folder / "go"
        self.home.mkdir()
        files = f'["{terraform}", "{terraform_shim.library()}"]'
        (self.home / "listener.toml").write_text(
            f'poll_s = 5.0\n[[engines]]\ntool = "terraform"\nversion = "{terraform_shim.VERSION}"\n'
            f'path = "{terraform}"\nfiles = {files}\n'
        )
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
        done = subprocess.run(
            [BIN / "terrapod-listener", argv[0], "--home", self.home, *argv[1:]],
            env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "terrapod-listener", "run", "--home", self.home],
                env={"PATH": os.environ["PATH"]}, stdout=log, stderr=log,
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


@pytest.fixture
def api(site: Site) -> Iterator[httpx.Client]:
    with site.api() as client:
        yield client


@pytest.fixture
def host(site: Site, api: httpx.Client, tmp_path: Path, terraform: Path) -> Iterator[Host]:
    made = Host(site, api, tmp_path, terraform)
    made.start()
    made.until_heard()
    yield made
    made.go.touch()
    if made.process and made.process.poll() is None:
        made.kill()


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_an_apply_outlives_its_listener_and_ends_as_if_nothing_had_happened(host: Host) -> None:
    run = host.begin()
    keeper = host.keeper(run)
    host.kill()
    assert is_alive(keeper)
    host.start()
    wait_for(lambda: "goes on under its keeper" in host.log.read_text())
    host.go.touch()
    host.remote.until(run, "applied")
    assert host.made.read_text().split() == ["first", "slow", "last"]
    assert host.names() == ["first", "last", "slow"]
    log = host.remote.log(run, "apply")
    assert log.count("Apply complete!") == 1
    assert log.count("gone on") == 2, "the command, and what it printed"
    wait_for(lambda: not host.journal(run))
    assert not is_alive(keeper)
    assert not list((host.home / "spool").glob("*"))
    assert not (host.home / "work" / run).exists()


def test_an_apply_that_ended_while_no_listener_ran(host: Host) -> None:
    run = host.begin()
    keeper = host.keeper(run)
    host.kill()
    host.go.touch()
    wait_for(lambda: not is_alive(keeper))
    host.start()
    host.remote.until(run, "applied")
    assert host.names() == ["first", "last", "slow"]
    assert host.remote.log(run, "apply").count("Apply complete!") == 1


def test_a_host_that_lost_all_delivers_what_had_been_saved(host: Host) -> None:
    run = host.begin()
    pids = [host.engine(run), host.keeper(run)]
    host.kill()
    for pid in reversed(pids):  # the keeper first: it would tell the tale
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    host.start()
    shown = host.remote.until(run, "errored")
    assert "cut off" in shown["error-message"]
    assert "first" in host.names()
    assert host.made.read_text().split() == ["first", "slow"], "never run again"


def test_a_killed_keeper_takes_terraform_with_it_and_the_state_is_saved(host: Host) -> None:
    run = host.begin()
    engine = host.engine(run)
    os.kill(host.keeper(run), signal.SIGKILL)
    host.go.touch()
    shown = host.remote.until(run, "errored")
    assert "cut off" in shown["error-message"]
    assert not is_alive(engine)
    assert "first" in host.names()
    assert "last" not in host.made.read_text()


def test_a_state_is_on_the_server_while_the_apply_goes_on(host: Host) -> None:
    run = host.begin()
    wait_for(
        lambda: (
            "current-state-version" in host.remote.api.get(f"workspaces/{host.remote.id}").text
            and host.remote.api.get(f"workspaces/{host.remote.id}/current-state-version").status_code == 200
        )
    )
    assert "first" in host.names()
    assert host.remote.run(run)["status"] == "applying"
    host.go.touch()
    host.remote.until(run, "applied")
    assert host.names() == ["first", "last", "slow"]


def test_an_idle_listener_leaves_within_a_second(host: Host) -> None:
    assert host.stop() < 1.0


def test_the_second_signal_interrupts_and_the_state_arrives(host: Host) -> None:
    run = host.begin()
    assert host.process
    host.process.terminate()
    wait_for(lambda: "takes no more work" in host.log.read_text())
    host.process.terminate()
    shown = host.remote.until(run, "canceled")
    assert shown
    assert "first" in host.names()
    assert host.process.wait(30) == 0
    assert "last" not in host.made.read_text()
