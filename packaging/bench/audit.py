"""What the audit log costs: requests that it records, by turns at a server with it and at one without."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from processes import Site
from report import Figure, Section

CLIENTS = 8
HERE = Path(__file__).parent
TEXT = (
    "Requests that are recorded, at eight keep-alive clients, by turns at two servers that differ in `audit.enabled` alone; "
    "the share of the rate that the log takes is the median over the rounds. A refused request asks the database for the "
    "token and does nothing else, so an entry is a large part of it. Rate limits for strangers are off in both."
)
_OFF = {"TERRAPOD_RATE_LIMITS__ANONYMOUS_PER_S": "0"}


def _rate(site: Site, token: str, seconds: float, paths: Any) -> float:
    order = json.dumps({"url": site.url, "token": token, "seconds": seconds, "paths": paths})
    done = subprocess.run(
        [sys.executable, str(HERE / "changes.py")], input=order, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return float(json.loads(done.stdout)["rate"])


def _kinds(site: Site) -> dict[str, tuple[str, Any]]:
    """By name: the token that is shown, and each client's requests."""
    locks, variables = [], []
    for number in range(CLIENTS):
        key = site.workspace(f"audit-{number}")
        locks.append([["POST", f"workspaces/{key}/actions/{verb}", ""] for verb in ("lock", "unlock")])
        variable = site.post(f"workspaces/{key}/vars", "vars", {"key": "a", "value": "0", "category": "env"})["id"]
        body = json.dumps({"data": {"type": "vars", "attributes": {"value": "1"}}})
        variables.append([["PATCH", f"workspaces/{key}/vars/{variable}", body]])
    refused = [[["GET", "account/details", ""]]] * CLIENTS
    return {
        "lock and unlock": (site.token, locks),
        "change of a variable": (site.token, variables),
        "refused, by a bad token": ("tpod_nobody", refused),
    }


def _cpu_s(site: Site) -> float:
    fields = Path(f"/proc/{site.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, *, quick: bool) -> Section:
    section = Section("Audit log", TEXT)
    seconds, rounds = (0.5, 3) if quick else (1.0, 12)
    with (
        Site(folder / "audited", settings=_OFF) as on,
        Site(folder / "silent", settings={**_OFF, "TERRAPOD_AUDIT__ENABLED": "false"}) as off,
    ):
        for name, (with_it, without) in _pairs(_kinds(on), _kinds(off)).items():
            shares, rates, work = [], [], []
            for turn in range(rounds):
                pair = [(on, with_it), (off, without)]
                found = {}
                for site, (token, paths) in pair if turn % 2 else reversed(pair):
                    before = _cpu_s(site)
                    rate = _rate(site, token, seconds, paths)
                    found[site] = (rate, (_cpu_s(site) - before) / (rate * seconds))
                shares.append(100 * (1 - found[on][0] / found[off][0]))
                work.append(100 * (found[on][1] / found[off][1] - 1))
                rates.append((found[on][0], found[off][0]))
            ours, theirs = (statistics.median(pair[place] for pair in rates) for place in (0, 1))
            note = f"{ours:.0f}/s of {theirs:.0f}/s; processor time +{statistics.median(work):.0f} %"
            section.figures.append(Figure(f"{name}: cost of recording", statistics.median(shares), "%", 10, note=note))
    return section


def _pairs(one: dict[str, Any], two: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (one[name], two[name]) for name in one}
