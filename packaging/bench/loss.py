"""How soon a dead listener is noticed, and its plan runs at another one; with the terms that everybody has."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import terraform_shim
from latency import tar
from processes import BIN, Site
from report import Figure, Section

TEXT = (
    "Two real listeners and the real terraform, whose `plan` waits; the listener that has it is ended by SIGKILL. From then until "
    "the server says that the lease was lost and the plan is queued again, until it shows the listener as offline, and until "
    "terraform plans at the other one. A lease has 40 s from its last heartbeat, and is looked for every 2 s."
)
_WRAPPER = """#!/bin/sh
if [ "$1" = plan ]; then
  echo "$PPID" >> {begun}
  until [ -e {go} ]; do sleep 0.05; done
fi
exec {terraform} "$@"
"""


def _engine(folder: Path) -> str:
    """The table of the engine in a listener's settings."""
    real = terraform_shim.write(folder / "real")
    program = folder / "terraform"
    program.write_text(_WRAPPER.format(begun=folder / "begun", go=folder / "go", terraform=real))
    program.chmod(0o755)
    files = json.dumps([str(program), str(real), str(terraform_shim.library())])
    return (
        'isolation = "none"\n'  # what its programs tell the measurement is outside of their folders
        f'[[engines]]\ntool = "terraform"\nversion = "{terraform_shim.VERSION}"\npath = "{program}"\nfiles = {files}\n'
    )


@contextmanager
def listener(site: Site, home: Path, settings: str, pool: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real one that is online in a pool."""
    home.mkdir()
    (home / "listener.toml").write_text(f"health_port = 0\n{settings}")
    token = site.post(f"agent-pools/{pool}/authentication-tokens", "authentication-tokens", {"description": "bench"})
    environment = {"PATH": os.environ["PATH"], "TERRAPOD_LISTENER_TOKEN": token["attributes"]["token"]}
    program, ca = str(BIN / "terrapod-listener"), str(site.data / "ca.pem")
    join = [program, "join", "--server", site.url, "--name", home.name, "--home", str(home), "--ca", ca]
    subprocess.run(join, env=environment, check=True, stdout=subprocess.DEVNULL)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([program, "run", "--home", str(home)], env=environment, stdout=log, stderr=log)
    try:
        until(lambda: _status(site, pool, home.name) == "online", 30)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _status(site: Site, pool: str, name: str) -> str:
    found = [row["attributes"] for row in site.get(f"agent-pools/{pool}/listeners")]
    return str(next(row["status"] for row in found if row["name"] == name))


def until(is_so: Callable[[], object], timeout_s: float) -> float:
    """The monotonic time at which it was so."""
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            sys.exit("what is measured did not happen")
        time.sleep(0.05)
    return time.monotonic()


def measure(folder: Path) -> Section:
    section = Section("A lost listener", TEXT)
    place = folder / "loss"
    with Site(place / "site", tls=True) as site:
        pool = site.get("organizations/default/agent-pools?q=default")[0]["id"]
        begun, go, engine = place / "begun", place / "go", _engine(place)
        workspace = site.workspace("bench-loss", **{"terraform-version": terraform_shim.VERSION})
        with listener(site, place / "first", engine, pool) as first:
            until(lambda: site.get(f"agent-pools/{pool}/listeners")[0]["attributes"]["local-engines"], 30)
            configuration = site.configuration(workspace, tar({"main.tf": b"# nothing\n"}))
            run = site.post(
                "runs", "runs", {"message": "lost", "plan-only": True},
                workspace=("workspaces", workspace), configuration_version=("configuration-versions", configuration),
            )["id"]  # fmt: skip
            until(begun.exists, 30)
            with listener(site, place / "second", engine, pool):
                killed = time.monotonic()
                first.send_signal(signal.SIGKILL)
                found: dict[str, float] = {}

                def look() -> bool:
                    now = time.monotonic() - killed
                    is_again = len(begun.read_text().split()) > 1  # it may be queued for an instant that nobody sees
                    if is_again or site.get(f"runs/{run}")["attributes"]["status"] != "planning":
                        found.setdefault("queued", now)
                    if _status(site, pool, "first") == "offline":
                        found.setdefault("offline", now)
                    if is_again:
                        found.setdefault("again", now)
                    return len(found) == 3

                until(look, 120)
                go.touch()
                until(lambda: site.get(f"runs/{run}")["attributes"]["status"] == "planned_and_finished", 60)
    section.figures += [
        Figure("listener killed in a plan: its lease is known as lost", found["queued"], "s", 45),
        Figure("the same: it is shown as offline", found["offline"], "s", 45),
        Figure("the same: terraform plans at another listener", found["again"], "s", 60),
    ]
    return section
