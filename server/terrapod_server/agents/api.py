"""Pools, join tokens and listeners, as people see them."""

from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from terrapod_server.agents import actions, deliveries
from terrapod_server.agents.model import JoinToken, Listener, Pool, PoolWorkspace
from terrapod_server.kit.call import Call
from terrapod_server.kit.jsonapi import Access, Attr, Endpoint, Level, Limit, Many, One, Page, Raw, Resource
from terrapod_shared import clock

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
        Attr("service-account-name", str, "kept, not used", write=True, maximum=254),
        Attr("labels", dict, "key and value pairs; they decide rights", write=True),
        Attr("agent-count", int, "listeners that are there", value=lambda p, _: getattr(p, "count", 0)),
        Attr("created-at", str, "when it was made"),
    ),
    relations=(
        One("organization", "organizations", key=lambda *_: "default"),
        Many("allowed-workspaces", "workspaces", write=True, keys=lambda p, _: getattr(p, "allowed", ())),
        Many("workspaces", "workspaces", keys=lambda p, _: getattr(p, "allowed", ())),
    ),
    load=actions.pools,
    prepare=lambda rows, _call: _prepare(rows),
)
TOKEN = Resource(
    type="authentication-tokens",
    accepts=("agent-tokens",),
    attributes=(
        Attr("description", str, "what it is for", write=True, maximum=254),
        Attr("token", str, "shown once, at creation", value=lambda t, _: getattr(t, "text", None)),
        Attr("max-uses", int, "how often it can be used; null: any number", write=True, nullable=True, minimum=1),
        Attr("use-count", int, "how often it was used"),
        Attr("expires-at", str, "until when it is good"),
        Attr("expired-at", str, "the same, as go-tfe calls it", value=lambda t, _: t.expires_at),
        Attr("is-revoked", bool, "whether it was revoked", value=lambda t, _: t.revoked),
        Attr("last-used-at", str, "when it was last used"),
        Attr("created-at", str, "when it was made"),
    ),
    relations=(
        One("created-by", "users", key=lambda t, _: t.created_by_id or None),
        One("agent-pool", "agent-pools", key=lambda t, _: t.pool_id),
    ),
)
LISTENER = Resource(
    type="listeners",
    attributes=(
        Attr("name", str, "unique name"),
        Attr("status", str, "online, offline, draining or revoked", value=lambda row, _: _status(row)),
        Attr("capacity", int, "runs at once"),
        Attr("free-slots", int, "of them not in use, when it last said so"),
        Attr("version", str, "of its program"),
        Attr("isolation", str, "how it keeps runs apart"),
        Attr("os", str, "operating system"),
        Attr("arch", str, "architecture"),
        Attr("local-engines", list, "binaries that its host's owner vouches for"),
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


def _status(row: Listener) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.last_seen_at is None or row.last_seen_at < clock.now() - actions.ONLINE:
        return "offline"
    return "draining" if row.draining or row.drain_requested else "online"


async def _prepare(rows: Sequence[Pool]) -> None:
    found = await actions.counts([row.id for row in rows])
    allowed: dict[str, list[str]] = {}
    for entry in await PoolWorkspace.filter(pool_id__in=[row.id for row in rows]):
        allowed.setdefault(entry.pool_id, []).append(entry.workspace_id)
    for row in rows:
        row.count, row.allowed = found[row.id], allowed.get(row.id, [])


async def index(call: Call) -> Page:
    """Pools, by name."""
    found = Pool.all()
    if text := call.param("q"):
        found = found.filter(name__icontains=text)
    order = call.param("sort", "name")
    return await call.rows(
        found.order_by({"created-at": "id", "-created-at": "-id", "-name": "-name"}.get(order or "", "name"))
    )


def _allowed(call: Call) -> list[str] | None:
    sent = call.related_many("allowed-workspaces")
    return None if sent is None else [linked.id or "" for linked in sent]


async def create(call: Call) -> Pool:
    """Make a pool."""
    return await actions.create_pool(call.principal, call.attributes, _allowed(call))


async def show(call: Call) -> Pool:
    """One pool."""
    return await actions.pool(call.path["pool"])


async def update(call: Call) -> Pool:
    """Change a pool."""
    return await actions.update_pool(await show(call), call.attributes, _allowed(call))


async def delete(call: Call) -> None:
    """Remove a pool that nothing uses."""
    await actions.delete_pool(await show(call))


async def tokens(call: Call) -> Page:
    """The pool's join tokens."""
    row = await show(call)
    return await call.rows(JoinToken.filter(pool_id=row.id).order_by("-id"))


async def create_token(call: Call) -> JoinToken:
    """Make a join token; its text is in this answer only."""
    row = await show(call)
    made, text = await actions.create_token(row.id, call.principal.id, call.attributes)
    made.text = text
    return made


async def show_token(call: Call) -> JoinToken:
    """A token, without its text."""
    return await actions.token(call.path["token"])


async def delete_token(call: Call) -> None:
    """Revoke a token."""
    await (await show_token(call)).delete()


async def listeners(call: Call) -> Page:
    """The pool's listeners."""
    row = await show(call)
    return await call.rows(Listener.filter(pool_id=row.id).order_by("name"))


async def show_listener(call: Call) -> Listener:
    """One listener."""
    return await actions.listener(call.path["listener"])


async def drain(call: Call) -> Listener:
    """Ask a listener to take no more work."""
    row = await show_listener(call)
    await Listener.filter(id=row.id).update(drain_requested=True)
    await call.services.bus.publish(f"listener:{row.id}", f"pool:{row.pool_id}")
    return await show_listener(call)


async def undrain(call: Call) -> Listener:
    """Let a listener take work again."""
    row = await show_listener(call)
    await Listener.filter(id=row.id).update(drain_requested=False)
    await call.services.bus.publish(f"listener:{row.id}")
    return await show_listener(call)


async def allow_rejoin(call: Call) -> Listener:
    """Let the next holder of a join token take the listener's name, once."""
    row = await show_listener(call)
    await Listener.filter(id=row.id).update(allow_rejoin=True)
    return await show_listener(call)


@deliveries.speaks
async def remove(call: Call) -> Response:
    """Leave the pool, by the listener itself or by an admin; its certificate is revoked."""
    await actions.leave(call.services, await show_listener(call))
    return Response(status_code=204)


RESOURCES = (POOL, TOKEN, LISTENER)
_POOLS = "/api/v2/organizations/{org}/agent-pools"
_POOL = "/api/v2/agent-pools/{pool}"
_ME = "/api/v2/listeners/{listener}"
_SIGNED: dict[str, Any] = {"needs": Access.LISTENER, "unmetered": True}
ENDPOINTS: tuple[Endpoint | Raw, ...] = (
    Endpoint("GET", _POOLS, POOL, index, Access.USER, many=True, filters=("q", "sort")),
    Endpoint("POST", _POOLS, POOL, create, Access.PLATFORM, status=201),
    Endpoint("GET", _POOL, POOL, show, Level.READ),
    Endpoint("PATCH", _POOL, POOL, update, Level.ADMIN),
    Endpoint("DELETE", _POOL, POOL, delete, Level.ADMIN, body=False),
    Endpoint("GET", _POOL + "/authentication-tokens", TOKEN, tokens, Level.ADMIN, many=True),
    Endpoint("POST", _POOL + "/authentication-tokens", TOKEN, create_token, Level.ADMIN, status=201),
    Endpoint("GET", "/api/v2/authentication-tokens/{token}", TOKEN, show_token, Level.ADMIN),
    Endpoint("DELETE", "/api/v2/authentication-tokens/{token}", TOKEN, delete_token, Level.ADMIN, body=False),
    Endpoint("GET", _POOL + "/listeners", LISTENER, listeners, Level.READ, many=True),
    Raw("POST", "/api/v2/agent-pools/join", deliveries.join, Access.CAPABILITY, limit=Limit.JSON),
    Raw("POST", _POOL + "/listeners/join", deliveries.join, Access.CAPABILITY, limit=Limit.JSON),
    Endpoint("GET", _ME, LISTENER, show_listener, Level.READ),
    Endpoint("POST", _ME + "/actions/drain", LISTENER, drain, Level.ADMIN, body=False),
    Endpoint("POST", _ME + "/actions/undrain", LISTENER, undrain, Level.ADMIN, body=False),
    Endpoint("POST", _ME + "/actions/allow-rejoin", LISTENER, allow_rejoin, Level.ADMIN, body=False),
    Raw("DELETE", "/api/v2/listeners/{listener}", remove, Level.ADMIN, or_listener=True),
    Raw("POST", _ME + "/leave", remove, **_SIGNED),
    Raw("POST", _ME + "/renew", deliveries.renew, **_SIGNED),
    Raw("POST", _ME + "/heartbeat", deliveries.heartbeat, **_SIGNED),
    Raw("GET", _ME + "/runs/next", deliveries.next_run, **_SIGNED),
    Raw("PATCH", _ME + "/runs/{run}", deliveries.report, **_SIGNED),
    Raw("PUT", _ME + "/runs/{run}/{phase}/log", deliveries.put_log, **_SIGNED),
    Raw("PUT", _ME + "/runs/{run}/{artifact}", deliveries.put_artifact, **_SIGNED),
    Raw("GET", _ME + "/runs/{run}/{artifact}", deliveries.get_artifact, **_SIGNED),
    Raw("GET", _ME + "/engines/{tool}/{version}/{os}/{arch}", deliveries.get_engine, **_SIGNED),
)
