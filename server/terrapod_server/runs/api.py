"""Runs, plans, applies, their logs and their actions."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from terrapod_server.identity import actions as identity
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import (
    Accepts,
    Attr,
    Endpoint,
    Many,
    One,
    Query,
    Raw,
    Recorded,
    Resource,
    Row,
    Thing,
)
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.db.conditions import Where, like
from terrapod_server.kit.db.row_cache import Record
from terrapod_server.kit.paging import Rows
from terrapod_server.runs import actions, composing, framing, leases, logs, readers, states, stream
from terrapod_server.runs.events import Event
from terrapod_server.runs.model import Phase, Run, RunEvent
from terrapod_server.runs.states import Status
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, versions
from terrapod_shared.errors import Conflict, Invalid, NotFound

#: A log's URL outlives its phase by a day; each read of the plan or apply gives a new one.
LOG_URL_S = 86_400 * 2
_LOG = "log"
_READ_MOST = 4 << 20


def possible(run: Run) -> dict[str, bool]:
    """What may be done with a run as it is now."""
    waits = run.status in states.RUNNING and bool(run.cancel_requested)
    return {
        "is-cancelable": states.is_cancelable(run.status) and not waits,
        "is-confirmable": states.allows(run.status, Event.CONFIRM) and not run.plan_only,
        "is-discardable": states.allows(run.status, Event.DISCARD),
        "is-force-cancelable": waits and run.cancel_requested != "force-cancel" and _may_be_killed(run),
        "is-retryable": run.is_final,
    }


def _may_be_killed(run: Run) -> bool:
    return run.force_cancel_available_at is not None and run.force_cancel_available_at <= clock.now()


def permitted(level: Level) -> dict[str, bool]:
    """What somebody with this level on the workspace may do with its runs."""
    write = level >= Level.WRITE
    return {
        "can-apply": write,
        "can-cancel": write,
        "can-discard": write,
        "can-force-cancel": level >= Level.ADMIN,
        "can-force-execute": write,
        "can-override-policy-check": False,
    }


RUN = Resource(
    type="runs",
    attributes=(
        Attr("status", str, "where in its life it is"),
        Attr("status-message", str, "what listeners said of it, while it waits"),
        Attr("error-message", str, "what went wrong", value=lambda r, _: r.error_message or None),
        Attr("message", str, "why it was begun", write=True, nullable=True, maximum=10_000),
        Attr("source", str, "by what it was begun"),
        Attr("trigger-reason", str, "manual", value=lambda *_: "manual"),
        Attr("is-destroy", bool, "whether it destroys everything", write=True),
        Attr("plan-only", bool, "whether it can never be applied", write=True),
        Attr("save-plan", bool, "whether it waits without holding the queue", write=True),
        Attr("auto-apply", bool, "whether the server confirms it", write=True),
        Attr("refresh", bool, "whether resources are read first", write=True),
        Attr("refresh-only", bool, "whether it only updates the state", write=True),
        Attr("allow-empty-apply", bool, "whether a plan without changes is applied", write=True),
        Attr("allow-config-generation", bool, "whether import blocks may generate configuration", write=True),
        Attr(
            "target-addrs",
            list,
            "resources to be planned alone",
            write=True,
            items=str,
            nullable=True,
            value=lambda r, _: r.target_addrs or [],
        ),
        Attr(
            "replace-addrs",
            list,
            "resources to be replaced",
            write=True,
            items=str,
            nullable=True,
            value=lambda r, _: r.replace_addrs or [],
        ),
        Attr(
            "variables",
            list,
            "key and HCL value, of this run alone",
            write=True,
            items=dict,
            nullable=True,
            maximum=1000,
            value=lambda r, call: actions.run_variables(call.services, r) if call.level_on(r) >= Level.PLAN else [],
        ),
        Attr(
            "terraform-version",
            str,
            "the engine's exact version, or what was asked for as long as that is not known",
            write=True,
            minimum=1,
            maximum=versions.LENGTH_MOST,
            parse=versions.checked,
            value=lambda r, _: r.engine_version or r.engine_wanted,
        ),
        Attr("execution-backend", str, "the engine", value=lambda r, _: r.engine_tool),
        Attr("has-changes", bool, "whether the plan changes anything"),
        Attr("is-drift-detection", bool, "whether it only looks for drift", value=lambda *_: False),
        Attr("status-timestamps", dict, "when it came into each status"),
        Attr("created-at", str, "when it was asked for"),
        Attr("canceled-at", str, "when somebody canceled it"),
        Attr("force-cancel-available-at", str, "from when it may be killed"),
        Attr("force-canceled-at", str, "when it was killed"),
        Attr("actions", dict, "what may be done now", value=lambda r, _: possible(r)),
        Attr("permissions", dict, "what the caller may do", value=lambda r, call: permitted(call.level_on(r))),
    ),
    relations=(
        One("workspace", "workspaces", write=True),
        One("configuration-version", "configuration-versions", write=True),
        One("plan", "plans", key=lambda r, _: r.plan_id),
        One("apply", "applies", key=lambda r, _: r.apply_id),
        One("created-by", "users", key=lambda r, _: r.created_by_id or None),
        One("confirmed-by", "users", key=lambda r, _: r.confirmed_by_id or None),
        Many("run-events", "run-events", link=lambda r, _: f"/api/v2/runs/{r.id}/run-events"),
    ),
    unsupported=(
        Accepts("invoke-action-addrs", "actions to be invoked, and nothing else", ([],)),
        Accepts("policy-paths", "policies to be checked", ([],)),
    ),
    load=actions.by_ids,
    links={"self": lambda r, _: f"/api/v2/runs/{r.id}"},
    #: From when a canceled one may be killed is a matter of time; variables are not kept in clear.
    lasts=lambda r: not r.variables and (r.is_final or not r.cancel_requested),
)


def _log_url(phase: Phase, call: Call) -> str:
    return call.url(f"/api/v2/logs/{call.services.signer.sign(_LOG, phase.id, LOG_URL_S)}")


_PHASE = (
    Attr("status", str, "pending, queued, running, finished, errored, canceled or unreachable"),
    Attr("status-timestamps", dict, "when it came into each status"),
    Attr("log-read-url", str, "where its log is; the URL is the right to read it", value=_log_url),
    Attr("resource-additions", int, "resources to be made"),
    Attr("resource-changes", int, "resources to be changed"),
    Attr("resource-destructions", int, "resources to be destroyed"),
    Attr("resource-imports", int, "resources to be imported"),
)
PLAN = Resource(
    type="plans",
    attributes=(
        *_PHASE,
        Attr("has-changes", bool, "whether it changes anything"),
        Attr("generated-configuration", bool, "whether configuration was generated"),
    ),
    load=actions.phases,
    links={
        "self": lambda p, _: f"/api/v2/plans/{p.id}",
        "json-output": lambda p, _: f"/api/v2/plans/{p.id}/json-output",
        "json-output-redacted": lambda p, _: f"/api/v2/plans/{p.id}/json-output-redacted",
    },
)
APPLY = Resource(type="applies", attributes=_PHASE, load=actions.phases)
RUN_EVENT = Resource(
    type="run-events",
    id=lambda row: f"re-{row.run_id.partition('-')[2]}{row.id}",
    attributes=(
        Attr("action", str, "what happened", value=lambda e, _: e.event),
        Attr("description", str, "in words"),
        Attr("status", str, "of the run, after it"),
        Attr("created-at", str, "when", value=lambda e, _: e.at),
    ),
    relations=(One("run", "runs"), One("actor", "users", key=lambda e, _: e.user_id or None)),
)
CAPACITY = Resource(
    type="organization-capacity",
    id=lambda _row: "default",
    attributes=(
        Attr("pending", int, "runs that wait for their turn", value=lambda row, _: row["pending"]),
        Attr("running", int, "runs that are under way", value=lambda row, _: row["running"]),
    ),
)


async def create(call: Call) -> Run:
    """Begin a run."""
    workspace_id = call.related("workspace")
    if not workspace_id:
        message = "a run needs a workspace"
        raise Invalid(message, pointer="/data/relationships/workspace")
    call.level = await call.services.guard.demand(call.principal, Level.PLAN, "workspace", workspace_id)
    workspace = await workspaces.get(workspace_id)
    version = await actions.configuration_for(workspace, call.related("configuration-version"))
    values = {name: value for name, value in call.attributes.items() if value is not None}
    if not actions.is_plan_only(values, version):
        await call.services.guard.demand(call.principal, Level.WRITE, "workspace", workspace_id)
    headers = call.request.headers
    is_cloud = headers.get("x-terraform-integration") == "cloud"
    values["structured"] = is_cloud and workspace.structured_run_output_enabled
    values["source"] = "terraform+cloud" if is_cloud else "tfe-api"
    values["is_terraform"] = "terraform-version" in headers  # with `cloud` and with `backend "remote"`
    if headers.get("user-agent", "").startswith("OpenTofu"):
        values["engine_tool"] = "tofu"
    named = call.raw if call.related("configuration-version") else b""
    return await actions.create(call.services, workspace, call.principal, version, values, request=named)


async def find(call: Call) -> Run:
    """The run that the path names."""
    return await actions.get(call.path["run"])


async def show(call: Call) -> Record[Run]:
    """One run."""
    found = await actions.read(call.path["run"])
    # the terraform CLI reads the run with its plan first, then the plan's JSON, and then the run alone
    if found.awaited_read and not call.param("include"):
        await readers.note_run_read(call.services, found, call.principal)
    return found


def _filtered(call: Call) -> Where:
    """What the list's parameters ask for."""
    found = Where()
    if status := call.param("filter[status]"):
        known = {member.value for member in Status}
        found &= _among("status", [word for word in status.split(",") if word in known])
    if source := call.param("filter[source]"):
        found &= _among("source", source.split(","))
    if operation := call.param("filter[operation]"):
        known_ones = [_OPERATIONS[word] for word in operation.split(",") if word in _OPERATIONS]
        found &= Where(" OR ".join(known_ones) or "1 = 0")
    if text := call.param("search[basic]"):
        found &= like('t."message"', text)
    if call.param("search[commit]"):
        found &= Where("1 = 0")
    if user := call.param("search[user]"):
        found &= identity.has_email_like('t."created_by_id"', user)
    return found


