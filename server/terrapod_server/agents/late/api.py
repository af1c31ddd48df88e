"""Late states, as people see them."""

from typing import Any

from starlette.responses import RedirectResponse, Response

from terrapod_server.agents.late import actions
from terrapod_server.agents.model import LateState
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, Extension, One, Raw, Recorded, Resource, Thing
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.paging import Rows
from terrapod_server.workspaces import actions as workspaces

DOWNLOAD_S = 3600
_DOWNLOAD = "late state download"

LATE_STATE = Resource(
    type="late-states",
    attributes=(
        Attr("status", str, "waiting, adopted or dropped"),
        Attr("serial", int, "of the state"),
        Attr("lineage", str, "of the state"),
        Attr("md5", str, "of the raw bytes, in hex"),
        Attr("size", int, "bytes"),
        Attr("lease-number", int, "of the lease that had ended when it came"),
        Attr("listener-id", str, "who sent it"),
        Attr(
            "confirm-serial",
            bool,
            "adopt it though its serial is not higher than that of the current state",
            write=True,
            only_in="sent",
        ),
        Attr("created-at", str, "when it came"),
        Attr(
            "download-url",
            str,
            "where to get the bytes; null once it was adopted or dropped",
            value=lambda s, call: (
                call.url(f"/api/v2/late-states/{s.id}/download") if s.status == actions.WAITING else None
            ),
        ),
    ),
    relations=(
        One("workspace", "workspaces"),
        One("run", "runs"),
        One("state-version", "state-versions"),
    ),
    load=actions.by_ids,
)


async def index(call: Call) -> Rows:
    """The workspace's late states, newest first."""
    workspace = await workspaces.get(call.path["workspace"])
    found = LateState.filter(workspace_id=workspace.id)
    if status := call.param("filter[status]"):
        found = found.filter(status__in=status.split(","))
    return await call.rows(found.order_by("-id"))


async def show(call: Call) -> LateState:
    """One late state."""
    return await actions.get(call.path["late_state"])


async def download(call: Call) -> Response:
    """Redirects to a URL that gives the raw bytes for an hour."""
    row = await show(call)
    actions.check_waits(row)
    token = call.services.signer.sign(_DOWNLOAD, row.id, DOWNLOAD_S)
    return RedirectResponse(call.url(f"/api/v2/downloads/late-states/{token}"), 302)


async def raw(call: Call) -> Response:
    """The raw bytes of a late state; the URL is the right to have them."""
    row = await actions.get(call.services.signer.check(_DOWNLOAD, call.path["token"]))
    call.about(LATE_STATE.type, row.id, row.workspace_id)
    actions.check_waits(row)
    return await call.stored(row.key, "application/json", row.size)


async def adopt(call: Call) -> LateState:
    """Make a late state the current one; refused while a run is active, and for another lineage."""
    confirmed = bool(call.attributes.get("confirm_serial"))
    return await actions.adopt(call.services, call.path["late_state"], call.principal, confirmed=confirmed)


async def drop(call: Call) -> LateState:
    """Throw a late state away."""
    return await actions.drop(call.services, call.path["late_state"], call.principal)


RESOURCES = (LATE_STATE,)
#: The number stands in the workspace's row, so that it costs nothing to show.
EXTENSION = Extension(
    of="workspaces",
    attributes=(
        Attr(
            "late-states",
            int,
            "states that came after their run was given up: an admin adopts or drops them",
            value=lambda added, _: added.row.late_state_count,
        ),
    ),
)
THINGS = (Thing("late_state", 'late_state l JOIN workspace t ON t."id" = l."workspace_id"', 'l."id"'),)
_ONE = "/api/v2/late-states/{late_state}"
_BYTES: dict[str, Any] = {"recorded": Recorded.READS, "unmetered": True}
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint(
        "GET",
        "/api/v2/workspaces/{workspace}/late-states",
        LATE_STATE,
        index,
        Level.READ,
        many=True,
        filters=("filter[status]",),
    ),
    Endpoint("GET", _ONE, LATE_STATE, show, Level.READ),
    Raw("GET", _ONE + "/download", download, Level.PLAN, recorded=Recorded.READS, answers=(302,)),
    Raw(
        "GET",
        "/api/v2/downloads/late-states/{token}",
        raw,
        Access.CAPABILITY,
        quiet=True,
        gives=dict[str, Any],
        **_BYTES,
    ),
    Endpoint("POST", _ONE + "/actions/adopt", LATE_STATE, adopt, Level.ADMIN),
    Endpoint("POST", _ONE + "/actions/drop", LATE_STATE, drop, Level.ADMIN, body=False),
)
