"""State versions and their outputs."""

from collections.abc import Sequence
from typing import Any

from starlette.responses import RedirectResponse, Response

from terrapod_server.identity import actions as identity
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, Extension, Limit, Many, One, Raw, Recorded, Resource, Thing
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.db.row_cache import Record
from terrapod_server.kit.paging import Rows
from terrapod_server.states import actions
from terrapod_server.states.model import StateOutput, StateVersion
from terrapod_server.store import keys
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared.errors import Forbidden, Invalid, NotFound

UPLOAD_S = DOWNLOAD_S = 3600
_MEDIA = "application/vnd.api+json"
#: Without this header on an answer of this media type the CLI saves no snapshots during a long local apply.
_SNAPSHOTS = {"X-Terraform-Snapshot-Interval": "20"}
VIEW_CREATED = "created"


def _link(purpose: str, path: str) -> Any:
    return lambda row, call: call.url(f"/api/v2/{path}/{call.services.signer.sign(purpose, row.id, UPLOAD_S)}")


STATE = Resource(
    type="state-versions",
    attributes=(
        Attr("serial", int, "of the state", write=True, minimum=0),
        Attr("lineage", str, "of the state", write=True, nullable=True, maximum=255),
        Attr("md5", str, "of the raw bytes, in hex", write=True, minimum=32, maximum=32),
        Attr("force", bool, "accept any serial and lineage", write=True, value=lambda s, _: s.forced),
        Attr(
            "state",
            str,
            "the raw bytes in base64, in place of an upload",
            write=True,
            nullable=True,
            value=lambda *_: None,
        ),
        Attr("json-state", str, "the JSON form in base64", write=True, nullable=True, value=lambda *_: None),
        Attr(
            "json-state-outputs",
            str,
            "ignored; outputs are read from the state",
            write=True,
            nullable=True,
            value=lambda *_: None,
        ),
        Attr(
            "replaced",
            dict,
            "the version that it took the place of by force, not following it: id, serial, lineage, md5",
        ),
        Attr("status", str, "pending, finalized or discarded"),
        Attr("size", int, "bytes"),
        Attr("state-version", int, "of the format", value=lambda *_: 4),
        Attr("terraform-version", str, "that wrote it"),
        Attr(
            "resources-processed",
            bool,
            "whether the following are read",
            value=lambda s, _: s.status == "finalized" and not s.resources_error,
        ),
        Attr("resources-error", str, "why they could not be read; null where they were"),
        Attr("resources", list, "managed resources"),
        Attr("modules", dict, "resources by module"),
        Attr("providers", dict, "resources by provider"),
        Attr("billable-rum-count", int, "managed resources", value=lambda s, _: s.resource_count),
        Attr("intermediate", bool, "whether it is a snapshot of a run"),
        Attr("vcs-commit-sha", str, "none", value=lambda *_: None),
        Attr("vcs-commit-url", str, "none", value=lambda *_: None),
        Attr("created-at", str, "when it was announced"),
        Attr(
            "hosted-state-download-url",
            str,
            "where to get the bytes",
            value=lambda s, call: (
                call.url(f"/api/v2/state-versions/{s.id}/download") if s.status == "finalized" else None
            ),
        ),
        Attr(
            "hosted-json-state-download-url",
            str,
            "where to get the JSON form",
            value=lambda s, call: call.url(f"/api/v2/state-versions/{s.id}/json-download") if s.has_json else None,
        ),
        Attr(
            "hosted-state-upload-url",
            str,
            "where to PUT the bytes; shown at creation only",
            only_in=VIEW_CREATED,
            value=_link("state upload", "uploads/states"),
        ),
        Attr(
            "hosted-json-state-upload-url",
            str,
            "where to PUT the JSON form; shown at creation only",
            only_in=VIEW_CREATED,
            value=_link("json state upload", "uploads/json-states"),
        ),
    ),
    relations=(
        One("run", "runs", write=True),
        One("workspace", "workspaces"),
        One("created-by", "users", key=lambda s, _: s.created_by_id or None),
        Many("outputs", "state-version-outputs", keys=lambda s, _: s.output_ids),
    ),
    load=actions.by_ids,
    prepare=lambda rows, _call: _prepare(rows),
    lasts=lambda s: s.status == "finalized",
    run_token=True,
)
OUTPUT = Resource(
    type="state-version-outputs",
    attributes=(
        Attr("name", str, "its name"),
        Attr("sensitive", bool, "whether lists hide its value"),
        Attr("type", str, "string, number, boolean, array or object"),
        Attr("value", object, "null in lists where sensitive", value=lambda o, _: o.shown),
        Attr("detailed-type", object, "terraform's type expression", value=lambda o, _: o.detailed_type[0]),
    ),
    load=actions.outputs_by_ids,
    prepare=actions.show_outputs,
    run_token=True,
)


async def _prepare(rows: Sequence[StateVersion]) -> None:
    found = await actions.output_ids([row.id for row in rows])
    for row in rows:
        row.output_ids = found[row.id]


