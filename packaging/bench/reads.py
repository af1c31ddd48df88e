"""API reads at eight clients, against a bare app that answers the same bytes."""

import asyncio
import base64
import hashlib
import json
import sqlite3
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from latency import ENGINE, joined
from processes import Site, free_port
from report import Figure, Section

CLIENTS = 8
HERE = Path(__file__).parent
SIZES = (10, 1_000, 10_000)
TEXT = (
    "Rate at eight keep-alive clients as a share of the rate of a bare Starlette app on the same Hypercorn settings that "
    "answers the very same bytes from memory; both over HTTP without TLS, by turns. A page of 20 is timed by the server's "
    "rate among 10, then 1,000, then 10,000 rows of the same kind; the ratio is how many times slower it becomes. Queued runs "
    "are read while 3,000 wait: half of them plan-only, for a listener, and half in the line of one workspace."
)
QUEUED = 3_000


@dataclass(frozen=True)
class Rated:
    rate: float
    p95_ms: float


def load(url: str, token: str, seconds: float) -> Rated:
    order = json.dumps({"url": url, "token": token, "clients": CLIENTS, "seconds": seconds})
    done = subprocess.run(
        [sys.executable, str(HERE / "load.py")], input=order, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout)
    return Rated(found["rate"], found["p95_ms"])


def copy_rows(database: Path, table: str, template: str, count: int, changed: dict[str, str]) -> None:
    """Adds copies of a row; `changed` is an SQL expression by column, of the number `n`."""
    if count <= 0:
        return
    with sqlite3.connect(database, timeout=30) as connection:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(changed.get(column, f'"{column}"') for column in columns)
        connection.execute(
            f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "
            f"INSERT INTO {table} SELECT {values} FROM numbers, {table} WHERE id = ? ORDER BY n",
            (template,),
        )
    connection.close()


def rows_of(database: Path, table: str, where: str) -> int:
    connection = sqlite3.connect(database)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone()[0])
    finally:
        connection.close()


def _prepare(site: Site) -> dict[str, str]:
    """A hundred workspaces, two with a state; the paths to read."""
    small, large = site.workspace("bench-0"), site.workspace("bench-1")
    for number in range(2, 100):
        site.workspace(f"bench-{number}")
    return {
        "ping": "ping",
        "entitlements": "organizations/default/entitlement-set",
        "workspace by name": "organizations/default/workspaces/bench-0",
        "workspace by id": f"workspaces/{small}",
        "list of 20 workspaces": "organizations/default/workspaces?page%5Bsize%5D=20",
        "list of 100 workspaces": "organizations/default/workspaces?page%5Bsize%5D=100",
        "state of 10 KB": _put_state(site, small, 10_000),
        "state of 1 MB": _put_state(site, large, 1_000_000),
        "current state version": f"workspaces/{small}/current-state-version",
    }


