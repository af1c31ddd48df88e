"""How fast runs are made, by clients that make them one after another."""

import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path

from latency import ENGINE, joined
from processes import Site, processor_s
from report import Figure, Section

CLIENTS = 8
HERE = Path(__file__).parent
TEXT = (
    "`POST runs` at eight keep-alive clients, each with a workspace of its own; no listener takes the runs, so the queue "
    "grows meanwhile. Processor time is that of the server's process for each run. Rates say nothing on another machine."
)


async def _announce(site: Site) -> None:
    """Says once that a listener has the engine, so that runs may be created."""
    listener = await joined(site, site.data / "bench-listener")
    await listener.close()


def _orders(site: Site, archive: bytes, *, plan_only: bool) -> list[list[list[str]]]:
    """Each client's requests."""
    orders = []
    for number in range(CLIENTS):
        kind = "plans" if plan_only else "applies"
        key = site.workspace(f"bench-{kind}-{number}", **{"terraform-version": ENGINE})
        site.configuration(key, archive)
        related = {"workspace": {"data": {"type": "workspaces", "id": key}}}
        data = {"type": "runs", "attributes": {"plan-only": plan_only}, "relationships": related}
        orders.append([["POST", "runs", json.dumps({"data": data})]])
    return orders


def _rate(site: Site, paths: list[list[list[str]]], seconds: float) -> float:
    order = json.dumps({"url": site.url, "token": site.token, "seconds": seconds, "paths": paths})
    done = subprocess.run(
        [sys.executable, str(HERE / "changes.py")], input=order, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return float(json.loads(done.stdout)["rate"])


def _made(site: Site) -> int:
    return int(site.api.get("organizations/default/runs?page%5Bsize%5D=1").json()["meta"]["pagination"]["total-count"])


def measure(folder: Path, archive: bytes, *, quick: bool) -> Section:
    section = Section("New runs", TEXT)
    seconds, rounds = (0.5, 1) if quick else (2.0, 3)
    with Site(folder / "creating") as site:
        asyncio.run(_announce(site))
        for plan_only, name in ((True, "plan-only runs"), (False, "runs that may be applied")):
            orders = _orders(site, archive, plan_only=plan_only)
            _rate(site, orders, 0.2)
            before, made = processor_s(site.pid), _made(site)
            rate = statistics.mean(_rate(site, orders, seconds) for _ in range(rounds))
            spent_ms = 1000 * (processor_s(site.pid) - before) / max(1, _made(site) - made)
            section.figures.append(Figure(name, rate, "1/s"))
            section.figures.append(Figure(f"{name}: processor time", spent_ms, "ms"))
    return section