async def _workspace(call: Call) -> workspaces.Row:
    """The path's workspace. A run's token may name its own, and those that share their state with it."""
    workspace = await workspaces.get(call.path["workspace"])
    await _check_run(call, workspace.id)
    return workspace


async def _check_run(call: Call, workspace_id: str) -> None:
    if call.principal.kind == "run" and not await actions.may_run_read(call.principal, workspace_id):
        raise NotFound


async def index(call: Call) -> Rows:
    """The workspace's state versions, newest first."""
    if "workspace" in call.path:
        workspace = await _workspace(call)
    else:
        name = call.param("filter[workspace][name]")
        if not name or call.param("filter[organization][name]", "default") != "default":
            message = "filter[workspace][name] and filter[organization][name] are needed"
            raise Invalid(message)
        call.level = await call.services.guard.demand(call.principal, Level.READ, "workspace_name", name)
        workspace = await workspaces.by_name(name)
    found = StateVersion.filter(workspace_id=workspace.id)
    if status := call.param("filter[status]"):
        found = found.filter(status=status)
    return await call.rows(found.order_by("-id"))


async def create(call: Call) -> StateVersion:
    """Announce a state; the answer says where to PUT its bytes."""
    workspace = await workspaces.get(call.path["workspace"])
    values = {**call.attributes, "run_id": call.related("run")}
    return await actions.create(call.services, workspace, call.principal, values, is_admin=call.level >= Level.ADMIN)


async def current(call: Call) -> Record[StateVersion]:
    """The newest state; 404 where there is none."""
    await _check_run(call, call.path["workspace"])
    row = await actions.read_current(call.path["workspace"])
    if row is None:
        workspace = await _workspace(call)
        error = NotFound(f"workspace {workspace.name} has no state")
        error.headers.update(_SNAPSHOTS, **{"Content-Type": _MEDIA})
        raise error
    return row


async def find(call: Call) -> StateVersion:
    """The state version that the path names."""
    return (await show(call)).row


async def _read(version_id: str) -> Record[StateVersion]:
    found = await actions.READER.one('t."id" = $1', version_id)
    if found is None:
        raise NotFound
    return found


async def show(call: Call) -> Record[StateVersion]:
    """One state version."""
    found = await _read(call.path["state_version"])
    if call.principal.kind == "run":
        await _check_run(call, found.row.workspace_id)
    return found


async def download(call: Call) -> Response:
    """Redirects to a URL that gives the raw bytes for an hour."""
    row = await find(call)
    if row.status != "finalized":
        raise NotFound
    token = call.services.signer.sign("state download", row.id, DOWNLOAD_S)
    return RedirectResponse(call.url(f"/api/v2/downloads/states/{token}"), 302)


async def json_download(call: Call) -> Response:
    """Redirects to a URL that gives the JSON form for an hour."""
    row = await find(call)
    if not row.has_json:
        raise NotFound
    token = call.services.signer.sign("json state download", row.id, DOWNLOAD_S)
    return RedirectResponse(call.url(f"/api/v2/downloads/json-states/{token}"), 302)


async def raw(call: Call) -> Response:
    """The raw bytes; the URL is the right to have them."""
    row = await _read(call.services.signer.check("state download", call.path["token"]))
    call.about(STATE.type, row.id, row.workspace_id)
    return await call.stored(row.key, "application/json", row.size, version=row.sha256)


async def raw_json(call: Call) -> Response:
    """The JSON form; the URL is the right to have it."""
    row = await _read(call.services.signer.check("json state download", call.path["token"]))
    call.about(STATE.type, row.id, row.workspace_id)
    return await call.stored(keys.json_state(row.workspace_id, row.id), "application/json")


async def upload(call: Call) -> Response:
    """PUT the raw bytes of an announced state; the URL is the right to do so."""
    version_id = call.services.signer.check("state upload", call.path["token"])
    call.about(STATE.type, version_id)
    await identity.check_still_in((await actions.get(version_id)).created_by_id)
    await actions.upload(call.services, version_id, call.stream())
    return Response(status_code=200)


async def upload_json(call: Call) -> Response:
    """PUT the JSON form of an announced state; the URL is the right to do so."""
    version_id = call.services.signer.check("json state upload", call.path["token"])
    call.about(STATE.type, version_id)
    await identity.check_still_in((await actions.get(version_id)).created_by_id)
    await actions.upload_json(call.services, version_id, call.stream())
    return Response(status_code=200)


async def put_content(call: Call) -> Response:
    """PUT the raw bytes with a bearer token."""
    row = await _announced(call)
    await actions.upload(call.services, row.id, call.stream())
    return Response(status_code=200)


async def put_json_content(call: Call) -> Response:
    """PUT the JSON form with a bearer token."""
    row = await _announced(call)
    await actions.upload_json(call.services, row.id, call.stream())
    return Response(status_code=200)


