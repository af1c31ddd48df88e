"""What isolation and masking cost a run, and how fast a program may print."""

import asyncio
import dataclasses
import json
import os
import secrets
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import loss
from latency import seconds, tar
from processes import Site
from report import Figure, Section

from terrapod_listener.sandbox import isolation
from terrapod_listener.supervise import handle
from terrapod_listener.supervise.handle import Keeper
from terrapod_listener.supervise.journal import Facts, Record
from terrapod_shared import wire

TEXT = (
    "A run: two real listeners, with and without isolation (the strongest that the host offers), by turns; plan and apply of an "
    "engine that does nothing, so that what is left is the listener and the server: from created to applied. With isolation come "
    "20 sensitive variables of 40 letters, which are masked. Log: the same two listeners, and a plan that prints 100 MB as fast as it can, until all "
    "of it is at the server. Then the keeper of an apply alone, which is the part of the way that masks: how fast it takes what a "
    "program prints, and how long a program takes that prints 50 MB/s for 4 s by its own clock."
)
_ENGINE = """#!/bin/sh
case "$1" in
  init) mkdir -p .terraform; sed -n 's/.*path = \\(".*"\\)/\\1/p' zzzz_terrapod_override.tf > path
    sed -n 's/.*workspace_dir = \\(".*"\\)/\\1/p' zzzz_terrapod_override.tf > dir
    echo "{{\\"backend\\": {{\\"type\\": \\"local\\", \\"config\\": {{\\"path\\": $(cat path), \\"workspace_dir\\": $(cat dir)}}}}}}" \\
      > .terraform/terraform.tfstate ;;
  plan) [ ! -e flood ] || yes "$(cat flood)" | head -c 100000000
    for word in "$@"; do case "$word" in -out=*) echo plan > "${{word#-out=}}" ;; esac; done ;;
  show) echo '{{"format_version": "1.2", "applyable": true, "complete": true, "resource_changes": []}}' ;;
  providers) echo '{{"format_version": "1.0", "provider_schemas": {{}}}}' ;;
esac
"""
VERSION = "1.6.1"
_LINE = "module.network[0].aws_subnet.private: Still creating... [id=subnet-0123456789abcdef0, 10s elapsed] and more of it\n"
_PLAIN = {"main.tf": b"# nothing\n"}
_FLOOD = {**_PLAIN, "flood": _LINE.strip().encode()}
_MB = 200
_PACED = """
import os, sys, time
chunk = {line!r}.encode() * 4000
begun, sent = time.monotonic(), 0
while sent < 200_000_000:
    os.write(1, chunk)
    sent += len(chunk)
    time.sleep(max(0.0, begun + sent / 50e6 - time.monotonic()))
print(time.monotonic() - begun, file=open(sys.argv[1], "w"))
"""


def _secrets() -> list[str]:
    """As long as those of AWS and GitHub: 40 letters."""
    return [secrets.token_urlsafe(30) for _ in range(20)]


def _runs(folder: Path, *, quick: bool) -> dict[tuple[str, int], float]:
    """Milliseconds from created to applied, by the listener's isolation and whether the plan prints much."""
    program = folder / "engine"
    program.write_text(_ENGINE.format())
    program.chmod(0o755)
    engine = f'[[engines]]\ntool = "terraform"\nversion = "{VERSION}"\npath = "{program}"\n'
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    with Site(folder / "site", tls=True) as site, ExitStack() as stack:
        places = {}
        for kind in ("none", "auto"):
            pool = site.post("organizations/default/agent-pools", "agent-pools", {"name": f"bench-{kind}"})["id"]
            stack.enter_context(loss.listener(site, folder / kind, f'isolation = "{kind}"\n{engine}', pool))
            workspace = site.workspace(
                f"bench-{kind}",
                **{"terraform-version": VERSION, "execution-mode": "agent", "agent-pool-id": pool, "auto-apply": True},
            )
            for number, value in enumerate(_secrets() if kind == "auto" else ()):
                site.post(
                    f"workspaces/{workspace}/vars", "vars",
                    {"key": f"SECRET_{number}", "value": value, "category": "env", "sensitive": True},
                )  # fmt: skip
            places[kind] = workspace, [site.configuration(workspace, tar(files)) for files in (_PLAIN, _FLOOD)]
        kinds = [0] * (4 if quick else 16) + [1] * (2 if quick else 4)
        for number, which in enumerate(kinds):
            for kind, (workspace, configurations) in places.items():
                configuration = configurations[which]
                run = site.post(
                    "runs", "runs", {"message": f"bench {number}"},
                    workspace=("workspaces", workspace),
                    configuration_version=("configuration-versions", configuration),
                )["id"]  # fmt: skip
                loss.until(partial(_is_over, site, run), 30)
                shown = site.get(f"runs/{run}")["attributes"]
                if shown["status"] != "applied":
                    sys.exit(f"a run failed: {shown['error-message']}")
                if number:  # the first one warms up
                    ended = max(seconds(stamp) for stamp in shown["status-timestamps"].values())
                    found[kind, which].append(1000 * (ended - seconds(shown["created-at"])))
    return {key: statistics.median(values) for key, values in found.items()}


