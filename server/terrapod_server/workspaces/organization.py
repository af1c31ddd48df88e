"""The one organization `default` and its one project: there to be named, not to be changed."""

from dataclasses import dataclass
from datetime import UTC, datetime

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, One, Raw, Resource
from terrapod_server.kit.caller import Access
from terrapod_server.kit.paging import Rows
from terrapod_shared.errors import Invalid, NotFound

PROJECT_ID = "prj-00000000000000000default"
PROJECT_NAME = "Default Project"
_FOUNDED = datetime(2026, 1, 1, tzinfo=UTC)
#: What an entitlement set may hold; terraform runs everything locally where `operations` is false.
_ENTITLED = [
    "agents",
    "audit-logging",
    "cost-estimation",
    "global-run-tasks",
    "operations",
    "private-module-registry",
    "private-run-tasks",
    "run-tasks",
    "sso",
    "state-storage",
    "teams",
    "vcs-integrations",
]
_NOT_ENTITLED = ("sentinel", "self-serve-billing", "waypoint-actions", "waypoint-templates-and-addons")


@dataclass(frozen=True)
class Fixed:
    """A resource that is always there."""

    id: str
    name: str


ORGANIZATION = Resource(
    type="organizations",
    attributes=(
        Attr("name", str, "always default"),
        Attr("external-id", str, "the same", value=lambda row, _: row.id),
        Attr("email", str, "none", value=lambda *_: ""),
        Attr("created-at", datetime, "a fixed day", value=lambda *_: _FOUNDED),
        Attr("default-execution-mode", str, "of new workspaces", value=lambda *_: "remote"),
        Attr("collaborator-auth-policy", str, "always password", value=lambda *_: "password"),
        Attr("cost-estimation-enabled", bool, "not done here", value=lambda *_: False),
        Attr("saml-enabled", bool, "of this organization", value=lambda *_: False),
        Attr("assessments-enforced", bool, "never", value=lambda *_: False),
        Attr("allow-force-delete-workspaces", bool, "admins may", value=lambda *_: True),
        Attr(
            "permissions",
            dict,
            "what the caller may do",
            value=lambda _, call: {
                "can-create-workspace": True,
                "can-create-project": False,
                "can-create-team": False,
                "can-update": False,
                "can-destroy": False,
                "can-manage-run-tasks": False,
                "can-traverse": True,
                "can-update-agent-pools": call.principal.is_admin,
                "can-manage-users": call.principal.is_admin,
                "can-update-api-token": False,
                "can-update-oauth": False,
                "can-update-sentinel": False,
            },
        ),
    ),
    relations=(One("default-project", "projects", key=lambda *_: PROJECT_ID),),
    load=lambda _ids: _organizations(),
)
ENTITLEMENTS = Resource(
    type="entitlement-sets",
    attributes=(
        *(Attr(name, bool, "can be used", value=lambda *_: True) for name in _ENTITLED),
        *(Attr(name, bool, "is not here", value=lambda *_: False) for name in _NOT_ENTITLED),
    ),
)
PROJECT = Resource(
    type="projects",
    attributes=(
        Attr("name", str, "always Default Project", write=True),
        Attr("description", str, "none", value=lambda *_: ""),
        Attr("created-at", datetime, "a fixed day", value=lambda *_: _FOUNDED),
        Attr(
            "permissions",
            dict,
            "what the caller may do",
            value=lambda *_: {
                "can-read": True,
                "can-update": False,
                "can-destroy": False,
                "can-create-workspace": True,
            },
        ),
    ),
    relations=(One("organization", "organizations", key=lambda *_: "default"),),
    load=lambda _ids: _projects(),
)
_ORGANIZATION = Fixed("default", "default")
_PROJECT = Fixed(PROJECT_ID, PROJECT_NAME)


async def _organizations() -> list[Fixed]:
    return [_ORGANIZATION]


async def _projects() -> list[Fixed]:
    return [_PROJECT]


async def organizations(call: Call) -> Rows:
    """The one organization, as a list."""
    query = (call.param("q") or "").lower()
    return call.cut([_ORGANIZATION] if query in _ORGANIZATION.name else [])


async def organization(_call: Call) -> Fixed:
    """The one organization."""
    return _ORGANIZATION


async def entitlements(_call: Call) -> Fixed:
    """What the organization may use."""
    return _ORGANIZATION


async def projects(call: Call) -> Rows:
    """The one project; a 404 here would crash terraform's init."""
    names = call.param("filter[names]")
    return call.cut([_PROJECT] if names is None or PROJECT_NAME in names.split(",") else [])


async def project(call: Call) -> Fixed:
    """The one project."""
    if call.path["project"] != PROJECT_ID:
        raise NotFound
    return _PROJECT


async def create_project(_call: Call) -> Fixed:
    """Refused: there is one project."""
    message = f"there is one project, {PROJECT_NAME}; more cannot be made"
    raise Invalid(message, pointer="/data/attributes/name")


RESOURCES = (ORGANIZATION, ENTITLEMENTS, PROJECT)
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", "/api/v2/organizations", ORGANIZATION, organizations, Access.USER, many=True),
    Endpoint("GET", "/api/v2/organizations/{org}", ORGANIZATION, organization, Access.USER, run_token=True),
    Endpoint(
        "GET", "/api/v2/organizations/{org}/entitlement-set", ENTITLEMENTS, entitlements, Access.USER, run_token=True
    ),
    Endpoint("GET", "/api/v2/organizations/{org}/projects", PROJECT, projects, Access.USER, many=True),
    Endpoint("POST", "/api/v2/organizations/{org}/projects", PROJECT, create_project, Access.USER, status=201),
    Endpoint("GET", "/api/v2/projects/{project}", PROJECT, project, Access.USER, guards="org"),
)
