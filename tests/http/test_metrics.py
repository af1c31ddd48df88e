"""`/metrics`: who may read it, that it is Prometheus' format, and that its labels say nothing they should not."""

import re
from pathlib import Path

import httpx

from kit.phases import plan_it, take
from kit.serving import Running, until
from terrapod_shared import wire

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LINE = re.compile(rf'({NAME})(?:\{{((?:{NAME}="(?:[^"\\\n]|\\.)*",?)*)\}})? (-?[0-9.e+-]+|\+Inf|NaN)')
LABEL = re.compile(rf'({NAME})="((?:[^"\\\n]|\\.)*)"')
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """By the format's own rules: each metric has HELP and TYPE before its samples, and none comes twice."""
    found: Samples = {}
    types: dict[str, str] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in types, line
            types[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            base = re.sub("_(bucket|sum|count)$", "", match[1])
            assert match[1] in types or types.get(base) == "histogram", line
            key = (match[1], frozenset(LABEL.findall(match[2] or "")))
            assert key not in found, line
            found[key] = float(match[3])
    return found


async def scraped(server: Running) -> Samples:
    answer = await server.api.get(server.url + "/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return parsed(answer.text)


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_only_admins_and_auditors_may_read_it(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url) as stranger:
        assert (await stranger.get("/metrics")).status_code == 401
    for roles, status in (((), 403), (("audit",), 200), (("admin",), 200)):
        token = await server.person(f"{'-'.join(roles) or 'none'}@example.org", *roles, read_only=bool(roles))
        async with server.as_(token) as client:
            assert (await client.get(server.url + "/metrics")).status_code == status, roles


async def test_what_it_says(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home", "named-listener")
    workspace = await server.workspace("named-workspace")
    await server.configuration(workspace["id"])
    runs = [(await server.run(workspace["id"])).json()["data"]["id"] for _ in range(2)]
    before = await scraped(server)
    assert of(before, "terrapod_runs", status="plan_queued") == 1
    assert of(before, "terrapod_runs", status="pending") == 1
    assert of(before, "terrapod_pool_queue_depth", pool="default") == 1
    assert of(before, "terrapod_pool_listeners_online", pool="default") == 1
    assert of(before, "terrapod_pool_slots_free", pool="default") == 5
    assert of(before, "terrapod_late_states") == 0
    work = await take(listener)
    await listener.report(runs[0], wire.Report(phase="plan", status="planning"), work.lease.number)
    during = await scraped(server)
    assert of(during, "terrapod_leases", phase="plan", state="leased") == 1
    assert of(during, "terrapod_pool_running", pool="default") == 1
    await plan_it(listener, work, tmp_path)
    for run in reversed(runs):
        assert (await server.api.post(f"/runs/{run}/actions/discard")).status_code == 202
    after = await scraped(server)
    ended = of(after, "terrapod_runs_ended_total", status="discarded")
    assert (ended, of(after, "terrapod_runs", status="planned")) == (2, 0)

    poll = of(after, "terrapod_http_requests_total", **{"class": "listener-poll", "status": "200"})
    assert poll == 1
    count = of(after, "terrapod_http_request_duration_seconds_count", **{"class": "runs"})
    total = sum(
        n
        for (name, labels), n in after.items()
        if name == "terrapod_http_requests_total" and ("class", "runs") in labels
    )
    buckets = [n for (name, labels), n in after.items() if name.endswith("_bucket") and ("class", "runs") in labels]
    assert count == total == max(buckets)
    assert of(after, "terrapod_http_requests_in_flight") == 1, "this one"
    assert of(after, "process_resident_memory_bytes") > 1 << 20

    async def has_swept() -> bool:
        return ("terrapod_job_age_seconds", frozenset({("job", "sweep leases")})) in await scraped(server)

    await until(has_swept)

    async def is_kept() -> bool:
        return of(await scraped(server), "terrapod_audit_backlog") == 0

    await until(is_kept)
    text = (await server.api.get(server.url + "/metrics")).text
    for secret in (*runs, workspace["id"], "named-workspace", "named-listener", server.token, "admin@localhost"):
        assert secret not in text


async def test_its_labels_are_bounded(server: Running) -> None:
    """Whatever paths and pools there are."""
    before = {key for key in await scraped(server) if "http" in key[0]}
    for number in range(30):
        await server.api.get(f"/nonsense-{number}/x")
        await server.api.get(f"/workspaces/ws-{number}")
    after = {key for key in await scraped(server) if "http" in key[0]}
    classes = {label[1] for _, labels in after - before for label in labels if label[0] == "class"}
    assert classes <= {"unknown", "workspaces", "metrics"}
    odd = 'a"b\\c\nd'
    made = await server.post("/organizations/default/agent-pools", {"name": odd.replace("\n", " ")})
    assert made.status_code == 201, made.text
    assert of(await scraped(server), "terrapod_pool_queue_depth", pool='a\\"b\\\\c d') == 0
    for number in range(105):
        await server.post("/organizations/default/agent-pools", {"name": f"pool {number}"})
    pools = {dict(labels)["pool"] for (name, labels) in await scraped(server) if name == "terrapod_pool_slots"}
    assert (len(pools), "(others)" in pools, "default" in pools) == (101, True, True)
