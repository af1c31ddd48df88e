"""Pools, join tokens and listeners, as people see them."""

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from terrapod_server.access import rules as access
from terrapod_server.access import visible
from terrapod_server.agents import accepting, depth, join_tokens, listeners, pools
from terrapod_server.agents.model import JoinToken, Listener, Pool, PoolExcluded, PoolWorkspace
from terrapod_server.agents.protocol import deliveries
from terrapod_server.agents.rules import ONLINE
from terrapod_server.identity import actions as identity
from terrapod_server.identity.api import TOKEN
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import (
    Accepts,
    Added,
    Attr,
    Endpoint,
    Extension,
    Limit,
    Many,
    One,
    Query,
    Raw,
    Recorded,
    Resource,
    Thing,
    Value,
)
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.db.conditions import Where, like
from terrapod_server.kit.paging import Rows
from terrapod_server.runs import leases
from terrapod_server.workspaces import actions as workspaces
from terrapod_shared import clock, wire
from terrapod_shared.errors import Invalid


async def _load_openness(pool_ids: Sequence[str], call: Call) -> dict[str, pools.Openness]:
    """Those of the workspaces that each pool is open to, or closed to, which the caller may read."""
    entries = await PoolWorkspace.filter(pool_id__in=list(pool_ids))
    barred = await PoolExcluded.filter(pool_id__in=list(pool_ids))
    named = await workspaces.by_ids({each.workspace_id for each in entries} | {each.workspace_id for each in barred})
    shown = {workspace.id for workspace in call.readable(named)}
    allowed, excluded = _by_pool(entries, shown), _by_pool(barred, shown)
    return {each: pools.Openness(allowed.get(each, []), excluded.get(each, [])) for each in pool_ids}