def _is_over(site: Site, run: str) -> bool:
    return site.get(f"runs/{run}")["attributes"]["status"] in ("applied", "errored")


async def _printed(home: Path, argv: list[str], cell: isolation.Cell, hidden: list[str]) -> float:
    """Seconds of a program under a keeper, its start included."""
    lease = wire.Lease(number=1, seconds=40)
    work = wire.Work(
        listener_id="l", run_id=cell.folder.name, phase="apply", lease=lease, workspace_id="w", workspace_name="w",
        engine=wire.Engine(tool="terraform", version=VERSION, sha256="0"),
    )  # fmt: skip
    record = Record(home, Facts(work=work, step="accepted"))
    record.write("accepted")
    for name in ("log", "exit.json"):
        (record.folder / name).unlink(missing_ok=True)
    keeper = Keeper.start(record, cell.lock)
    begun = time.monotonic()
    start = cell.start(argv, cell.folder, {"PATH": os.defpath}, outlives=True)
    await asyncio.to_thread(
        keeper.go,
        {
            **dataclasses.asdict(start), "cwd": str(start.cwd), "root": str(cell.folder), "states": [str(cell.folder / "state")], "before": None,
            "spooled": str(home / "spool" / "state"), "log": str(record.folder / "log"), "log_most": 1 << 40,
            "exit": str(record.folder / "exit.json"), "child": str(record.folder / "child.json"),
            "timeout_s": 600, "secrets": hidden, "is_isolated": cell.is_boxed, "is_boxed": cell.is_boxed,
        },
    )  # fmt: skip
    await keeper.wait()
    took = time.monotonic() - begun
    if (found := handle.outcome(record.folder)) is None or found["code"]:
        sys.exit(f"the program that prints failed: {found} {(record.folder / 'log').read_bytes()[-300:]!r}")
    return took


def _cells(home: Path) -> Iterator[tuple[str, isolation.Cell]]:
    for kind in ("none", "auto"):
        found = isolation.find(
            home, isolation.Settings(want="none" if kind == "none" else "auto", readable=(sys.base_prefix, sys.prefix))
        )
        cell = found.cell(home / "work" / f"run-{kind}")
        for name in ("home", "tmp"):
            (cell.folder / name).mkdir(parents=True)
        cell.hand_over()
        yield found.name, cell


def _log(folder: Path, *, quick: bool) -> tuple[dict[str, float], float, str]:
    """Seconds for so many MB with neither and with both, and of a paced program with both; the isolation's name."""
    home = folder / "home"
    cells = list(_cells(home))
    (home / "spool").mkdir()
    line = json.dumps(_LINE).replace("\\n", "")
    flood = ["/bin/sh", "-c", f"yes {line} | head -c {_MB * 10**6}"]
    hidden = _secrets()
    took: dict[str, list[float]] = {name: [] for name, _ in cells}
    for _ in range(1 if quick else 5):
        for name, cell in cells:
            took[name].append(asyncio.run(_printed(home, flood, cell, hidden if cell.is_boxed else [])))
    name, cell = cells[-1]
    script = _PACED.format(line=_LINE)
    asyncio.run(_printed(home, [sys.executable, "-c", script, f"{cell.folder}/took"], cell, hidden))
    paced = float((cell.folder / "took").read_text())
    return {name: statistics.median(values) for name, values in took.items()}, paced, name


def measure(folder: Path, *, quick: bool) -> Section:
    section = Section("Isolation and masking", TEXT)
    place = folder / "isolating"
    place.mkdir()
    runs = _runs(place, quick=quick)
    flood = {kind: runs[kind, 1] - runs[kind, 0] for kind in ("none", "auto")}
    took, paced, name = _log(place, quick=quick)
    bare, both = took["none"], took[name]
    section.figures += [
        Figure(f"a run, isolated ({name}) and masked, over one that is neither", runs["auto", 0] - runs["none", 0], "ms", 150,
               note=f"{runs['auto', 0]:.0f} ms and {runs['none', 0]:.0f} ms"),
        Figure("log throughput to the server with both: less than with neither by", 100 * (1 - flood["none"] / flood["auto"]), "%", 5,
               note=f"{1e5 / flood['auto']:.0f} MB/s and {1e5 / flood['none']:.0f} MB/s"),
        Figure("a keeper takes of what a program prints, with both", _MB / both, "MB/s"),
        Figure("the same, with neither", _MB / bare, "MB/s"),
        Figure("a program that prints 50 MB/s takes longer by", 100 * (paced / 4 - 1), "%", 2),
    ]  # fmt: skip
    return section