def _among(column: str, values: Sequence[str]) -> Where:
    marks = ", ".join(f"${place}" for place in range(1, len(values) + 1))
    return Where(f't."{column}" IN ({marks})' if values else "1 = 0", tuple(values))


#: go-tfe's words.
_OPERATIONS = {
    "plan_only": 't."plan_only"',
    "plan_and_apply": '(NOT t."plan_only" AND NOT t."save_plan" AND NOT t."refresh_only" AND NOT t."is_destroy")',
    "save_plan": 't."save_plan"',
    "refresh_only": 't."refresh_only"',
    "destroy": 't."is_destroy"',
    "empty_apply": 't."allow_empty_apply"',
}


async def index(call: Call) -> Rows:
    """The workspace's runs, newest first."""
    workspace_id = call.path["workspace"]
    where = Where('t."workspace_id" = $1', (workspace_id,)) & _filtered(call)
    page = await actions.READER.page(call.page, where, 't."id" DESC')
    if not page.total:
        await workspaces.read(workspace=workspace_id)  # an empty list, or no such workspace
    return page


async def index_all(call: Call) -> Rows:
    """All runs that the caller may read, newest first."""
    where = _filtered(call) & workspaces.in_readable(call.principal)
    return await _levelled(call, await actions.READER.page(call.page, where, 't."id" DESC'))


