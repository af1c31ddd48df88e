"""Workspaces, by id and by name, with their locks, labels and consumers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from terrapod_server.access import rules as access
from terrapod_server.identity import actions as identity
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Accepts, Attr, Endpoint, Many, One, Raw, Resource, Thing
from terrapod_server.kit.api.identifiers import Linked
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.db.row_cache import Record
from terrapod_server.kit.paging import Rows
from terrapod_server.workspaces import actions, ports, rules
from terrapod_server.workspaces.model import Workspace
from terrapod_server.workspaces.organization import PROJECT_ID
from terrapod_shared import versions
from terrapod_shared.errors import Forbidden, Invalid, NotFound

BY_ID = "/api/v2/workspaces/{workspace}"
BY_NAME = "/api/v2/organizations/{org}/workspaces/{workspace_name}"
LIST = "/api/v2/organizations/{org}/workspaces"


def permissions(level: Level) -> dict[str, bool]:
    """The flags that terraform, go-tfe and pytfe look at, from a level alone."""
    read, plan, write, admin = (level >= least for least in (Level.READ, Level.PLAN, Level.WRITE, Level.ADMIN))
    return {
        "can-update": admin,
        "can-destroy": admin,
        "can-queue-run": plan,
        "can-queue-apply": write,
        "can-queue-destroy": write,
        "can-read-state-versions": read,
        "can-create-state-versions": write,
        "can-read-variable": read,
        "can-update-variable": write,
        "can-lock": plan,
        "can-unlock": plan,
        "can-force-unlock": admin,
        "can-force-delete": admin,
        "can-read-settings": read,
        "can-manage-run-tasks": False,
    }


def _locked_by(workspace: Workspace, _call: Call) -> str | None:
    return workspace.locked_by_id if workspace.locked else workspace.run_lock_id


WORKSPACE = Resource(
    type="workspaces",
    attributes=(
        Attr("name", str, "unique name", write=True, parse=rules.name),
        Attr("description", str, "what it is for", write=True, nullable=True, value=lambda w, _: w.description or ""),
        Attr("environment", str, "always default", value=lambda *_: "default"),
        Attr(
            "execution-mode",
            str,
            "where runs happen: on listeners of the pool default, of a named pool, or at the user's",
            write=True,
            choices=("remote", "agent", "local"),
        ),
        Attr(
            "operations",
            bool,
            "the old form of execution-mode",
            write=True,
            value=lambda w, _: w.execution_mode != "local",
        ),
        Attr("execution-backend", str, "which engine runs", write=True, choices=("terraform", "tofu")),
        Attr(
            "terraform-version",
            str,
            "exact, partial (1.11), a constraint, or latest",
            write=True,
            minimum=1,
            maximum=versions.LENGTH_MOST,
            parse=versions.checked,
        ),
        Attr(
            "working-directory",
            str,
            "folder of the root module",
            write=True,
            nullable=True,
            parse=rules.folder,
            value=lambda w, _: w.working_directory or "",
        ),
        Attr(
            "vcs-working-directory",
            str,
            "the same, in another spelling",
            write=True,
            parse=rules.folder,
            value=lambda w, _: w.working_directory or "",
        ),
        Attr("auto-apply", bool, "whether the server confirms runs by itself", write=True),
        Attr("auto-apply-run-trigger", bool, "the same for runs that another run began", write=True, kept=True),
        Attr("agent-pool-id", str, "the pool of execution-mode agent", write=True, nullable=True),
        Attr("allow-destroy-plan", bool, "whether destroy plans may be queued", write=True),
        Attr("assessments-enabled", bool, "go-tfe's word for drift detection", write=True, kept=True),
        Attr("file-triggers-enabled", bool, "whether changed files narrow VCS runs", write=True, kept=True),
        Attr("global-remote-state", bool, "whether every workspace's runs may read the state", write=True),
        Attr("queue-all-runs", bool, "whether the first VCS commit begins a run", write=True, kept=True),
        Attr("speculative-enabled", bool, "whether pull requests are planned", write=True, kept=True),
        Attr("structured-run-output-enabled", bool, "whether logs of the cloud block are JSON lines", write=True),
        Attr("source", str, "who made it"),
        Attr("source-name", str, "the maker's name", write=True, kept=True, maximum=254),
        Attr("source-url", str, "the maker's address", write=True, kept=True, maximum=1024),
        Attr(
            "trigger-prefixes",
            list,
            "folders whose changes begin VCS runs",
            write=True,
            kept=True,
            items=str,
            maximum=100,
        ),
        Attr("trigger-patterns", list, "patterns of the same", write=True, kept=True, items=str, maximum=100),
        Attr(
            "resource-cpu", str, "cores that a run may use, such as 2 or 500m", write=True, maximum=20, parse=rules.cpu
        ),
        Attr(
            "resource-memory", str, "memory that a run may use, such as 2Gi", write=True, maximum=20, parse=rules.memory
        ),
        Attr("labels", dict, "key and value pairs; they decide rights", write=True, parse=access.labels),
        Attr("tag-names", list, "the keys of the labels", value=lambda w, _: sorted(w.labels)),
        Attr("vcs-repo", dict, "none without VCS", value=lambda *_: None),
        Attr("vcs-repo-url", str, "address of the repository", write=True, kept=True, maximum=1024),
        Attr("vcs-branch", str, "its branch", write=True, kept=True, maximum=254),
        Attr("drift-detection-enabled", bool, "whether drift is looked for", write=True, kept=True),
        Attr(
            "drift-detection-interval-seconds",
            int,
            "how often",
            write=True,
            kept=True,
            minimum=3600,
            maximum=31_536_000,
        ),
        Attr("drift-last-checked-at", str, "when drift was last looked for", value=lambda *_: None),
        Attr("drift-status", str, "what was found", value=lambda *_: ""),
        Attr("locked", bool, "by a person or by a run", value=lambda w, _: w.locked or w.run_lock_id is not None),
        Attr(
            "lock-reason",
            str,
            "why it was locked by hand, or what to check of the state that a run has left unknown",
            value=lambda w, _: w.lock_reason if w.locked else w.run_lock_reason,
        ),
        Attr("owner-email", str, "whose it is; a platform admin may change it", write=True, maximum=254),
        Attr("force", bool, "also where the caller loses rights by it", write=True, only_in="sent"),
        Attr("resource-count", int, "resources in the current state"),
        Attr("apply-duration-average", int, "seconds; not measured", value=lambda *_: 0),
        Attr("plan-duration-average", int, "seconds; not measured", value=lambda *_: 0),
        Attr(
            "can-queue-destroy-plan",
            bool,
            "whether a destroy plan may be queued now",
            value=lambda w, call: w.allow_destroy_plan and call.level_on(w) >= Level.WRITE,
        ),
        Attr(
            "setting-overwrites",
            dict,
            "settings of its own; false sets those that are sent along with nothing back to what workspaces begin with",
            write=True,
            parse=rules.overwrites,
            value=lambda *_: {"execution-mode": True, "agent-pool": True},
        ),
        Attr("created-at", str, "when it was made"),
        Attr("updated-at", str, "when a setting was last changed"),
        Attr("actions", dict, "what may be done now", value=lambda *_: {"is-destroyable": True}),
        Attr("permissions", dict, "what the caller may do", value=lambda w, call: permissions(call.level_on(w))),
    ),
    relations=(
        One("organization", "organizations", key=lambda *_: "default"),
        One("project", "projects", key=lambda *_: PROJECT_ID, write=True),
        One("current-run", "runs"),
        One("current-state-version", "state-versions"),
        One("agent-pool", "agent-pools"),
        One("locked-by", lambda w: "users" if w.locked else "runs", key=_locked_by),
        Many("tags", "tags", write=True, link=lambda w, _: f"{BY_ID.format(workspace=w.id)}/relationships/tags"),
        Many(
            "tag-bindings", "tag-bindings", write=True, link=lambda w, _: f"{BY_ID.format(workspace=w.id)}/tag-bindings"
        ),
        Many(
            "remote-state-consumers",
            "workspaces",
            link=lambda w, _: f"{BY_ID.format(workspace=w.id)}/relationships/remote-state-consumers",
        ),
    ),
    unsupported=(
        Accepts("vcs-repo", "the repository whose commits begin runs", ({},)),
        Accepts("auto-destroy-at", "when everything is destroyed", ("",)),
        Accepts("auto-destroy-activity-duration", "after how long without a run everything is destroyed", ("",)),
        Accepts("inherits-project-auto-destroy", "whether the project says when; it says nothing", (False, True)),
        Accepts("project-remote-state", "whether every run of the project may read the state", (False,)),
        Accepts("migration-environment", "the environment of a legacy server that it comes from", ("",)),
        Accepts("hyok-enabled", "whether a key of one's own encrypts it", (False,)),
    ),
    links={
        "self": lambda w, _: f"/api/v2/organizations/default/workspaces/{w.name}",
        "self-html": lambda w, _: f"/app/default/workspaces/{w.name}",
    },
    load=actions.by_ids,
    lasts=lambda _: True,
    has_rights=True,
)
THINGS = (
    Thing("workspace", "workspace t"),
    Thing("workspace_name", "workspace t", 't."name"'),
)


class Label:
    """One label of a workspace, as tags and tag bindings show it."""

    def __init__(self, key: str, value: str) -> None:
        self.id, self.key, self.value = rules.tag_id(key), key, value


TAG = Resource(
    type="tags",
    attributes=(
        Attr("name", str, "the label's key", write=True, value=lambda label, _: label.key),
        Attr("instance-count", int, "not counted", value=lambda *_: 1),
    ),
)
BINDING = Resource(
    type="tag-bindings",
    attributes=(
        Attr("key", str, "the label's key", write=True),
        Attr("value", str, "its value, or empty", write=True),
    ),
)
EFFECTIVE_BINDING = Resource(type="effective-tag-bindings", attributes=BINDING.attributes)


async def find(call: Call) -> Workspace:
    """The workspace that the path names, by id or by name."""
    if "workspace" in call.path:
        return await actions.get(call.path["workspace"])
    return await actions.by_name(call.path["workspace_name"])


async def _sent_labels(call: Call) -> dict[str, str | None]:
    """Labels of a new workspace, in any of the three ways that clients send them."""
    labels: dict[str, str | None] = dict(call.attributes.get("labels", {}))
    for key in await _tag_keys(call, call.related_many("tags") or (), "/data/relationships/tags/data"):
        labels.setdefault(key, None)
    for binding in call.related_many("tag-bindings") or ():
        labels[_text(binding, "key")] = binding.attributes.get("value")
    return labels


def _text(linked: Linked, name: str) -> str:
    value = linked.attributes.get(name)
    if not isinstance(value, str) or not value:
        message = f"{name} must be a string"
        raise Invalid(message, pointer=f"/data/attributes/{name}")
    return value


def _check_project(call: Call) -> None:
    project = call.related("project")
    if project not in (None, PROJECT_ID):
        message = f"there is no project {project}"
        raise Invalid(message, pointer="/data/relationships/project")


async def index(call: Call) -> Rows:
    """The workspaces that the caller may read, by name."""
    project = call.param("filter[project][id]")
    if project not in (None, PROJECT_ID):
        return Rows([], 0)
    found = actions.search(call.query)
    if statuses := call.param("filter[current-run][status]"):
        found &= call.services.ask(ports.RUNS).run_has_status('t."current_run_id"', statuses.split(","))
    order = actions.ORDERS.get(call.param("sort") or "", actions.ORDERS["name"])
    return call.listed(await actions.READER.page(call.page, found & actions.readable(call.principal), order))


async def create(call: Call) -> Workspace:
    """Make a workspace; the caller becomes its owner."""
    if call.principal.is_limited:
        message = "a token for one workspace makes no other"
        raise Forbidden(message)
    values = {**_without_nulls(call.attributes), "labels": _checked(await _sent_labels(call))}
    if "name" not in values:
        message = "a workspace needs a name"
        raise Invalid(message, pointer="/data/attributes/name")
    if call.request.headers.get("user-agent", "").startswith("OpenTofu"):
        values.setdefault("execution_backend", "tofu")
    _check_project(call)
    values.pop("force", None)
    if values.pop("owner_email", call.principal.name).lower() != call.principal.name.lower():
        message = "who makes a workspace owns it; a platform admin may change that afterwards"
        raise Invalid(message, pointer="/data/attributes/owner-email")
    await _check_pool(call, values)
    call.level = Level.ADMIN
    return await actions.create(call.services, call.principal, values)


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same, where null empties a text that is never null."""
    emptied = {name: "" for name in ("description", "working_directory") if values.get(name, "") is None}
    return {**values, **emptied}