def _put_state(site: Site, workspace: str, size: int) -> str:
    """Gives the workspace a state of about that size; the path of its bytes."""
    raw = json.dumps({
        "version": 4, "terraform_version": "1.15.5", "serial": 1, "lineage": "bench",
        "outputs": {"greeting": {"value": "hello" * (size // 5), "type": "string"}}, "resources": [],
    }).encode()  # fmt: skip
    site.api.post(f"workspaces/{workspace}/actions/lock", json={}).raise_for_status()
    made = site.post(
        f"workspaces/{workspace}/state-versions", "state-versions",
        {"serial": 1, "lineage": "bench", "md5": hashlib.md5(raw, usedforsecurity=False).hexdigest(), "state": base64.b64encode(raw).decode()},
    )  # fmt: skip
    site.api.post(f"workspaces/{workspace}/actions/unlock", json={}).raise_for_status()
    moved = site.api.get(made["attributes"]["hosted-state-download-url"])
    return str(moved.headers["location"]).partition("/api/v2/")[2]


async def _announce(site: Site) -> None:
    """Says once that a listener has the engine, so that runs may be created."""
    listener = await joined(site, site.data / "bench-listener")
    await listener.close()


def _make_runs(site: Site, archive: bytes, count: int) -> tuple[str, str]:
    """A workspace with canceled runs, and the first of them: a row to copy."""
    asyncio.run(_announce(site))
    key = site.workspace("bench-runs", **{"terraform-version": ENGINE})
    configuration = site.configuration(key, archive)
    made = []
    for number in range(count):
        run = site.post(
            "runs", "runs", {"message": f"bench {number}", "plan-only": True},
            workspace=("workspaces", key), configuration_version=("configuration-versions", configuration),
        )["id"]  # fmt: skip
        site.api.post(f"runs/{run}/actions/cancel", json={}).raise_for_status()
        made.append(run)
    return key, made[0]


def _queue_runs(site: Site, archive: bytes) -> dict[str, str]:
    """Runs that wait; the paths to read. Each of them says why it waits, which stands in no row of its own."""

    def run(workspace: str, *, plan_only: bool) -> str:
        found = site.post("runs", "runs", {"plan-only": plan_only}, workspace=("workspaces", workspace))
        return str(found["id"])

    plans, line = (site.workspace(f"bench-{kind}", **{"terraform-version": ENGINE}) for kind in ("plans", "line"))
    for workspace in (plans, line):
        site.configuration(workspace, archive)
    queued, _, pending = run(plans, plan_only=True), run(line, plan_only=False), run(line, plan_only=False)
    for template in (queued, pending):
        _fill_runs(site.data / "terrapod.sqlite3", template, QUEUED // 2, 0)
    lists = {"queued": f"workspaces/{plans}/runs?page%5Bsize%5D=", "pending": f"workspaces/{line}/runs?page%5Bsize%5D="}
    return {
        "queued run": f"runs/{queued}",
        "pending run": f"runs/{pending}",
        **{f"list of {size} {kind} runs": f"{path}{size}" for kind, path in lists.items() for size in (20, 100)},
    }


def _fill_runs(database: Path, run: str, count: int, start: int) -> None:
    """Copies the run with both phases; they are older than it. What is sealed under its id is left out."""
    tail = run.partition("-")[2]
    made = f"substr('{tail}', 1, {len(tail) - 6}) || printf('%06d', n + {start})"
    for table, prefix in (("run", "run"), ("run_phase", "plan"), ("run_phase", "apply")):
        changed = {"id": f"'{prefix}-' || {made}", "run_id": f"'run-' || {made}", "variables": "x''"}
        copy_rows(database, table, f"{prefix}-{tail}", count, changed)


def measure(folder: Path, archive: bytes, *, quick: bool) -> Section:
    section = Section("API reads", TEXT)
    seconds, rounds = (0.3, 1) if quick else (1.0, 2)
    with Site(folder / "reads") as site:
        paths = _prepare(site)
        key, run = _make_runs(site, archive, 100)
        runs = f"workspaces/{key}/runs?page%5Bsize%5D="
        paths |= {"run": f"runs/{run}", "list of 20 runs": f"{runs}20", "list of 100 runs": f"{runs}100"}
        paths |= _queue_runs(site, archive)
        answers = folder / "answers"
        answers.mkdir()
        for name, path in paths.items():
            (answers / name.replace(" ", "-")).write_bytes(site.api.get(path).raise_for_status().content)
        port = free_port()
        bare = subprocess.Popen([sys.executable, str(HERE / "bare.py"), str(port), str(answers)])
        try:
            _until_open(port)
            for name, path in paths.items():
                ours, theirs = [], []
                for _ in range(rounds):
                    ours.append(load(f"{site.url}/api/v2/{path}", site.token, seconds))
                    theirs.append(load(f"http://127.0.0.1:{port}/{name.replace(' ', '-')}", "", seconds))
                rate = statistics.mean(rated.rate for rated in ours)
                base = statistics.mean(rated.rate for rated in theirs)
                note = f"{rate:.0f}/s of {base:.0f}/s"
                section.figures.append(Figure(name, 100 * rate / base, "%", 35, floor=True, note=note))
        finally:
            bare.terminate()
            bare.wait(20)
    section.figures += _by_size(folder, archive, seconds, rounds, SIZES[::2] if quick else SIZES)
    return section


def _until_open(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            httpx.get(f"http://127.0.0.1:{port}/ping")
            return
        except httpx.TransportError:
            time.sleep(0.02)
    sys.exit("the bare app did not start")


def _by_size(folder: Path, archive: bytes, seconds: float, rounds: int, sizes: tuple[int, ...]) -> list[Figure]:
    """Rates of a page of 20 (or of all, where there are fewer) among more and more rows."""
    figures = []
    with Site(folder / "sizes") as site:
        key, run = _make_runs(site, archive, 10)
        first = site.workspace("bench-0")
        database = site.data / "terrapod.sqlite3"
        kinds = {
            "workspaces": ("workspace", "1", "organizations/default/workspaces?page%5Bsize%5D={}"),
            "runs": ("run", f"workspace_id = '{key}'", f"workspaces/{key}/runs?page%5Bsize%5D={{}}"),
        }
        for kind, (table, where, path) in kinds.items():
            # A page holds ten in all three, so that the same work is compared; twenty only from twenty rows on.
            rates: dict[int, dict[int, float]] = {10: {}, 20: {}}
            for size in sizes:
                have = rows_of(database, table, where)
                if kind == "runs":
                    _fill_runs(database, run, size - have, have)
                else:
                    changed = {"id": f"'ws-bench' || printf('%08d', n + {have})", "name": f"'bench-' || (n + {have})"}
                    copy_rows(database, table, first, size - have, changed)
                for page in (10, 20) if 1_000 in sizes else (10,):
                    url = f"{site.url}/api/v2/{path.format(page)}"
                    found = [load(url, site.token, seconds).rate for _ in range(rounds)]
                    rates[page][size] = statistics.mean(found)
            figures += [
                Figure(
                    f"page of 10 {kind} among {size:,} against among 10", rates[10][10] / rates[10][size], "times", 1.3
                )
                for size in sizes[1:]
            ]
            if 1_000 not in sizes:
                continue
            ratio = rates[20][1_000] / rates[20][10_000]
            figures.append(Figure(f"page of 20 {kind} among 10,000 against among 1,000", ratio, "times", 1.3))
    return figures
