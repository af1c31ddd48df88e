"""Modules as JSON:API: made, listed, labelled, removed; versions announced, uploaded, removed."""

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from terrapod_server.access import rules as access
from terrapod_server.access import visible
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Accepts, Attr, Endpoint, Limit, One, Query, Raw, Resource, Thing
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.paging import Rows
from terrapod_server.registry.modules import actions, rules
from terrapod_server.registry.modules.model import Module, ModuleVersion
from terrapod_shared.errors import Forbidden, Invalid

#: How long an upload URL is good.
UPLOAD_S = 3600
_PURPOSE = "module upload"
LIST = "/api/v2/organizations/{org}/registry-modules"
OF_NAME = LIST + "/private/{namespace}/{name}"
ONE = OF_NAME + "/{provider}"
#: How go-tfe spells the creation of a version, and removal before it could name a namespace.
SHORT = "/api/v2/registry-modules/{org}/{name}/{provider}"
REMOVE = "/api/v2/registry-modules/actions/delete/{org}/{name}"


def permissions(level: Level) -> dict[str, bool]:
    """The reference's flags and go-tfe's, from a level alone."""
    write, admin = level >= Level.WRITE, level >= Level.ADMIN
    return {
        "can-update": admin,
        "can-destroy": admin,
        "can-create-version": write,
        "can-delete": admin,
        "can-resync": write,
        "can-retry": write,
    }


def _statuses(module: Any, _call: Call) -> list[dict[str, Any]]:
    return [
        {
            "version": row.version,
            "status": row.status,
            "error": "",
            "vcs-commit-sha": row.commit_sha or None,
            "vcs-tag": None,
        }
        for row in module.versions
    ]


def _status(module: Any, _call: Call) -> str:
    return "setup_complete" if any(row.status == "ok" for row in module.versions) else "pending"


async def _prepare(rows: Sequence[Any]) -> None:
    found = await actions.versions(row.id for row in rows)
    for row in rows:
        row.versions = found[row.id]


MODULE = Resource(
    type="registry-modules",
    attributes=(
        Attr("name", str, "its name, unique for each provider", write=True, parse=rules.name),
        Attr("provider", str, "the provider that it is for", write=True, parse=rules.provider),
        Attr(
            "namespace",
            str,
            "always default",
            write=True,
            parse=rules.namespace,
            value=lambda *_: rules.NAMESPACE,
        ),
        Attr(
            "registry-name",
            str,
            "always private",
            write=True,
            parse=rules.registry,
            value=lambda *_: rules.REGISTRY,
        ),
        Attr("status", str, "pending until a version is uploaded, then setup_complete", value=_status),
        Attr("version-statuses", list, "all versions, newest first", value=_statuses),
        Attr("labels", dict, "key and value pairs; they decide rights", write=True, parse=access.labels),
        Attr("force", bool, "also where the caller loses rights by it", write=True, only_in="sent"),
        Attr("owner-email", str, "who made it"),
        Attr("source", str, "how versions come in", value=lambda *_: "upload"),
        Attr("no-code", bool, "not done here", value=lambda *_: False),
        Attr("created-at", str, "when it was made"),
        Attr("updated-at", str, "when it was last changed"),
        Attr(
            "permissions", dict, "what the caller may do", value=lambda module, call: permissions(call.level_on(module))
        ),
    ),
    relations=(One("organization", "organizations", key=lambda *_: rules.NAMESPACE),),
    unsupported=(
        Accepts("no-code", "whether it can be provisioned without code", (False,)),
        Accepts("vcs-repo", "the repository whose tags become versions", ({},)),
        Accepts("test-config", "how its tests are run", ({}, {"tests-enabled": False})),
        Accepts("initial-version", "the version that a branch becomes", ("",)),
        Accepts("tag-bindings", "its tags; labels are what decides here", ([],), related=True),
    ),
    links={"self": lambda module, _: ONE.format(org="default", namespace=rules.NAMESPACE, **_names(module))},
    load=actions.by_ids,
    prepare=lambda rows, _call: _prepare(rows),
    has_rights=True,
)
VERSION = Resource(
    type="registry-module-versions",
    attributes=(
        Attr("version", str, "a semantic version, without a v", write=True, parse=rules.version),
        Attr("commit-sha", str, "the commit that it was made of", write=True, maximum=64),
        Attr("status", str, "pending until its archive is here whole, then ok"),
        Attr("source", str, "how it came in", value=lambda *_: "tfe-api"),
        Attr("created-at", str, "when it was announced"),
        Attr("updated-at", str, "when it came into its status"),
    ),
    relations=(One("registry-module", "registry-modules", key=lambda row, _: row.module_id),),
    links={
        "upload": lambda row, call: (
            call.url(f"/api/v2/uploads/modules/{call.services.signer.sign(_PURPOSE, row.id, UPLOAD_S)}")
            if call.request.method == "POST"
            else None
        )
    },
)


def _names(module: Module) -> dict[str, str]:
    return {"name": module.name, "provider": module.provider}


async def _find(call: Call) -> Module:
    """The module that the path names; go-tfe's short form leaves the namespace out."""
    path = call.path
    return await actions.named(path.get("namespace", rules.NAMESPACE), path["name"], path["provider"])


async def index(call: Call) -> Rows:
    """The modules that the caller may read, by name and provider."""
    where = actions.search(call.request.query_params)
    if where is None:
        return Rows([], 0)
    where &= visible.where(call.principal.rights, actions.KIND)
    return call.listed(await actions.READER.page(call.page, where, 't."address"'))