async def _check_pool(call: Call, values: Mapping[str, Any]) -> None:
    """Pointing a workspace at a pool needs write on the pool; one that the caller may not know of is not there."""
    pool_id = values.get("agent_pool_id")
    if pool_id:
        try:
            await call.services.guard.demand(call.principal, Level.WRITE, "pool", pool_id)
        except NotFound:
            message = f"there is no pool {pool_id}"
            raise Invalid(message, pointer="/data/attributes/agent-pool-id") from None


async def _check_owner(call: Call, workspace: Workspace, values: dict[str, Any]) -> None:
    """Puts the owner's id beside a new address. Raises Forbidden, or Invalid where there is no such user."""
    email = values.pop("owner_email", workspace.owner_email).lower()
    if email == workspace.owner_email:
        return
    if not call.principal.is_admin:
        message = "only a platform admin may change owner-email"
        raise Forbidden(message)
    try:
        values["owner_id"] = (await identity.user(email)).id
    except NotFound:
        message = f"there is no user {email}"
        raise Invalid(message, pointer="/data/attributes/owner-email") from None
    values["owner_email"] = email


def _check_lockout(call: Call, workspace: Workspace, values: Mapping[str, Any], *, force: bool) -> None:
    """Labels, name and owner decide rights: raises Conflict where the caller would lose some, without `force`."""
    after = call.principal.rights.level(
        workspace.id,
        values.get("name", workspace.name),
        values.get("labels", workspace.labels),
        values.get("owner_id", workspace.owner_id),
    )
    access.check_lockout(call.level, after, force=force)


