"""Configuration versions of a workspace, and the upload of their archives."""

from starlette.responses import Response

from terrapod_server.configs import actions
from terrapod_server.configs.model import ConfigurationVersion
from terrapod_server.identity import actions as identity
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, Limit, One, Raw, Recorded, Resource, Thing
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.paging import Rows
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared.errors import Forbidden, NotFound

#: How long an upload URL is good.
UPLOAD_S = 3600
_PURPOSE = "configuration upload"
VIEW_CREATED = "created"

CONFIGURATION = Resource(
    type="configuration-versions",
    attributes=(
        Attr("status", str, "pending, uploaded, archived or errored"),
        Attr("source", str, "where it came from"),
        Attr("auto-queue-runs", bool, "whether the upload begins a run", write=True),
        Attr("speculative", bool, "whether it can only be planned", write=True),
        Attr("provisional", bool, "whether it counts only once its run is applied", write=True),
        Attr("error", str, "always null", value=lambda *_: None),
        Attr("error-message", str, "what is wrong with it", value=lambda cv, _: cv.error_message or None),
        Attr("size", int, "bytes of the archive"),
        Attr("status-timestamps", dict, "when it came into each status"),
        Attr("created-at", str, "when it was made"),
        Attr(
            "upload-url",
            str,
            "where to PUT the archive; shown at creation only",
            only_in=VIEW_CREATED,
            value=lambda cv, call: call.url(
                f"/api/v2/uploads/configurations/{call.services.signer.sign(_PURPOSE, cv.id, UPLOAD_S)}"
            ),
        ),
    ),
    relations=(One("workspace", "workspaces"), One("ingress-attributes", "ingress-attributes", key=lambda *_: None)),
    load=actions.by_ids,
)
INGRESS = Resource(type="ingress-attributes")
_LIST = "/api/v2/workspaces/{workspace}/configuration-versions"
_ONE = "/api/v2/configuration-versions/{configuration_version}"


async def index(call: Call) -> Rows:
    """The workspace's configuration versions, newest first."""
    workspace = await workspaces.get(call.path["workspace"])
    return await call.rows(ConfigurationVersion.filter(workspace_id=workspace.id).order_by("-id"))


async def create(call: Call) -> ConfigurationVersion:
    """Make a configuration version; the answer says where to PUT its archive."""
    workspace = await workspaces.get(call.path["workspace"])
    if not call.attributes.get("speculative") and call.level < Level.WRITE:
        message = "a configuration version that is not speculative needs write"
        raise Forbidden(message)
    return await actions.create(workspace.id, call.principal.id, call.attributes)


async def show(call: Call) -> ConfigurationVersion:
    """One configuration version."""
    return await actions.get(call.path["configuration_version"])


async def archive(call: Call) -> ConfigurationVersion:
    """Remove the bytes of a version that no run uses."""
    return await actions.archive(call.services, await show(call))


async def upload(call: Call) -> Response:
    """PUT the archive, a gzip tar; the URL is the right to do so."""
    version_id = call.services.signer.check(_PURPOSE, call.path["token"])
    call.about(CONFIGURATION.type, version_id)
    await identity.check_still_in((await actions.get(version_id)).created_by_id)
    await actions.upload(call.services, version_id, call.stream())
    return Response(status_code=200)


async def download(call: Call) -> Response:
    """The archive as it was uploaded."""
    row = await show(call)
    if row.status != "uploaded":
        raise NotFound
    return await call.stored(row.stored_key, "application/gzip", row.size)


RESOURCES = (CONFIGURATION, INGRESS)
THINGS = (
    Thing(
        "configuration_version",
        'configuration_version c JOIN workspace t ON t."id" = c."workspace_id"',
        'c."id"',
    ),
)
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", _LIST, CONFIGURATION, index, Level.READ, many=True),
    Endpoint("POST", _LIST, CONFIGURATION, create, Level.PLAN, status=201, view=VIEW_CREATED),
    Endpoint("GET", _ONE, CONFIGURATION, show, Level.READ),
    Endpoint("POST", _ONE + "/actions/archive", CONFIGURATION, archive, Level.WRITE, status=202, body=False),
    Raw("GET", _ONE + "/download", download, Level.WRITE, recorded=Recorded.READS),
    Raw(
        "PUT",
        "/api/v2/uploads/configurations/{token}",
        upload,
        Access.CAPABILITY,
        limit=Limit.CONFIGURATION,
        quiet=True,
        unmetered=True,
        takes="application/octet-stream",
    ),
)
