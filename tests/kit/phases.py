"""What a listener does with a phase, without terraform: its real, signed calls."""

import hashlib
import json
from pathlib import Path

from kit.serving import state_bytes
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_shared import wire

PLAN = {"format_version": "1.2", "applyable": True, "resource_changes": [], "output_changes": {
    "secret": {"actions": ["create"], "before": None, "after": "hunter2-canary", "after_sensitive": True}}}  # fmt: skip


LOG = b"one\ntwo\nthree\nplanned\n"
_CHUNK = 4 << 20


async def plan_it(
    listener: ListenerClient, work: wire.Work, folder: Path, *, changes: bool = True, log: bytes = LOG
) -> None:
    """What a listener does with a plan, without terraform: log, artifacts, report."""
    run, lease = work.run_id, work.lease.number
    await listener.report(run, wire.Report(phase="plan", status="planning"), lease)
    for at in range(0, len(log), _CHUNK):
        into = f"{listener.base}/runs/{run}/plan/log?offset={at}"
        await listener.call("PUT", into, body=log[at : at + _CHUNK], lease=lease)
    digests = {}
    for name, content in (("plan-file", b"plan"), ("plan-json", json.dumps(PLAN).encode()), ("schemas", b"{}")):
        path = folder / name
        path.write_bytes(content)
        await listener.call("PUT", f"{listener.base}/runs/{run}/{name}", file=path, lease=lease)
        digests[name] = hashlib.sha256(content).hexdigest()
    report = wire.Report(phase="plan", status="planned", has_changes=changes, digests=digests, log_bytes=len(log))
    await listener.report(run, report, lease)


async def apply_it(listener: ListenerClient, work: wire.Work, folder: Path, serial: int = 1) -> None:
    run, lease = work.run_id, work.lease.number
    await listener.report(run, wire.Report(phase="apply", status="applying"), lease)
    raw = state_bytes(serial, resources=1)
    path = folder / "state"
    path.write_bytes(raw)
    query = f"serial={serial}&lineage=aaaa&md5={hashlib.md5(raw).hexdigest()}"
    await listener.call("PUT", f"{listener.base}/runs/{run}/state?{query}", file=path, lease=lease)
    await listener.report(run, wire.Report(phase="apply", status="applied", state="uploaded"), lease)


async def take(listener: ListenerClient) -> wire.Work:
    work = await listener.next_work(10)
    assert work is not None
    return work