async def _relabel(call: Call, change: Callable[[dict[str, str]], Mapping[str, str | None]]) -> None:
    """Raises Conflict as `_check_lockout` does; `?force=true` confirms."""

    def checked(workspace: Workspace) -> dict[str, str]:
        labels = _checked(change(workspace.labels))
        _check_lockout(call, workspace, {"labels": labels}, force=call.flag("force"))
        return labels

    await actions.relabel(await find(call), checked)


def _checked(labels: Mapping[str, str | None]) -> dict[str, str]:
    try:
        return access.labels(labels)
    except ValueError as error:
        message = f"labels: {error}"
        raise Invalid(message, pointer="/data/attributes/labels") from None


async def show(call: Call) -> Record[Workspace]:
    """One workspace. A run's token may name its own, and those that share their state with it."""
    found = await actions.read(**call.path)
    if call.principal.kind == "run" and not await actions.shares_state_with(found.id, call.principal.workspace_id):
        raise NotFound
    return found


async def update(call: Call) -> Workspace:
    """Change settings; what is not sent stays."""
    workspace = await find(call)
    values = _without_nulls(call.attributes)
    _check_project(call)
    tags, bindings = call.related_many("tags"), call.related_many("tag-bindings")
    if tags is not None or bindings is not None or "labels" in values:
        is_replaced = bindings is not None or "labels" in values  # as go-tfe says of bindings
        values["labels"] = _checked(
            actions.with_labels({} if is_replaced else workspace.labels, await _sent_labels(call))
        )
    force = values.pop("force", False)
    if values.get("agent_pool_id") != workspace.agent_pool_id:
        await _check_pool(call, values)
    await _check_owner(call, workspace, values)
    _check_lockout(call, workspace, values, force=force)
    return await actions.update(call.services, workspace, values)