def _by_pool(entries: Sequence[PoolWorkspace | PoolExcluded], shown: set[str]) -> dict[str, list[str]]:
    """The ids of those workspaces that are shown."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry.workspace_id in shown:
            found.setdefault(entry.pool_id, []).append(entry.workspace_id)
    return found


POOL = Resource(
    type="agent-pools",
    attributes=(
        Attr("name", str, "unique name", write=True, minimum=1, maximum=90),
        Attr("description", str, "what it is for", write=True),
        Attr("organization-scoped", bool, "whether all workspaces may use it", write=True),
        Attr(
            "allow-server-keys",
            bool,
            "whether the server may make a listener's key, as older listeners ask",
            write=True,
        ),
        Attr("service-account-name", str, "kept, not used", write=True, kept=True, maximum=254),
        Attr("labels", dict, "key and value pairs; they decide rights", write=True, parse=access.labels),
        Attr("force", bool, "also where the caller loses rights by it", write=True, only_in="sent"),
        Attr("created-at", str, "when it was made"),
    ),
    relations=(One("organization", "organizations", key=lambda *_: "default"),),
    unsupported=(Accepts("allowed-projects", "projects whose workspaces may use it", ([],), related=True),),
    load=pools.by_ids,
    has_rights=True,
)


OPENNESS = Extension(
    of="agent-pools",
    relations=(
        Many("allowed-workspaces", "workspaces", write=True, keys=lambda added, _: added.fact.allowed or ()),
        Many("excluded-workspaces", "workspaces", write=True, keys=lambda added, _: added.fact.excluded or ()),
        Many("workspaces", "workspaces", keys=lambda added, _: added.fact.allowed or ()),
    ),
    load=_load_openness,
)


def _depth(name: str) -> Value:
    return lambda added, _call: getattr(added.fact or _EMPTY, name)


_EMPTY = depth.Depth()
DEPTH = Extension(
    of="agent-pools",
    attributes=(
        Attr("agent-count", int, "listeners that are there", value=_depth("listeners")),
        Attr("slots", int, "runs at once of the listeners that are there and take work", value=_depth("slots")),
        Attr("free-slots", int, "of them not in use", value=_depth("free")),
        Attr("queue-depth", int, "phases that wait for a listener, plan-only ones included", value=_depth("waiting")),
        Attr("queue-depth-plan-only", int, "of them those that only plan", value=_depth("waiting_plan_only")),
        Attr("queue-oldest-seconds", float, "how long the oldest of them has waited", value=_depth("oldest_s")),
        Attr("running", int, "phases at listeners", value=_depth("running")),
        Attr("held", int, "applies whose listener is lost", value=_depth("held")),
    ),
    load=lambda pool_ids, _call: depth.of(pool_ids),
)


LISTENER = Resource(
    type="listeners",
    attributes=(
        Attr("name", str, "unique name"),
        Attr("status", str, "online, offline, draining or revoked", value=lambda row, _: _status(row)),
        Attr("capacity", int, "runs at once"),
        Attr("drain-requested", bool, "whether somebody asked it to take no more work"),
        Attr("version", str, "of its program"),
        Attr("isolation", str, "how it keeps runs apart"),
        Attr("os", str, "operating system"),
        Attr("arch", str, "architecture"),
        Attr("local-engines", list, "binaries that its host's owner vouches for"),
        Attr(
            "accepts",
            dict,
            "which work its host's owner lets it take; empty: all",
            value=lambda row, _: row.accepts or {},
        ),
        Attr("spooled-states", list, "states that it could not deliver yet", value=lambda row, _: row.spooled),
        Attr(
            "certificate-expires-at",
            str,
            "until when its certificate is good",
            value=lambda row, _: row.certificate_until,
        ),
        Attr("last-seen-at", str, "when it last called"),
        Attr("created-at", str, "when it joined"),
    ),
    relations=(One("agent-pool", "agent-pools", key=lambda row, _: row.pool_id),),
)


def _free_slots(added: Added, _call: Call) -> int:
    """Counted from leases: what a listener says of itself is as old as its last heartbeat."""
    working, _ = added.fact or (0, 0)
    return max(0, added.row.capacity - working) if _status(added.row) == "online" else 0


LEASES = Extension(
    of="listeners",
    attributes=(
        Attr("free-slots", int, "of them free for work now; none unless it is online", value=_free_slots),
        Attr(
            "running",
            int,
            "phases that it works on, lost ones included",
            value=lambda added, _: (added.fact or (0, 0))[1],
        ),
    ),
    load=lambda listener_ids, _call: leases.counts_of(listener_ids),
)


def _status(row: Listener) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.last_seen_at is None or row.last_seen_at < clock.now() - ONLINE:
        return "offline"
    return "draining" if row.draining or row.drain_requested else "online"


#: Pools that a workspace may use.
_OPEN_TO = accepting.open_to("t", "$1")
_ORDERS = {"created-at": 't."id"', "-created-at": 't."id" DESC', "-name": 't."name" DESC'}


async def index(call: Call) -> Rows:
    """The pools that the caller may read, by name."""
    where = visible.where(call.principal.rights, pools.KIND)
    if text := call.param("q"):
        where &= like('t."name"', text)
    if name := call.param("filter[allowed_workspaces][name]"):
        named = call.readable(await workspaces.named(name))
        where &= Where(_OPEN_TO, (named[0].id if named else "",))
    order = _ORDERS.get(call.param("sort") or "", 't."name"')
    return call.listed(await pools.READER.page(call.page, where, order))


def _check_lockout(call: Call, row: Pool) -> None:
    """Raises Conflict where new labels or a new name would take rights from the caller, without `force`."""
    sent = call.attributes
    after = call.principal.rights.level(
        row.id, sent.get("name", row.name), sent.get("labels", row.labels), row.owner_id
    )
    access.check_lockout(call.level, after, force=sent.pop("force", False))


async def _openness(call: Call) -> pools.Openness:
    """To which workspaces the pool is to be open."""
    return pools.Openness(await _named(call, "allowed-workspaces"), await _named(call, "excluded-workspaces"))


async def _named(call: Call, relation: str) -> list[str] | None:
    """Raises Invalid where the caller may not read a workspace: it is not there for it."""
    sent = call.related_many(relation)
    if sent is None:
        return None
    named = [linked.id or "" for linked in sent]
    known = {workspace.id for workspace in call.readable(await workspaces.by_ids(named))}
    for workspace_id in named:
        if workspace_id not in known:
            message = f"there is no workspace {workspace_id}"
            raise Invalid(message, pointer=f"/data/relationships/{relation}")
    return named


async def create(call: Call) -> Pool:
    """Make a pool."""
    call.attributes.pop("force", None)
    return await pools.create(call.principal, call.attributes, await _openness(call))


async def show(call: Call) -> Pool:
    """One pool."""
    return await pools.get(call.path["pool"])


async def update(call: Call) -> Pool:
    """Change a pool."""
    row = await show(call)
    _check_lockout(call, row)
    return await pools.update(row, call.attributes, await _openness(call))


async def delete(call: Call) -> None:
    """Remove a pool that nothing uses."""
    await pools.delete(await show(call))


async def tokens(call: Call) -> Rows:
    """The pool's join tokens."""
    row = await show(call)
    return await call.rows(JoinToken.filter(pool_id=row.id).order_by("-id"))