async def queue(call: Call) -> Rows:
    """Runs that wait or are under way and that the caller may read, in order."""
    where = _among("status", sorted(_QUEUED)) & workspaces.in_readable(call.principal)
    return await _levelled(call, await actions.READER.page(call.page, where, 't."id"'))


async def _levelled(call: Call, page: Rows) -> Rows:
    """Each run gets the caller's level on its workspace."""
    found = await workspaces.by_ids({row.workspace_id for row in page.rows})
    levels = {workspace.id: workspace.level for workspace in call.readable(found)}
    for row in page.rows:
        row.level = levels.get(row.workspace_id, Level.NONE)
    return page


_QUEUED = frozenset(
    {Status.PENDING, Status.PLAN_QUEUED, Status.PLANNING, Status.CONFIRMED, Status.APPLY_QUEUED, Status.APPLYING}
)


async def capacity(_call: Call) -> Row:
    """How many runs wait and how many are under way."""
    return {
        "pending": await Run.filter(status=Status.PENDING).count(),
        "running": await Run.filter(status__in=list(_QUEUED - {Status.PENDING})).count(),
    }


def _comment(call: Call) -> str:
    comment = call.document.get("comment") if isinstance(call.document, Mapping) else None
    if comment is not None and not isinstance(comment, str):
        message = "the comment must be a string"
        raise Invalid(message, pointer="/comment")
    return comment or ""