async def delete(call: Call) -> None:
    """Remove the workspace; 409 while a run applies. Runs that plan or wait end; the last state is kept, out of reach."""
    await actions.delete(call.services, await find(call), call.principal)


async def safe_delete(call: Call) -> None:
    """Remove the workspace if its state holds nothing."""
    await actions.delete(call.services, await find(call), call.principal, only_empty=True)


async def lock(call: Call) -> Workspace:
    """Lock by hand; runs that could apply wait. An admin may, beside a run that has left the state unknown."""
    document = call.document if isinstance(call.document, Mapping) else {}
    attributes = document.get("data", {})
    attributes = attributes.get("attributes", {}) if isinstance(attributes, Mapping) else {}
    reason = document.get("reason") or (attributes.get("reason") if isinstance(attributes, Mapping) else "") or ""
    if not isinstance(reason, str):
        message = "the reason must be a string"
        raise Invalid(message, pointer="/data/attributes/reason")
    return await actions.lock(await find(call), call.principal, reason, is_admin=call.level >= Level.ADMIN)


async def unlock(call: Call) -> Workspace:
    """Free one's own lock."""
    return await actions.unlock(call.services, await find(call), call.principal)


async def force_unlock(call: Call) -> Workspace:
    """Free anybody's lock; one's own needs only plan. A lock that a run keeps since its state is unknown goes first."""
    workspace = await find(call)
    own = workspace.locked_by_id == call.principal.id and not workspace.run_lock_reason
    if not own:
        await call.services.guard.demand(call.principal, Level.ADMIN, "workspace", workspace.id)
    return await actions.unlock(call.services, workspace, call.principal, force=True)


