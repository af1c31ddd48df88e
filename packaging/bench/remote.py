"""A remote plan against the same plan made locally."""

import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import terraform_shim
from latency import seconds
from processes import Site, clean_environment
from report import Figure, Section

CONFIGURATION = """\
resource "terraform_data" "greeting" {
  input = "hello from a listener"
}

output "greeting" {
  value = terraform_data.greeting.output
}
"""
CLOUD = """\
terraform {{
  cloud {{
    hostname     = "localhost:{port}"
    organization = "default"
    workspaces {{ name = "bench" }}
  }}
}}
"""
TEXT = (
    "`terraform plan` of the demo's example by the real CLI, remote against local, by turns; medians. Our own share is from the "
    "run's `created-at` to its last status, without the time during which terraform ran on the listener (every call of it "
    "there: init, plan, show and the like, timed by a wrapper around the program). The CLI polls every 0.5 to 3 s by itself."
)


@dataclass(frozen=True)
class Engine:
    """The program `plain`, and `timed`, which notes when it began and ended in `times`."""

    plain: Path
    timed: Path
    times: Path


def make_engine(folder: Path) -> Engine:
    plain = terraform_shim.write(folder / "plain")
    timed, times = folder / "timed", folder / "times" / "times"
    times.parent.mkdir()
    times.parent.chmod(0o777)  # an isolated run is another user
    timed.write_text(
        f'#!/bin/sh\nbegun=$(date +%s.%N)\n{shlex.quote(str(plain))} "$@"\ncode=$?\n'
        f'echo "$begun $(date +%s.%N) $1" >> {shlex.quote(str(times))}\nexit $code\n'
    )
    timed.chmod(0o755)
    return Engine(plain, timed, times)


def prepare_listener(home: Path, engine: Engine) -> None:
    home.mkdir(parents=True, mode=0o700)
    files = ", ".join(f'"{file}"' for file in (engine.timed, engine.plain, terraform_shim.library()))
    (home / "listener.toml").write_text(
        f'{terraform_shim.settings()}writable = ["{engine.times.parent}"]\n'
        f'[[engines]]\ntool = "terraform"\nversion = "{terraform_shim.VERSION}"\npath = "{engine.timed}"\nfiles = [{files}]\n'
    )


def _run(engine: Engine, folder: Path, environment: dict[str, str], *argv: str) -> float:
    begun = time.monotonic()
    done = subprocess.run(
        [str(engine.plain), *argv],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"terraform {' '.join(argv)}: {done.returncode}\n{(done.stdout + done.stderr).decode()}")
    return time.monotonic() - begun


def _within(times: Path, begin: float, end: float) -> tuple[float, list[str]]:
    """Seconds of [begin, end] in which terraform ran (calls side by side count once), and the commands."""
    spans, names = [], []
    for text in times.read_text().splitlines():
        first, last, *name = text.split()
        if float(last) > begin and float(first) < end:
            spans.append((max(float(first), begin), min(float(last), end)))
            names.append(" ".join(name))
    total, reached = 0.0, begin
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total, names


def measure(folder: Path, site: Site, engine: Engine, *, quick: bool) -> Section:
    section = Section("A remote plan", TEXT)
    local, remote = folder / "local", folder / "remote"
    environment = clean_environment(site.data)
    for place, head in ((local, ""), (remote, CLOUD.format(port=site.port))):
        place.mkdir()
        (place / "main.tf").write_text(head + CONFIGURATION)
        _run(engine, place, environment, "init")
    took: dict[str, list[float]] = {"local": [], "remote": []}
    whole: list[float] = []
    ours: list[float] = []
    calls: list[str] = []
    workspace = site.get("organizations/default/workspaces/bench")["id"]
    for _ in range(1 if quick else 3):
        took["local"].append(_run(engine, local, environment, "plan"))
        took["remote"].append(_run(engine, remote, environment, "plan"))
        run = site.get(f"workspaces/{workspace}/runs?page%5Bsize%5D=1")[0]["attributes"]
        begin, end = seconds(run["created-at"]), max(seconds(stamp) for stamp in run["status-timestamps"].values())
        spent, calls = _within(engine.times, begin, end)
        whole.append(end - begin)
        ours.append(end - begin - spent)
    median = {name: statistics.median(values) for name, values in took.items()}
    section.figures += [
        Figure("remote plan minus local plan", median["remote"] - median["local"], "s", 3),
        Figure("remote plan against local plan", median["remote"] / median["local"], "times",
               note=f"{median['remote']:.2f} s and {median['local']:.2f} s"),
        Figure("run created to finished", statistics.median(whole), "s", note=f"terraform: {', '.join(calls)}"),
        Figure("of which ours (without terraform's own time)", statistics.median(ours), "s", 0.5),
    ]  # fmt: skip
    return section