async def confirm(call: Call) -> Run:
    """Let a planned run be applied."""
    return await actions.confirm(call.services, call.path["run"], call.principal)


async def discard(call: Call) -> Run:
    """End a run that waits, unapplied."""
    return await actions.discard(call.services, call.path["run"], call.principal, _comment(call))


async def cancel(call: Call) -> Run:
    """End a run, or ask the listener that works on it to interrupt it."""
    return await actions.cancel(call.services, call.path["run"], call.principal, _comment(call))


async def force_cancel(call: Call) -> Run:
    """Kill a run that an interrupt did not end."""
    return await actions.force_cancel(call.services, call.path["run"], call.principal, _comment(call))


async def force_execute(call: Call) -> Run:
    """Refused: a run's place in the queue is kept."""
    run = await find(call)
    message = f"run {run.id} is {run.status.value}; a run cannot be put before others: discard or cancel those"
    raise Conflict(message)


async def retry(call: Call) -> Run:
    """Begin a run that is over once more."""
    old = await find(call)
    if not old.plan_only:
        await call.services.guard.demand(call.principal, Level.WRITE, "run", old.id)
    return await actions.retry(call.services, old.id, call.principal)


async def release(call: Call) -> Run:
    """Give up an apply whose listener is lost."""
    return await actions.release(call.services, call.path["run"], call.principal)


async def run_events(call: Call) -> Rows:
    """What happened to the run."""
    run = await find(call)
    found = RunEvent.filter(run_id=run.id).order_by("id")
    return await call.rows(found, full_unless_asked=True)


async def _phase(call: Call, kind: str) -> Phase:
    if kind in call.path:
        return await actions.phase(call.path[kind])
    run = await find(call)
    return await actions.phase(run.plan_id if kind == "plan" else run.apply_id)


async def show_plan(call: Call) -> Phase:
    """A run's plan."""
    phase = await _phase(call, "plan")
    if phase.kind != "plan":
        raise NotFound
    return phase


async def show_apply(call: Call) -> Phase:
    """A run's apply."""
    phase = await _phase(call, "apply")
    if phase.kind != "apply":
        raise NotFound
    return phase


async def json_output(call: Call) -> Response:
    """The plan as `terraform show -json` prints it; holds secrets."""
    plan = await show_plan(call)
    if "plan-json" not in plan.digests:
        return Response(status_code=204)
    return await call.stored(leases.artifact_key(plan, "plan-json"), "application/json")


async def json_output_redacted(call: Call) -> Response:
    """The plan as the terraform CLI shows it, without secrets."""
    plan = await show_plan(call)
    if "plan-json" not in plan.digests:
        return Response(status_code=204)
    key = await composing.Composer.of(call.services).key(plan)
    return await call.stored(key, "application/json")


async def read_log(call: Call) -> Response:
    """A part of a log, framed by STX and ETX; the URL is the right to read it."""
    phase = await Phase.get_or_none(id=call.services.signer.check(_LOG, call.path["token"]))
    run = await Run.get_or_none(id=phase.run_id) if phase else None
    if phase is None or run is None:
        raise NotFound
    offset, limit = _number(call, "offset", 0), min(_number(call, "limit", 65_536) or 65_536, _READ_MOST)
    body = await logs.read(call.services, phase, run, offset, limit)
    await call.memory.add(len(body))
    await readers.note_log_read(phase, run, is_end=body.endswith(framing.ETX))
    return Response(body, media_type="application/octet-stream")


