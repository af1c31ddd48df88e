"""States that come while an apply goes on."""

import hashlib
import json
from pathlib import Path

import pytest

from kit.phases import plan_it, take
from kit.serving import Running, state_bytes
from terrapod_shared import errors, wire


async def test_a_run_may_come_back_to_the_serial_of_its_own_intermediate_state(server: Running, tmp_path: Path) -> None:
    """terraform counts from the state that it had read: what it changed and changed back has the same serial twice."""
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace(**{"terraform-version": "1.15.5", "auto-apply": True}))["id"]
    await server.configuration(workspace)
    run = (await server.run(workspace)).json()["data"]["id"]
    await plan_it(listener, await take(listener), tmp_path)
    work = await take(listener)
    await listener.report(run, wire.Report(phase="apply", status="applying"), work.lease.number)

    async def put(serial: int, resources: int, *, intermediate: bool = False) -> None:
        raw = state_bytes(serial, resources=resources)
        (tmp_path / "state").write_bytes(raw)
        query = f"serial={serial}&lineage=aaaa&md5={hashlib.md5(raw).hexdigest()}"
        path = f"{listener.base}/runs/{run}/state?{query}{'&intermediate=true' * intermediate}"
        await listener.call("PUT", path, file=tmp_path / "state", lease=work.lease.number)

    async def current() -> tuple[int, int, bool]:
        shown = (await server.api.get(f"/workspaces/{workspace}/current-state-version")).json()["data"]["attributes"]
        raw = await server.api.get(shown["hosted-state-download-url"], follow_redirects=True)
        return shown["serial"], len(json.loads(raw.content)["resources"]), shown["intermediate"]

    await put(1, 1, intermediate=True)
    assert await current() == (1, 1, True)
    with pytest.raises(errors.Conflict):
        await put(0, 0, intermediate=True)
    await put(1, 0)
    assert await current() == (1, 0, False)
    with pytest.raises(errors.Conflict, match="other content"):
        await put(1, 1, intermediate=True)  # the older one, which had been on its way
    await put(2, 2, intermediate=True)
    await put(2, 2)
    assert await current() == (2, 2, False), "the last one has the same bytes"
    await listener.report(run, wire.Report(phase="apply", status="applied", state="uploaded"), work.lease.number)
    await listener.close()
