"""Variables of a workspace."""

from typing import Any

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, One, Raw, Resource
from terrapod_server.kit.caller import Level
from terrapod_server.kit.paging import Rows
from terrapod_server.variables import actions
from terrapod_server.variables.model import Variable
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared.variables import hint

VARIABLE = Resource(
    type="vars",
    attributes=(
        Attr("key", str, "its name", write=True, maximum=255),
        Attr(
            "value", str, "null where sensitive", write=True, nullable=True, maximum=1 << 20, value=lambda v, _: v.shown
        ),
        Attr("category", str, "terraform's own, or of the environment", write=True, choices=("terraform", "env")),
        Attr("description", str, "what it is for", write=True, nullable=True),
        Attr("hcl", bool, "whether the value is an expression", write=True),
        Attr("sensitive", bool, "whether the value can never be read again", write=True),
        Attr("hint", str, "why no run is given it; null where runs are", value=lambda v, _: hint(v.key, v.category)),
        Attr("version-id", str, "another one after every update"),
        Attr("created-at", str, "when it was made"),
    ),
    relations=(One("configurable", "workspaces", key=lambda v, _: v.workspace_id),),
)
_LIST = "/api/v2/workspaces/{workspace}/vars"
_ONE = _LIST + "/{variable}"


async def index(call: Call) -> Rows:
    """All variables of the workspace; values of sensitive ones are never shown."""
    workspace = await workspaces.get(call.path["workspace"])
    found = Variable.filter(workspace_id=workspace.id).order_by("key", "category")
    page = await call.rows(found, full_unless_asked=True)
    return Rows(actions.opened(call.services, page.rows), page.total)


async def create(call: Call) -> Variable:
    """Make a variable."""
    workspace = await workspaces.get(call.path["workspace"])
    return await actions.create(call.services, workspace.id, call.attributes)


async def show(call: Call) -> Variable:
    """One variable."""
    return await actions.get(call.services, call.path["workspace"], call.path["variable"])


async def update(call: Call) -> Variable:
    """Change a variable; what is not sent stays."""
    return await actions.update(call.services, await show(call), call.attributes)


async def delete(call: Call) -> None:
    """Remove a variable."""
    await actions.delete(await show(call))


RESOURCES = (VARIABLE,)
_WRITE: dict[str, Any] = {"needs": Level.WRITE}
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", _LIST, VARIABLE, index, Level.READ, many=True),
    Endpoint("GET", "/api/v2/workspaces/{workspace}/all-vars", VARIABLE, index, Level.READ, many=True),
    Endpoint("POST", _LIST, VARIABLE, create, status=201, requires=("key",), **_WRITE),
    Endpoint("GET", _ONE, VARIABLE, show, Level.READ),
    Endpoint("PATCH", _ONE, VARIABLE, update, **_WRITE),
    Endpoint("DELETE", _ONE, VARIABLE, delete, body=False, **_WRITE),
)