#: Of the attributes that tokens have, those of a join token.
_JOIN = frozenset({"description", "max_uses", "expires_at", "expired_at"})


async def create_token(call: Call) -> JoinToken:
    """Make a join token; its text is in this answer only."""
    row = await show(call)
    sent = {name: value for name, value in call.attributes.items() if name in _JOIN}
    call.refuse_others(_JOIN, "it is of users' tokens")  # what would limit it is not left out in silence
    made, text = await join_tokens.create(row.id, call.principal.id, sent)
    made.text = text
    return made


async def show_token(call: Call) -> JoinToken | identity.TokenRow:
    """A token of a pool or of a user, without its text."""
    row = await join_tokens.find(call.path["token"])
    if row is None:
        return await identity.token(call.path["token"], call.principal)
    await call.services.guard.demand(call.principal, Level.ADMIN, "pool", row.pool_id)
    return row


async def delete_token(call: Call) -> None:
    """Revoke a token."""
    row = await show_token(call)
    if isinstance(row, JoinToken):
        await join_tokens.delete(row)
    else:
        await identity.delete_token(row)
        await call.services.authenticator.changed()


async def index_listeners(call: Call) -> Rows:
    """The pool's listeners."""
    row = await show(call)
    return await call.rows(Listener.filter(pool_id=row.id).order_by("name"))


async def show_listener(call: Call) -> Listener:
    """One listener."""
    return await listeners.get(call.path["listener"])


async def drain(call: Call) -> Listener:
    """Ask a listener to take no more work."""
    row = await show_listener(call)
    await listeners.set_drain(call.services, row, wanted=True)
    return await show_listener(call)


async def undrain(call: Call) -> Listener:
    """Let a listener take work again."""
    row = await show_listener(call)
    await listeners.set_drain(call.services, row, wanted=False)
    return await show_listener(call)


async def allow_rejoin(call: Call) -> Listener:
    """Let the next holder of a join token take the listener's name, once."""
    row = await show_listener(call)
    await listeners.allow_rejoin(row)
    return await show_listener(call)


async def remove(call: Call) -> Response:
    """Leave the pool, by the listener itself or by an admin; its certificate is revoked."""
    await listeners.leave(call.services, await show_listener(call))
    return Response(status_code=204)