async def labels(call: Call) -> Rows:
    """The workspace's labels."""
    workspace = await find(call)
    rows = [Label(key, value) for key, value in sorted(workspace.labels.items())]
    return call.cut(rows) if call.page.asked else Rows(rows)


async def add_bindings(call: Call) -> Rows:
    """Add labels; those that are not named stay."""
    sent = {_text(item, "key"): item.attributes.get("value") for item in call.items}
    await _relabel(call, lambda labels: actions.with_labels(labels, sent))
    return await labels(call)


async def replace_bindings(call: Call) -> Rows:
    """Set the labels to exactly these."""
    sent = {_text(item, "key"): item.attributes.get("value") for item in call.items}
    await _relabel(call, lambda _: sent)
    return await labels(call)


async def add_tags(call: Call) -> None:
    """Add labels without a value."""
    sent: dict[str, str | None] = dict.fromkeys(await _tag_keys(call, call.items, "/data"))
    await _relabel(call, lambda labels: actions.with_labels(labels, sent))


async def remove_tags(call: Call) -> None:
    """Take labels away, by name or by tag id."""

    def without(labels: dict[str, str]) -> dict[str, str]:
        ids = rules.tag_keys(labels, {item.id for item in call.items if item.id})
        gone = {ids.get(item.id or "") if _is_by_id(item) else _text(item, "name") for item in call.items}
        return {key: value for key, value in labels.items() if key not in gone}

    await _relabel(call, without)


def _is_by_id(tag: Linked) -> bool:
    """Whether a tag is named by its id; one that carries a name is what the name says."""
    return bool(tag.id) and not tag.attributes.get("name")


async def _tag_keys(call: Call, tags: Sequence[Linked], pointer: str) -> list[str]:
    """The keys of the labels that are meant, by name or by id.

    Raises Invalid for an id that is of no tag which the caller may see: labels
    decide rights, and nobody means one that is called like an id.
    """
    known = await actions.tag_keys(call.principal, {tag.id for tag in tags if tag.id and _is_by_id(tag)})
    keys = []
    for place, tag in enumerate(tags):
        key = known.get(tag.id or "") if _is_by_id(tag) else _text(tag, "name")
        if key is None:
            message = f"there is no tag {tag.id}"
            raise Invalid(message, pointer=f"{pointer}/{place}/id")
        keys.append(key)
    return keys


async def consumers(call: Call) -> Rows:
    """Workspaces whose runs may read this one's state."""
    where = actions.readable(call.principal) & actions.consuming((await find(call)).id)
    return call.listed(await actions.READER.page(call.page, where, 't."name"'))


