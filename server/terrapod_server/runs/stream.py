"""Server-sent events of a workspace's runs, read from the event rows; nothing is pushed from a transition."""

import time
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.render import encode
from terrapod_server.kit.caller import Level
from terrapod_server.runs.model import RunEvent
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared.errors import Invalid, TerrapodError

_KEEPALIVE_S = 15.0
_RIGHTS_S = 30.0
_BATCH = 100


async def stream(call: Call) -> StreamingResponse:
    """Follow the workspace's runs; `Last-Event-ID` resumes after an event."""
    workspace = await workspaces.get(call.path["workspace"])
    last = call.request.headers.get("last-event-id", "")
    if last and not (last.isascii() and last.isdigit() and len(last) < 19):  # noqa: PLR2004
        message = "Last-Event-ID must be the id of an event"
        raise Invalid(message)
    if last:
        after = int(last)
    else:
        newest = await RunEvent.filter(workspace_id=workspace.id).order_by("-id").first()
        after = newest.id if newest else 0
    return StreamingResponse(
        _events(call, workspace.id, after), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
    )


async def _events(call: Call, workspace_id: str, after: int) -> AsyncIterator[bytes]:
    bus = call.services.bus
    found = RunEvent.filter(workspace_id=workspace_id, run_id__isnull=False)
    checked = time.monotonic()
    yield b": terrapod\n\n"
    async with bus.subscribe(f"workspace:{workspace_id}") as subscription:
        while not bus.is_closing:
            if time.monotonic() - checked > _RIGHTS_S:
                if not await _may_still(call, workspace_id):
                    return
                checked = time.monotonic()
            rows = await found.filter(id__gt=after).order_by("id").limit(_BATCH)
            for row in rows:
                after = row.id
                body = encode(
                    {
                        "run_id": row.run_id,
                        "workspace_id": workspace_id,
                        "event": row.event,
                        "status": row.status,
                        "at": row.at,
                    }
                )
                yield f"id: {row.id}\nevent: run_update\ndata: {body.decode()}\n\n".encode()
            if len(rows) == _BATCH:
                continue
            if not await subscription.wait(_KEEPALIVE_S):
                yield b": still here\n\n"


async def _may_still(call: Call, workspace_id: str) -> bool:
    try:
        principal = await call.services.guard.identify(call.request)
        await call.services.guard.demand(principal, Level.READ, "workspace", workspace_id)
    except TerrapodError:
        return False
    return True
