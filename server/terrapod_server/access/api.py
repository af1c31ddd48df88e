"""Roles and role assignments."""

from dataclasses import dataclass, field
from typing import Any

from terrapod_server.access import actions, rules
from terrapod_server.access.model import Role, RoleAssignment
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Attr, Endpoint, Raw, Resource
from terrapod_server.kit.caller import Access
from terrapod_server.kit.paging import Rows
from terrapod_shared.errors import Invalid


@dataclass(frozen=True)
class BuiltIn:
    """A role that is always there."""

    name: str
    description: str
    level: str
    allow_labels: dict[str, list[str]] = field(default_factory=dict)
    allow_names: list[str] = field(default_factory=list)
    deny_labels: dict[str, list[str]] = field(default_factory=dict)
    deny_names: list[str] = field(default_factory=list)
    created_at: None = None
    updated_at: None = None


_BUILT_IN = [
    BuiltIn(rules.ADMIN, rules.BUILT_IN[rules.ADMIN], "admin"),
    BuiltIn(rules.AUDIT, rules.BUILT_IN[rules.AUDIT], "read"),
    BuiltIn(rules.EVERYONE, rules.BUILT_IN[rules.EVERYONE], "read", {rules.OPEN[0]: [rules.OPEN[1]]}),
]


def _conditions(column: str) -> Any:
    """A single value as it was most likely sent: as text."""
    return lambda row, _: {
        key: values[0] if len(values) == 1 else values for key, values in getattr(row, column).items()
    }


ROLE = Resource(
    type="roles",
    attributes=(
        Attr("name", str, "unique name, which is also the id", write=True, parse=rules.role_name),
        Attr("description", str, "what it is for", write=True, maximum=4096),
        Attr(
            "workspace-permission",
            str,
            "the level that it gives on what matches: workspaces, pools, modules, providers",
            write=True,
            choices=tuple(rules.LEVELS),
            value=lambda row, _: row.level,
        ),
        Attr(
            "allow-labels",
            dict,
            "labels of which one is enough; a value, or a list of which any matches",
            write=True,
            parse=rules.pairs,
            value=_conditions("allow_labels"),
        ),
        Attr("allow-names", list, "names of which one is enough", write=True, items=str, parse=rules.names),
        Attr(
            "deny-labels",
            dict,
            "labels where the role gives nothing; other roles still give what they give",
            write=True,
            parse=rules.pairs,
            value=_conditions("deny_labels"),
        ),
        Attr("deny-names", list, "names where the role gives nothing", write=True, items=str, parse=rules.names),
        Attr("built-in", bool, "whether it is always there", value=lambda row, _: isinstance(row, BuiltIn)),
        Attr("created-at", str, "when it was made"),
        Attr("updated-at", str, "when it was last changed"),
    ),
    id=lambda row: str(row.name),
)
ASSIGNMENT = Resource(
    type="role-assignments",
    attributes=(
        Attr("provider-name", str, "who vouches for the address", write=True, value=lambda row, _: row.provider),
        Attr("email", str, "address, in lower case", write=True, minimum=1, maximum=254),
        Attr("role-name", str, "the role", value=lambda row, _: row.role),
        Attr("roles", list, "all roles that the person shall have", write=True, items=str, only_in="sent"),
        Attr("force", bool, "also where the caller loses rights by it", write=True, only_in="sent"),
        Attr("created-at", str, "since when"),
    ),
    id=lambda row: f"{row.provider}:{row.email}:{row.role}",
)


async def index(call: Call) -> Rows:
    """Built-in roles, then custom ones by name."""
    page, first = call.page, len(_BUILT_IN)
    built_in: list[BuiltIn | Role] = [*_BUILT_IN[page.offset : page.offset + page.size]]
    left = page.size - len(built_in)
    custom = Role.all().order_by("name").offset(max(0, page.offset - first)).limit(left)
    return Rows(built_in + (await custom if left else []), first + await Role.all().count())


async def show(call: Call) -> BuiltIn | Role:
    """One role."""
    name = call.path["role"]
    return next((role for role in _BUILT_IN if role.name == name), None) or await actions.role(name)


def _values(call: Call) -> dict[str, Any]:
    values = dict(call.attributes)
    if "workspace_permission" in values:
        values["level"] = values.pop("workspace_permission")
    return values


async def create(call: Call) -> Role:
    """Make a role."""
    return await actions.create_role(_values(call))


async def update(call: Call) -> Role:
    """Change a role, for everybody who has it."""
    row = await actions.update_role(call.path["role"], _values(call))
    await call.services.authenticator.changed()
    return row


async def delete(call: Call) -> None:
    """Remove a role and take it from everybody."""
    await actions.delete_role(call.path["role"])
    await call.services.authenticator.changed()


async def assignments(call: Call) -> Rows:
    """Who has which role."""
    found = RoleAssignment.all()
    for parameter, column in (("filter[email]", "email"), ("filter[provider-name]", "provider")):
        if value := call.param(parameter):
            found = found.filter(**{column: value.lower() if column == "email" else value})
    return await call.rows(found.order_by("email", "provider", "role"))


async def assign(call: Call) -> Rows:
    """Give a person exactly these roles."""
    sent = call.attributes
    for column, attribute in (("email", "email"), ("roles", "roles")):
        if column not in sent:
            message = f"{attribute} is needed"
            raise Invalid(message, pointer=f"/data/attributes/{attribute}")
    provider, email = sent.get("provider_name", "local"), sent["email"].lower()
    call.about(ASSIGNMENT.type, f"{provider}:{email}")
    await actions.assign(provider, email, sent["roles"], call.principal, force=sent.get("force", False))
    await call.services.authenticator.changed()
    return Rows(await RoleAssignment.filter(provider=provider, email=email).order_by("role"))


async def unassign(call: Call) -> None:
    """Take one role from a person."""
    provider, email, role = call.path["provider"], call.path["email"].lower(), call.path["role"]
    call.about(ASSIGNMENT.type, f"{provider}:{email}:{role}")
    await actions.unassign(provider, email, role, call.principal, force=call.flag("force"))
    await call.services.authenticator.changed()


RESOURCES = (ROLE, ASSIGNMENT)
_ONE = "/api/v2/roles/{role}"
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", "/api/v2/roles", ROLE, index, Access.AUDIT, many=True),
    Endpoint(
        "POST", "/api/v2/roles", ROLE, create, Access.PLATFORM, status=201, requires=("name", "workspace-permission")
    ),
    Endpoint("GET", _ONE, ROLE, show, Access.AUDIT),
    Endpoint("PATCH", _ONE, ROLE, update, Access.PLATFORM),
    Endpoint("DELETE", _ONE, ROLE, delete, Access.PLATFORM, body=False),
    Endpoint(
        "GET",
        "/api/v2/role-assignments",
        ASSIGNMENT,
        assignments,
        Access.AUDIT,
        many=True,
        filters=("filter[email]", "filter[provider-name]"),
    ),
    Endpoint(
        "PUT",
        "/api/v2/role-assignments",
        ASSIGNMENT,
        assign,
        Access.PLATFORM,
        many=True,
        requires=("email", "roles"),
    ),
    Endpoint(
        "DELETE",
        "/api/v2/role-assignments/{provider}/{email}/{role}",
        ASSIGNMENT,
        unassign,
        Access.PLATFORM,
        body=False,
    ),
)