async def create(call: Call) -> Module:
    """Make a module; the caller becomes its owner."""
    if call.principal.is_limited:
        message = "a token with limits makes no module"
        raise Forbidden(message)
    for name in ("name", "provider"):
        if name not in call.attributes:
            message = f"a module needs a {name}"
            raise Invalid(message, pointer=f"/data/attributes/{name}")
    call.level = Level.ADMIN
    return await actions.create(call.principal, call.attributes)


async def show(call: Call) -> Module:
    """One module, by its names."""
    return await _find(call)


async def show_by_id(call: Call) -> Module:
    """One module, by its id."""
    return await actions.get(call.path["module"])


async def update(call: Call) -> Module:
    """Change labels; names stay as they are."""
    module = await _find(call)
    for name, now in _names(module).items():
        if call.attributes.get(name, now) != now:
            message = f"the {name} of a module stays: configurations name it by it"
            raise Invalid(message, pointer=f"/data/attributes/{name}")
    labels = call.attributes.get("labels", module.labels)
    after = call.principal.rights.level(module.id, module.name, labels, module.owner_id)
    access.check_lockout(call.level, after, force=call.attributes.get("force", False))
    if "labels" in call.attributes:
        return await actions.set_labels(module, labels)
    return module


async def delete(call: Call) -> None:
    """Remove a module with all its versions."""
    module = await _find(call)
    call.about(MODULE.type, module.id)
    await actions.delete(call.services, [module])


async def delete_of_name(call: Call) -> None:
    """Remove the modules of a name, for all providers; needs admin on each."""
    modules = await actions.of_name(call.path.get("namespace", rules.NAMESPACE), call.path["name"])
    for module in modules:
        await call.services.guard.demand(call.principal, Level.ADMIN, "module", module.id)
    await actions.delete(call.services, modules)


async def versions(call: Call) -> Rows:
    """All versions of a module, newest first."""
    module = await (show_by_id(call) if "module" in call.path else _find(call))
    return call.cut((await actions.versions([module.id]))[module.id])


async def show_version(call: Call) -> ModuleVersion:
    """One version, named by the parameter module_version."""
    return await actions.version(await _find(call), call.param("module_version") or "")


async def create_version(call: Call) -> ModuleVersion:
    """Announce a version; the answer's link `upload` says where to PUT its archive."""
    if "version" not in call.attributes:
        message = "a version of a module needs a version"
        raise Invalid(message, pointer="/data/attributes/version")
    sent = call.attributes
    return await actions.announce(call.principal, await _find(call), sent["version"], sent.get("commit_sha", ""))


async def delete_version(call: Call) -> None:
    """Remove one version."""
    row = await actions.version(await _find(call), call.path["version"])
    call.about(VERSION.type, row.id)
    await actions.delete_version(call.services, row)


async def upload(call: Call) -> Response:
    """PUT a version's archive, a gzip tar; the URL is the right to do so."""
    version_id = call.services.signer.check(_PURPOSE, call.path["token"])
    call.about(VERSION.type, version_id)
    await actions.upload(call.services, version_id, call.stream())
    return Response(status_code=200)


def _one(method: str, path: str, resource: Resource | None, do: Any, needs: Level, **more: Any) -> Endpoint:
    return Endpoint(method, path, resource, do, needs, guards="name/provider", **more)


RESOURCES = (MODULE, VERSION)
THINGS = (
    Thing("module", "registry_module t"),
    Thing("name/provider", "registry_module t", 't."address"'),
)
_FILTERS = ("q", "filter[provider]", "filter[registry_name]", "filter[organization_name]")
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", LIST, MODULE, index, Access.USER, many=True, filters=_FILTERS),
    Endpoint("POST", LIST, MODULE, create, Access.USER, status=201, requires=("name", "provider")),
    Endpoint("GET", "/api/v2/registry-modules/{module}", MODULE, show_by_id, Level.READ),
    _one("GET", ONE, MODULE, show, Level.READ),
    _one("PATCH", ONE, MODULE, update, Level.ADMIN),
    _one("DELETE", ONE, None, delete, Level.ADMIN, body=False),
    Endpoint("DELETE", OF_NAME, None, delete_of_name, Access.USER, body=False),
    Endpoint("GET", "/api/v2/registry-modules/{module}/versions", VERSION, versions, Level.READ, many=True),
    _one("GET", ONE + "/versions", VERSION, versions, Level.READ, many=True),
    _one("GET", ONE + "/version", VERSION, show_version, Level.READ, filters=(Query("module_version", required=True),)),
    _one("POST", ONE + "/versions", VERSION, create_version, Level.WRITE, status=201, requires=("version",)),
    _one("POST", SHORT + "/versions", VERSION, create_version, Level.WRITE, status=201, requires=("version",)),
    _one("DELETE", ONE + "/versions/{version}", None, delete_version, Level.ADMIN, body=False),
    _one("DELETE", ONE + "/{version}", None, delete_version, Level.ADMIN, body=False),
    Endpoint("POST", REMOVE, None, delete_of_name, Access.USER, body=False),
    _one("POST", REMOVE + "/{provider}", None, delete, Level.ADMIN, body=False),
    _one("POST", REMOVE + "/{provider}/{version}", None, delete_version, Level.ADMIN, body=False),
    Raw(
        "PUT",
        "/api/v2/uploads/modules/{token}",
        upload,
        Access.CAPABILITY,
        limit=Limit.MODULE,
        quiet=True,
        unmetered=True,
        takes="application/octet-stream",
    ),
)
