"""How long work and log lines are on their way."""

import asyncio
import io
import re
import tarfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from processes import Site
from report import Figure, Section, percentile

from terrapod_listener.link.client import Server as Listener
from terrapod_listener.link.join import join
from terrapod_shared import wire

ENGINE = "1.15.5"
TEXT = (
    "Work: a joined listener with real signed calls waits in its long poll; from the run's `created-at`, and from the client's "
    "request, until it holds the decoded work whose signature it has checked. Log: an apply by the real listener and the real terraform, "
    "whose `local-exec` prints the time in each line; from that time until a reader, asking every 10 ms, has the line from the "
    "log URL. Terraform's own relaying of the line is included."
)
TICKS = """\
resource "terraform_data" "ticks" {{
  provisioner "local-exec" {{
    command = "n=0; while [ $n -lt {count} ]; do date '+TICK=%s.%N'; sleep 0.1; n=$((n + 1)); done"
  }}
}}
"""


def tar(files: dict[str, bytes]) -> bytes:
    """A gzip tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


async def joined(site: Site, home: Path, ca: Path | None = None) -> Listener:
    """A listener without terraform: its calls are the real, signed ones."""
    pool = (await asyncio.to_thread(site.get, "organizations/default/agent-pools?q=default"))[0]["id"]
    path = f"agent-pools/{pool}/authentication-tokens"
    made = await asyncio.to_thread(site.post, path, "authentication-tokens", {"description": "bench"})
    listener = Listener(await join(home, site.url, made["attributes"]["token"], "bench", ca))
    local = [wire.LocalEngine(tool="terraform", version=ENGINE, sha256="0" * 64)]
    await listener.beat(wire.Beat(free_slots=5, capacity=5, local_engines=local))
    return listener


async def _hand_over(site: Site, home: Path, count: int) -> tuple[list[float], list[float]]:
    listener = await joined(site, home)
    workspace = site.workspace("bench-work", **{"terraform-version": ENGINE})
    configuration = site.configuration(workspace, tar({"main.tf": b"# nothing\n"}))
    from_created, from_asked = [], []
    for number in range(count):
        waiting = asyncio.create_task(_take(listener))
        await asyncio.sleep(0.05)  # it is in its poll
        asked = time.time()
        run = await asyncio.to_thread(
            site.post, "runs", "runs", {"message": f"bench {number}", "plan-only": True},
            workspace=("workspaces", workspace), configuration_version=("configuration-versions", configuration),
        )  # fmt: skip
        work, got = await waiting
        from_created.append(1000 * (got - seconds(run["attributes"]["created-at"])))
        from_asked.append(1000 * (got - asked))
        lease = work.lease.number
        await listener.report(work.run_id, wire.Report(phase="plan", status="planning"), lease)
        await listener.report(work.run_id, wire.Report(phase="plan", status="errored", error_message="bench"), lease)
    await listener.close()
    return from_created, from_asked


async def _take(listener: Listener) -> tuple[wire.Work, float]:
    work = await listener.next_work(20)
    if work is None:
        raise SystemExit("no work came")
    return work, time.time()


def _lines(site: Site, count: int) -> list[float]:
    workspace = site.workspace("bench-ticks", **{"auto-apply": True})
    configuration = site.configuration(workspace, tar({"main.tf": TICKS.format(count=count).encode()}))
    run = site.post(
        "runs", "runs", {"message": "ticks"},
        workspace=("workspaces", workspace), configuration_version=("configuration-versions", configuration),
    )["id"]  # fmt: skip
    late: list[float] = []
    log_url, offset, rest = "", 0, b""
    until = time.monotonic() + 60
    with httpx.Client(verify=str(site.data / "ca.pem")) as reader:
        while time.monotonic() < until:
            if not log_url:
                status: Any = site.get(f"runs/{run}")["attributes"]["status"]
                if status == "errored":
                    raise SystemExit("the run of the log's figure errored")
                if status in {"applying", "applied"}:
                    log_url = site.get(f"runs/{run}/apply")["attributes"]["log-read-url"]
            else:
                chunk = reader.get(log_url, params={"offset": offset, "limit": 65536}).content
                got = time.time()
                offset += len(chunk)
                rest += chunk
                lines = rest.split(b"\n")
                rest = lines.pop()
                late += [
                    1000 * (got - float(found[1])) for line in lines if (found := re.search(rb"TICK=(\d+\.\d+)", line))
                ]
                if chunk.endswith(b"\x03"):
                    break
            time.sleep(0.01)
    return late


def measure(folder: Path, site: Site, *, quick: bool) -> Section:
    """`site` has a listener; the hand-over has a server of its own, where no other listener takes the work."""
    section = Section("Latency", TEXT)
    with Site(folder / "work") as alone:
        created, asked = asyncio.run(_hand_over(alone, folder / "home", 20 if quick else 100))
    section.figures += [
        Figure("run created to work in a waiting listener's hands, p95", percentile(created, 0.95), "ms", 50),
        Figure("the same, median", percentile(created, 0.5), "ms"),
        Figure("client's request for the run to work in hands, p95", percentile(asked, 0.95), "ms"),
    ]
    late = _lines(site, 30 if quick else 80)
    if late:
        section.figures += [
            Figure("line written by the command to readable at the log URL, p95", percentile(late, 0.95), "ms", 300),
            Figure("the same, median", percentile(late, 0.5), "ms", note=f"{len(late)} lines"),
        ]
    return section