async def _announced(call: Call) -> StateVersion:
    row = await actions.get(call.path["state_version"])
    actions.check_lock(await workspaces.get(row.workspace_id), call.principal.id)
    return row


async def outputs(call: Call) -> Rows:
    """The outputs of a state version; values of sensitive ones are null."""
    row = await find(call)
    return Rows(await actions.outputs(row.id)) if not call.page.asked else call.cut(await actions.outputs(row.id))


async def current_outputs(call: Call) -> Rows:
    """The outputs of the newest state; none where there is no state."""
    workspace = await _workspace(call)
    rows = await actions.outputs(workspace.current_state_version_id) if workspace.current_state_version_id else []
    return call.cut(rows) if call.page.asked else Rows(rows)


async def show_output(call: Call) -> StateOutput:
    """One output with its value, which needs plan where it is sensitive."""
    row = await StateOutput.get_or_none(id=call.path["state_version_output"])
    if row is None:
        raise NotFound
    await _check_run(call, row.workspace_id)
    if row.sensitive and call.level < Level.PLAN and call.principal.kind != "run":
        message = "the value of a sensitive output needs plan"
        raise Forbidden(message)
    return actions.opened(call.services, [row], sensitive=True)[0]


RESOURCES = (STATE, OUTPUT)
EXTENSION = Extension(
    of="workspaces",
    relations=(
        Many(
            "outputs",
            OUTPUT.type,
            link=lambda added, _: f"/api/v2/workspaces/{added.row.id}/current-state-version-outputs",
        ),
    ),
)
THINGS = (
    Thing("state_version", 'state_version s JOIN workspace t ON t."id" = s."workspace_id"', 's."id"'),
    Thing("state_version_output", 'state_output o JOIN workspace t ON t."id" = o."workspace_id"', 'o."id"'),
)
_LIST = "/api/v2/workspaces/{workspace}/state-versions"
_ONE = "/api/v2/state-versions/{state_version}"
_JSON: dict[str, Any] = {"media": _MEDIA, "headers": _SNAPSHOTS}
_BYTES = "application/octet-stream"
_UPLOAD: dict[str, Any] = {
    "needs": Access.CAPABILITY,
    "limit": Limit.STATE,
    "quiet": True,
    "unmetered": True,
    "takes": _BYTES,
}
_DOWNLOAD: dict[str, Any] = {
    "needs": Access.CAPABILITY,
    "quiet": True,
    "unmetered": True,
    "recorded": Recorded.READS,
    "gives": dict[str, Any],
}
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", _LIST, STATE, index, Level.READ, many=True, filters=("filter[status]",), media=_MEDIA),
    Endpoint(
        "GET",
        "/api/v2/state-versions",
        STATE,
        index,
        Access.USER,
        many=True,
        media=_MEDIA,
        filters=("filter[organization][name]", "filter[workspace][name]", "filter[status]"),
    ),
    Endpoint(
        "POST",
        _LIST,
        STATE,
        create,
        Level.WRITE,
        status=201,
        limit=Limit.INLINE,
        view=VIEW_CREATED,
        requires=("serial", "md5"),
        **_JSON,
    ),
    Endpoint(
        "GET",
        "/api/v2/workspaces/{workspace}/current-state-version",
        STATE,
        current,
        Level.READ,
        run_token=True,
        **_JSON,
    ),
    Endpoint(
        "GET",
        "/api/v2/workspaces/{workspace}/current-state-version-outputs",
        OUTPUT,
        current_outputs,
        Level.READ,
        many=True,
        run_token=True,
    ),
    Endpoint("GET", _ONE, STATE, show, Level.READ, run_token=True, **_JSON),
    Endpoint("GET", _ONE + "/outputs", OUTPUT, outputs, Level.READ, many=True, run_token=True),
    Endpoint(
        "GET",
        "/api/v2/state-version-outputs/{state_version_output}",
        OUTPUT,
        show_output,
        Level.READ,
        run_token=True,
        recorded=Recorded.READS,
    ),
    Raw("GET", _ONE + "/download", download, Level.PLAN, run_token=True, recorded=Recorded.READS, answers=(302,)),
    Raw(
        "GET",
        _ONE + "/json-download",
        json_download,
        Level.PLAN,
        run_token=True,
        recorded=Recorded.READS,
        answers=(302,),
    ),
    Raw("PUT", _ONE + "/content", put_content, Level.WRITE, limit=Limit.STATE, unmetered=True, takes=_BYTES),
    Raw("PUT", _ONE + "/json-content", put_json_content, Level.WRITE, limit=Limit.STATE, unmetered=True, takes=_BYTES),
    Raw("PUT", "/api/v2/uploads/states/{token}", upload, **_UPLOAD),
    Raw("PUT", "/api/v2/uploads/json-states/{token}", upload_json, **_UPLOAD),
    Raw("GET", "/api/v2/downloads/states/{token}", raw, **_DOWNLOAD),
    Raw("GET", "/api/v2/downloads/json-states/{token}", raw_json, **_DOWNLOAD),
)