RESOURCES = (POOL, LISTENER)
EXTENSIONS = (OPENNESS, DEPTH, LEASES)
THINGS = (
    Thing("pool", "agent_pool t"),
    Thing("listener", 'listener l JOIN agent_pool t ON t."id" = l."pool_id"', 'l."id"'),
)
_FILTERS = ("q", "sort", "filter[allowed_workspaces][name]")
_POOLS = "/api/v2/organizations/{org}/agent-pools"
_POOL = "/api/v2/agent-pools/{pool}"
_ME = "/api/v2/listeners/{listener}"
_SIGNED: dict[str, Any] = {"needs": Access.LISTENER, "unmetered": True}
_JOINING: dict[str, Any] = {
    "needs": Access.CAPABILITY, "limit": Limit.JSON, "takes": wire.Join, "gives": deliveries.JoinAnswer, "answers": (201,),
}  # fmt: skip
_BYTES = "application/octet-stream"
_WAIT = (Query("wait", float, "how many seconds the answer may wait for news"),)
_OF_A_STATE = (
    Query("serial", int, "of a state"),
    Query("lineage", str, "of a state"),
    Query("md5", str, "of a state"),
    Query("intermediate", bool, "whether the apply goes on after this state"),
)
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", _POOLS, POOL, index, Access.USER, many=True, filters=_FILTERS),
    Endpoint("POST", _POOLS, POOL, create, Access.PLATFORM, status=201, requires=("name",)),
    Endpoint("GET", _POOL, POOL, show, Level.READ),
    Endpoint("PATCH", _POOL, POOL, update, Level.ADMIN),
    Endpoint("DELETE", _POOL, POOL, delete, Level.ADMIN, body=False),
    Endpoint("GET", _POOL + "/authentication-tokens", TOKEN, tokens, Level.ADMIN, many=True),
    Endpoint("POST", _POOL + "/authentication-tokens", TOKEN, create_token, Level.ADMIN, status=201),
    Endpoint("GET", "/api/v2/authentication-tokens/{token}", TOKEN, show_token, Access.USER),
    Endpoint("DELETE", "/api/v2/authentication-tokens/{token}", TOKEN, delete_token, Access.USER, body=False),
    Endpoint("GET", _POOL + "/listeners", LISTENER, index_listeners, Level.READ, many=True),
    Raw("POST", "/api/v2/agent-pools/join", deliveries.join, **_JOINING),
    Raw("POST", _POOL + "/listeners/join", deliveries.join, **_JOINING),
    Endpoint("GET", _ME, LISTENER, show_listener, Level.READ),
    Endpoint("POST", _ME + "/actions/drain", LISTENER, drain, Level.ADMIN, body=False),
    Endpoint("POST", _ME + "/actions/undrain", LISTENER, undrain, Level.ADMIN, body=False),
    Endpoint("POST", _ME + "/actions/allow-rejoin", LISTENER, allow_rejoin, Level.ADMIN, body=False),
    Raw("DELETE", "/api/v2/listeners/{listener}", remove, Level.ADMIN, or_listener=True, answers=(204,)),
    Raw("POST", _ME + "/leave", remove, answers=(204,), **_SIGNED),
    Raw("POST", _ME + "/renew", deliveries.renew, takes=wire.Renew, gives=deliveries.RenewAnswer, **_SIGNED),
    Raw(
        "POST", _ME + "/heartbeat", deliveries.heartbeat, recorded=Recorded.REFUSALS,
        takes=wire.Beat, gives=wire.Pulse, filters=_WAIT, **_SIGNED,
    ),
    Raw(
        "GET", _ME + "/runs/next", deliveries.next_run, recorded=Recorded.READS,
        gives=wire.Work, answers=(200, 204), filters=_WAIT, **_SIGNED,
    ),
    Raw("PATCH", _ME + "/runs/{run}", deliveries.report, takes=wire.Report, gives=wire.Reported, **_SIGNED),
    Raw(
        "PUT", _ME + "/runs/{run}/{phase}/log", deliveries.put_log, recorded=Recorded.REFUSALS,
        takes=_BYTES, gives=wire.LogAnswer, filters=(Query("offset", int, "of the first byte"),), **_SIGNED,
    ),
    Raw(
        "PUT", _ME + "/runs/{run}/{artifact}", deliveries.put_artifact,
        takes=_BYTES, answers=(200, 202), filters=_OF_A_STATE, **_SIGNED,
    ),
    Raw("GET", _ME + "/runs/{run}/{artifact}", deliveries.get_artifact, recorded=Recorded.READS, gives=_BYTES, **_SIGNED),
    Raw("GET", _ME + "/engines/{tool}/{version}/{os}/{arch}", deliveries.get_engine, gives=_BYTES, **_SIGNED),
)  # fmt: skip