def _number(call: Call, name: str, default: int) -> int:
    text = call.query.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 15:  # noqa: PLR2004
        message = f"{name} must be a whole number"
        raise Invalid(message)
    return int(text)


RESOURCES = (RUN, PLAN, APPLY, RUN_EVENT, CAPACITY)
THINGS = (
    Thing("run", '"run" r JOIN workspace t ON t."id" = r."workspace_id"', 'r."id"'),
    *(
        Thing(kind, 'run_phase p JOIN workspace t ON t."id" = p."workspace_id"', f'p."kind" = \'{kind}\' AND p."id"')
        for kind in ("plan", "apply")
    ),
)
_ONE = "/api/v2/runs/{run}"
_LIST = "/api/v2/workspaces/{workspace}/runs"
_ORG = "/api/v2/organizations/{org}"
_MANY: dict[str, Any] = {
    "many": True,
    "filters": (
        "filter[status]",
        "filter[source]",
        "filter[operation]",
        "search[basic]",
        "search[commit]",
        "search[user]",
    ),
}
_ACT: dict[str, Any] = {"status": 202, "body": False, "notes": ("comment",)}
_JSON: dict[str, Any] = {"gives": dict[str, Any], "answers": (200, 204)}
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("POST", "/api/v2/runs", RUN, create, Access.USER, status=201, requires=("workspace",)),
    Endpoint("GET", _ONE, RUN, show, Level.READ),
    Endpoint("GET", _LIST, RUN, index, Level.READ, **_MANY),
    Raw("GET", _LIST + "/events", stream.stream, Level.READ, gives="text/event-stream"),
    Endpoint("GET", _ORG + "/runs", RUN, index_all, Access.USER, **_MANY),
    Endpoint("GET", _ORG + "/runs/queue", RUN, queue, Access.USER, many=True),
    Endpoint("GET", _ORG + "/capacity", CAPACITY, capacity, Access.USER),
    Endpoint("POST", _ONE + "/actions/confirm", RUN, confirm, Level.WRITE, **_ACT),
    Endpoint("POST", _ONE + "/actions/apply", RUN, confirm, Level.WRITE, **_ACT),
    Endpoint("POST", _ONE + "/actions/discard", RUN, discard, Level.WRITE, **_ACT),
    Endpoint("POST", _ONE + "/actions/cancel", RUN, cancel, Level.WRITE, **_ACT),
    Endpoint("POST", _ONE + "/actions/force-cancel", RUN, force_cancel, Level.ADMIN, **_ACT),
    Endpoint("POST", _ONE + "/actions/force-execute", RUN, force_execute, Level.WRITE, **_ACT),
    Endpoint("POST", _ONE + "/actions/retry", RUN, retry, Level.PLAN, status=201, body=False),
    Endpoint("POST", _ONE + "/actions/release", RUN, release, Level.ADMIN, **_ACT),
    Endpoint("GET", _ONE + "/run-events", RUN_EVENT, run_events, Level.READ, many=True),
    Endpoint("GET", _ONE + "/plan", PLAN, show_plan, Level.READ),
    Endpoint("GET", _ONE + "/apply", APPLY, show_apply, Level.READ),
    Raw("GET", _ONE + "/plan/json-output", json_output, Level.PLAN, recorded=Recorded.READS, **_JSON),
    Raw("GET", _ONE + "/plan/json-output-redacted", json_output_redacted, Level.READ, **_JSON),
    Endpoint("GET", "/api/v2/plans/{plan}", PLAN, show_plan, Level.READ),
    Raw("GET", "/api/v2/plans/{plan}/json-output", json_output, Level.PLAN, recorded=Recorded.READS, **_JSON),
    Raw("GET", "/api/v2/plans/{plan}/json-output-redacted", json_output_redacted, Level.READ, **_JSON),
    Endpoint("GET", "/api/v2/applies/{apply}", APPLY, show_apply, Level.READ),
    Raw(
        "GET",
        "/api/v2/logs/{token}",
        read_log,
        Access.CAPABILITY,
        quiet=True,
        unmetered=True,
        gives="application/octet-stream",
        filters=(Query("offset", int, "of the first byte"), Query("limit", int, "how many bytes at most")),
    ),
)
