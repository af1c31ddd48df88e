"""Idle listeners at one server process: what their polls cost, and how soon one of them has work."""

import asyncio
import base64
import json
import os
import queue
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from latency import ENGINE, joined, seconds, tar
from processes import Site, free_port, memory
from report import Figure, Section, percentile

from terrapod_listener.link.identity import raw_private
from terrapod_shared import signing

HERE = Path(__file__).parent
RUNS = 30
TEXT = (
    "Simulated listeners with keys and rows of their own, each with a signed long poll of 30 s over TLS, as a real one that has "
    "nothing to do, at one server process; their client is a process of its own, and the server's processor time alone is "
    "counted, over a whole poll's length and more. Then runs are created one after another, while all listeners wait: from the "
    "run's `created-at` until one of them holds the decoded work whose signature it has checked. Beside it the same "
    "client at a bare Starlette app on the same Hypercorn settings, which holds each request and answers 204."
)


@dataclass
class Target:
    """Greatest good values."""

    cpu: float
    memory: float


TARGETS = {1_000: Target(15, 200), 5_000: Target(50, 600)}


@dataclass
class Fleet:
    """The client's process, and what it says."""

    process: subprocess.Popen[str]
    said: "queue.Queue[dict[str, Any]]" = field(default_factory=queue.Queue)

    def read(self) -> None:
        for line in self.process.stdout or ():
            self.said.put(json.loads(line))
        self.said.put({})

    def hear(self, timeout_s: float) -> dict[str, Any]:
        facts = self.said.get(timeout=timeout_s)
        if not facts:
            sys.exit("the fleet's client has ended")
        return facts


def cpu_s(pid: int) -> float:
    """Processor time that the process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def fleet(**order: Any) -> Iterator[Fleet]:
    """A client whose listeners all wait."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "polls.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    made = Fleet(process)
    threading.Thread(target=made.read, daemon=True).start()
    try:
        if process.stdin:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        made.hear(300)
        yield made
    finally:
        process.kill()
        process.wait()


def _share(pid: int, window_s: float) -> float:
    """Per cent of a core that the process uses during a window."""
    begun, before = time.monotonic(), cpu_s(pid)
    time.sleep(window_s)
    return 100 * (cpu_s(pid) - before) / (time.monotonic() - begun)


def _identities(site: Site, home: Path, count: int) -> tuple[str, list[tuple[str, str]]]:
    """The server's key, and id and key of so many listeners, whose rows are copies of one that joined."""
    real = asyncio.run(_joined(site, home))
    with sqlite3.connect(site.data / "terrapod.sqlite3", timeout=30) as connection:
        connection.row_factory = sqlite3.Row
        row = dict(connection.execute("SELECT * FROM listener WHERE id = ?", (real.listener_id,)).fetchone())
        made, rows = [], []
        for number in range(count):
            key = Ed25519PrivateKey.generate()
            made.append((f"listener-bench{number:06d}", raw_private(key)))
            public = signing.raw_public(key.public_key())
            rows.append({**row, "id": made[-1][0], "name": f"bench-{number}", "public_key": public})
        marks = ", ".join(f":{name}" for name in row)
        connection.executemany(f"INSERT INTO listener ({', '.join(row)}) VALUES ({marks})", rows)
    connection.close()
    return real.server_key, made


async def _joined(site: Site, home: Path) -> Any:
    listener = await joined(site, home, site.data / "ca.pem")
    await listener.close()
    return listener.identity.kept


def _hand_over(site: Site, clients: Fleet) -> list[float]:
    """Milliseconds from a run's creation to work in hands."""
    workspace = site.workspace("bench-fleet", **{"terraform-version": ENGINE})
    configuration = site.configuration(workspace, tar({"main.tf": b"# nothing\n"}))
    late = []
    for number in range(RUNS):
        run = site.post(
            "runs", "runs", {"message": f"fleet {number}", "plan-only": True},
            workspace=("workspaces", workspace), configuration_version=("configuration-versions", configuration),
        )  # fmt: skip
        told = clients.hear(60)
        if told.get("run") != run["id"]:
            sys.exit(f"{run['id']} was created, and {told} came")
        late.append(1000 * (told["got"] - seconds(run["attributes"]["created-at"])))
        time.sleep(0.2)
    return late


def _bare(folder: Path, site: Site, identities: list[tuple[str, str]], window_s: float) -> tuple[float, float]:
    """Per cent of a core and MiB of the bare app; it has the server's certificate."""
    port, answers = free_port(), folder / "answers"
    answers.mkdir()
    certificate = [str(site.data / name) for name in ("server.pem", "server-key.pem")]
    process = subprocess.Popen([sys.executable, str(HERE / "bare.py"), str(port), str(answers), *certificate])
    try:
        until = time.monotonic() + 30
        while not _listens(port):
            if time.monotonic() > until:
                sys.exit("the bare app did not start")
            time.sleep(0.05)
        key = base64.b64encode(b"none").decode()
        order = {"port": port, "ca": str(site.data / "ca.pem"), "path": "/poll/{id}", "server_key": key}
        with fleet(**order, identities=identities):
            share = _share(process.pid, window_s)
            return share, memory(process.pid)
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    import socket  # noqa: PLC0415

    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def measure(folder: Path, counts: list[int], *, quick: bool) -> Section:
    section = Section("A fleet of idle listeners", TEXT)
    window_s = 12.0 if quick else 36.0
    for count in counts:
        home = folder / f"fleet-{count}"
        with Site(home / "site", tls=True) as site:
            server_key, identities = _identities(site, home / "listener", count)
            order = {"port": site.port, "ca": str(site.data / "ca.pem"), "server_key": server_key}
            with fleet(**order, path="/api/v2/listeners/{id}/runs/next", identities=identities) as clients:
                share = _share(site.pid, window_s)
                resident = memory(site.pid)
                late = _hand_over(site, clients)
            bare_share, bare_resident = _bare(home, site, identities, window_s)
        target = TARGETS[count]
        section.figures += [
            Figure(f"{count:,} listeners: processor", share, "%", target.cpu, note="of a core"),
            Figure(f"{count:,} listeners: memory", resident, "MiB", target.memory),
            Figure(f"{count:,} listeners: run created to work in hands, p95", percentile(late, 0.95), "ms", 100),
            Figure(f"{count:,} listeners: the same, median", percentile(late, 0.5), "ms"),
            Figure(f"{count:,} polls at the bare app: processor", bare_share, "%", note="of a core"),
            Figure(f"{count:,} polls at the bare app: memory", bare_resident, "MiB"),
        ]
    return section