async def _named(call: Call) -> list[str]:
    """The ids that were sent. Raises Invalid where the caller may not read one: it is not there for it."""
    named = [item.id or "" for item in call.items]
    known = {row.id for row in call.readable(await actions.by_ids(named))}
    for workspace_id in named:
        if workspace_id not in known:
            message = f"there is no workspace {workspace_id}"
            raise Invalid(message)
    return named


async def add_consumers(call: Call) -> None:
    """Let more workspaces read the state."""
    await actions.change_consumers((await find(call)).id, add=await _named(call))


async def replace_consumers(call: Call) -> None:
    """Let exactly these workspaces read the state."""
    await actions.change_consumers((await find(call)).id, add=await _named(call), remove=None)


async def remove_consumers(call: Call) -> None:
    """Let these workspaces read the state no more."""
    await actions.change_consumers((await find(call)).id, remove=[item.id or "" for item in call.items])


RESOURCES = (WORKSPACE, TAG, BINDING, EFFECTIVE_BINDING)
_FILTERS = (
    "search[name]",
    "search[tags]",
    "search[exclude-tags]",
    "search[wildcard-name]",
    "filter[tagged][0][key]",
    "filter[tagged][0][value]",
    "filter[current-run][status]",
    "filter[project][id]",
    "sort",
)


def _both(method: str, rest: str, **more: Any) -> tuple[Endpoint, Endpoint]:
    """The same endpoint by id and by name: go-tfe and the terraform CLI use both."""
    return (Endpoint(method, BY_ID + rest, **more), Endpoint(method, BY_NAME + rest, **more))


ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", LIST, WORKSPACE, index, Access.USER, many=True, filters=_FILTERS),
    Endpoint("POST", LIST, WORKSPACE, create, Access.USER, status=201, requires=("name",)),
    *_both("GET", "", resource=WORKSPACE, do=show, needs=Level.READ, run_token=True),
    *_both("PATCH", "", resource=WORKSPACE, do=update, needs=Level.ADMIN),
    *_both("DELETE", "", resource=WORKSPACE, do=delete, needs=Level.ADMIN, body=False),
    *_both("POST", "/actions/safe-delete", resource=None, do=safe_delete, needs=Level.ADMIN, body=False),
    *_both("POST", "/actions/lock", resource=WORKSPACE, do=lock, needs=Level.PLAN, body=False, notes=("reason",)),
    *_both("POST", "/actions/unlock", resource=WORKSPACE, do=unlock, needs=Level.PLAN, body=False),
    Endpoint("POST", BY_ID + "/actions/force-unlock", WORKSPACE, force_unlock, Level.PLAN, body=False),
    Endpoint("GET", BY_ID + "/tag-bindings", BINDING, labels, Level.READ, many=True),
    Endpoint("PATCH", BY_ID + "/tag-bindings", BINDING, add_bindings, Level.ADMIN, many=True, body_many=True),
    Endpoint("PUT", BY_ID + "/tag-bindings", BINDING, replace_bindings, Level.ADMIN, many=True, body_many=True),
    Endpoint("GET", BY_ID + "/effective-tag-bindings", EFFECTIVE_BINDING, labels, Level.READ, many=True),
    Endpoint("GET", BY_ID + "/relationships/tags", TAG, labels, Level.READ, many=True),
    Endpoint("POST", BY_ID + "/relationships/tags", TAG, add_tags, Level.ADMIN, body_many=True),
    Endpoint("DELETE", BY_ID + "/relationships/tags", TAG, remove_tags, Level.ADMIN, body_many=True),
    Endpoint("GET", BY_ID + "/relationships/remote-state-consumers", WORKSPACE, consumers, Level.READ, many=True),
    Endpoint("POST", BY_ID + "/relationships/remote-state-consumers", None, add_consumers, Level.ADMIN, body_many=True),
    Endpoint(
        "PATCH", BY_ID + "/relationships/remote-state-consumers", None, replace_consumers, Level.ADMIN, body_many=True
    ),
    Endpoint(
        "DELETE", BY_ID + "/relationships/remote-state-consumers", None, remove_consumers, Level.ADMIN, body_many=True
    ),
)
