"""Pools, join tokens and listeners for people; joining, work and deliveries for listeners."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response, StreamingResponse

from terrapod_server.agents import actions, auth, work
from terrapod_server.agents.model import JoinToken, LateState, Listener, Pool, PoolWorkspace
from terrapod_server.configs import actions as configs
from terrapod_server.kit.call import Call
from terrapod_server.kit.jsonapi import Access, Attr, Endpoint, Level, Limit, Many, One, Page, Raw, Resource
from terrapod_server.mirror import actions as mirror
from terrapod_server.runs import actions as runs
from terrapod_server.runs import logs, queue
from terrapod_server.runs.model import Phase
from terrapod_server.states import actions as states
from terrapod_server.store import keys
from terrapod_shared import clock, ids, wire
from terrapod_shared.errors import BadRequest, Conflict, Invalid, LeaseEnded, NotFound, TerrapodError, Unauthorized

log = logging.getLogger(__name__)
_WAIT_MOST_S = 60.0
_ARTIFACTS = ("plan-file", "lock-file", "plan-json", "schemas")
_ARTIFACT_MOST = {"plan-file": 512 << 20, "lock-file": 4 << 20, "plan-json": 256 << 20, "schemas": 256 << 20}

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


async def remove(call: Call) -> Response:
    """Leave the pool, by the listener itself or by an admin; its certificate is revoked."""
    await actions.leave(call.services, await show_listener(call))
    return Response(status_code=204)


_M = TypeVar("_M", bound=wire.Message)


def _decode(raw: bytes, kind: type[_M]) -> _M:
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from None
    except msgspec.DecodeError as error:
        message = f"the body is not JSON: {error}"
        raise BadRequest(message) from None


def _answer(message: wire.Message, status: int = 200, *, wrapped: bool = False, **headers: str) -> Response:
    body = msgspec.json.encode({"data": message} if wrapped else message)
    return Response(body, status, {wire.PROTOCOL_HEADER: str(wire.PROTOCOL), **headers}, "application/json")


async def join(call: Call) -> Response:
    """Join a pool with a token; the answer has the certificate and the server's key to be pinned."""
    signer: Listener | None = None
    if "signature" in call.request.headers:  # the old key vouches for a name that is taken
        auth.check_protocol(call.request)
        signer, verified = await auth.verify(call.request)
        call.request.state.digest = verified.content_digest
        raw = await auth.small(call)
    else:
        call.limit_bytes = 1 << 20
        raw = b"".join([chunk async for chunk in call.stream()])
    message = _decode(raw, wire.Join)
    _, joined = await actions.join(call.services, message, pool_id=call.path.get("pool"), signer=signer)
    return _answer(joined, 201, wrapped=True)


def _me(call: Call) -> Listener:
    row: Listener = call.request.state.listener
    return row


async def renew(call: Call) -> Response:
    """A new certificate, for a new key that the old one vouches for."""
    message = _decode(await auth.small(call), wire.Renew)
    return _answer(await actions.renew(call.services, _me(call), message), wrapped=True)


def _wait_s(call: Call) -> float:
    text = call.param("wait", "0") or "0"
    try:
        wait = float(text)
    except ValueError:
        wait = -1.0
    if not 0 <= wait < 1e6:  # noqa: PLR2004
        message = "wait must be a number of seconds"
        raise Invalid(message)
    return min(wait, _WAIT_MOST_S)


async def heartbeat(call: Call) -> Response:
    """Prolong leases; hear of cancels at once where `wait` is given."""
    me = _me(call)
    message = _decode(await auth.small(call), wire.Beat)
    wait = _wait_s(call)
    async with call.services.bus.subscribe(f"listener:{me.id}") as subscription:
        await actions.beat(call.services, me, message)
        verdicts = await queue.prolong(call.services, me.id, message.leases)
        pulse = await _pulse(me, verdicts)
        if wait and not pulse.cancels and not pulse.drain and not any(v.verdict == "lost" for v in verdicts):
            await subscription.wait(wait)
            pulse = await _pulse(me, verdicts)
    return _answer(pulse)


async def _pulse(me: Listener, verdicts: list[wire.LeaseVerdict]) -> wire.Pulse:
    row = await actions.listener(me.id)
    return wire.Pulse(
        server_time=clock.now().timestamp(),
        leases=verdicts,
        cancels=await queue.cancels_for(me.id),
        drain=row.drain_requested,
        renew=row.certificate_until < clock.now(),
    )


async def next_run(call: Call) -> Response:
    """Work, as an offer of 15 s; 204 when there is none within `wait` seconds."""
    me = _me(call)
    bus = call.services.bus
    engines = [f"{entry['tool']} {entry['version']}" for entry in me.local_engines]
    until = asyncio.get_running_loop().time() + _wait_s(call)
    await actions.seen(me)
    async with bus.subscribe(f"pool:{me.pool_id}", f"listener:{me.id}") as subscription:
        while True:
            if not bus.is_closing and not me.drain_requested:
                phase = await queue.claim(me.id, me.pool_id, engines)
                if phase is not None:
                    answer = await _offer(call, me, phase)
                    if answer is not None:
                        return answer
                    continue
            left = until - asyncio.get_running_loop().time()
            if left <= 0 or bus.is_closing or await call.request.is_disconnected():
                return Response(status_code=204)
            if not await subscription.wait(left):
                return Response(status_code=204)
            me = await actions.listener(me.id)
            if me.revoked_at is not None:
                message = "this listener was removed"
                raise Unauthorized(message)
            if await call.request.is_disconnected():
                return Response(status_code=204)


async def _offer(call: Call, me: Listener, phase: Phase) -> Response | None:
    """The answer that carries work; None where it could not be made, and the run says why."""
    keeping = asyncio.create_task(queue.keep_offer(phase))
    try:
        body = msgspec.json.encode(await work.build(call.services, me, phase))
    except Exception as error:
        text = error.detail if isinstance(error, TerrapodError) else "internal server error"
        log.warning("cannot hand out %s", phase.id, exc_info=error)
        report = wire.Report(
            phase="plan" if phase.kind == "plan" else "apply",
            status="errored",
            error_message=f"the run could not be handed to a listener: {text}",
        )
        await queue.finish(call.services, phase.run_id, report, phase.lease_number, me.id, 0)
        return None
    finally:
        keeping.cancel()
    signature = await work.sign(call.services, me.id, body)
    headers = {wire.PROTOCOL_HEADER: str(wire.PROTOCOL), wire.WORK_SIGNATURE_HEADER: signature}
    return Response(body, 200, headers, "application/json")


async def report(call: Call) -> Response:
    """Accept, give back or end a phase."""
    me, run_id, number = _me(call), call.path["run"], call.principal.lease
    message = _decode(await auth.small(call), wire.Report)
    services = call.services
    if message.status in ("planning", "applying"):
        if call.request.state.is_late:
            why = "this listener's certificate is over: renew it before taking work"
            raise Unauthorized(why)
        seconds = await queue.accept(services, run_id, message.phase, number, me.id)
        return _answer(wire.Reported(status=message.status, seconds=seconds))
    if message.status == "refused":
        await queue.refuse(services, run_id, message.phase, number, me.id, message.reason)
        return _answer(wire.Reported(status="refused"))
    phase = await Phase.get_or_none(id=queue.phase_id_of(run_id, message.phase))
    if phase is None:
        raise NotFound
    end = await logs.size(services, phase)
    run = await queue.finish(services, run_id, message, number, me.id, end)
    task = asyncio.create_task(logs.seal(services, phase.id))
    _sealing.add(task)
    task.add_done_callback(_sealing.discard)
    return _answer(wire.Reported(status=run.status.value))


#: Logs that are being sealed: a task that nobody holds may be collected.
_sealing: set[asyncio.Task[None]] = set()


async def put_log(call: Call) -> Response:
    """Raw bytes of the phase's log, at an offset."""
    kind = call.path["phase"]
    if kind not in ("plan", "apply"):
        raise NotFound
    text = call.param("offset", "0") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 15:  # noqa: PLR2004
        message = "offset must be a whole number"
        raise Invalid(message)
    phase = await queue.check(call.path["run"], kind, call.principal.lease, _me(call).id)
    chunk = await auth.small(call, logs.CHUNK_MOST)
    following = await logs.append(call.services, phase, int(text), chunk)
    await call.services.bus.publish(f"log:{phase.id}")
    return _answer(wire.LogAnswer(next_offset=following))


async def put_artifact(call: Call) -> Response:
    """A product of the phase: plan-file, lock-file, plan-json, schemas or state."""
    name = call.path["artifact"]
    if name == "state":
        return await _put_state(call)
    if name not in _ARTIFACTS:
        raise NotFound
    run_id, number, me = call.path["run"], call.principal.lease, _me(call)
    phase = await queue.check(run_id, "plan", number, me.id)
    call.limit_bytes = _ARTIFACT_MOST[name]
    stored = await call.services.store.put(queue.artifact_key(phase, name), auth.body(call))
    await queue.note_artifact(call.services, run_id, "plan", number, me.id, name, stored.sha256)
    return _digest(stored.sha256)


def _digest(sha256: str) -> Response:
    return Response(status_code=200, headers={wire.DIGEST_HEADER: sha256})


async def _put_state(call: Call) -> Response:
    me, run_id, number = _me(call), call.path["run"], call.principal.lease
    try:
        serial = int(call.param("serial", "") or "")
    except ValueError:
        message = "serial must be a whole number"
        raise Invalid(message) from None
    lineage, md5 = call.param("lineage", "") or "", (call.param("md5", "") or "").lower()
    call.limit_bytes = call.services.config.limits.state_bytes
    try:
        phase = await queue.check(run_id, "apply", number, me.id)
    except LeaseEnded:
        return await _late(call, run_id, serial, lineage, md5)
    row = await states.accept_from_run(
        call.services,
        workspace_id=phase.workspace_id,
        run_id=run_id,
        serial=serial,
        lineage=lineage,
        md5=md5,
        chunks=auth.body(call),
        intermediate=call.flag("intermediate"),
        fence=lambda: queue.check(run_id, "apply", number, me.id),
    )
    await queue.note_artifact(call.services, run_id, "apply", number, me.id, "state", row.sha256)
    return _digest(row.sha256)


async def _late(call: Call, run_id: str, serial: int, lineage: str, md5: str) -> Response:
    """A state whose lease is over: kept aside once per lease that the sender held, and never made current."""
    me, number = _me(call), call.principal.lease
    phase = await Phase.get_or_none(id=queue.phase_id_of(run_id, "apply"))
    if phase is None or number > phase.lease_number or not _held(phase, me, number):
        raise NotFound
    old = await LateState.get_or_none(run_id=run_id, lease_number=number)
    if old is not None and old.md5 == md5:
        async for _ in auth.body(call):
            pass
        return Response(status_code=202)
    if old is not None:
        message = "a state of this lease was kept already"
        raise Conflict(message)
    key = keys.late_state(phase.workspace_id, run_id, number, ids.tail())
    stored = await call.services.store.put(key, auth.body(call))
    if stored.md5 != md5:
        await call.services.store.delete(key)
        message = f"the bytes have the md5 {stored.md5}, and {md5} was announced"
        raise Invalid(message)
    await LateState.create(
        id=ids.make("sv"),
        workspace_id=phase.workspace_id,
        run_id=run_id,
        lease_number=number,
        listener_id=me.id,
        serial=serial,
        lineage=lineage,
        md5=stored.md5,
        key=key,
        sha256=stored.sha256,
        size=stored.size,
    )
    return Response(status_code=202)


def _held(phase: Phase, me: Listener, number: int) -> bool:
    """Whether the listener held that lease: an apply is never handed to a second one."""
    return phase.lease_listener_id == me.id and 0 < number <= phase.lease_number


async def get_artifact(call: Call) -> Response:
    """What the phase needs: configuration, state, plan-file or lock-file."""
    name, run_id, me = call.path["artifact"], call.path["run"], _me(call)
    run = await runs.get(run_id)
    kind = "apply" if (await Phase.get(id=run.apply_id)).lease_listener_id == me.id else "plan"
    await queue.check(run_id, kind, call.principal.lease, me.id)
    if name == "configuration":
        version = await configs.get(run.configuration_version_id)
        key, digest = version.stored_key, version.sha256
    elif name == "state":
        state = await states.current(run.workspace_id)
        if state is None:
            raise NotFound
        key, digest = state.key, state.sha256
    elif name in _ARTIFACTS:
        plan = await Phase.get(id=run.plan_id)
        if name not in plan.digests:
            raise NotFound
        key, digest = queue.artifact_key(plan, name), plan.digests[name]
    else:
        raise NotFound
    return await _stream(call, key, digest)


async def _stream(call: Call, key: str, digest: str) -> Response:
    size = await call.services.store.size(key)
    headers = {"Content-Length": str(size), wire.DIGEST_HEADER: digest}
    return StreamingResponse(call.services.store.get(key), media_type="application/octet-stream", headers=headers)


async def get_engine(call: Call) -> Response:
    """The zip of an engine; fetched and verified first where it is not in the cache."""
    row = await mirror.ensure(call.services, *(call.path[name] for name in ("tool", "version", "os", "arch")))
    return await _stream(call, mirror.key_of(row), row.sha256)


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
    Raw("POST", "/api/v2/agent-pools/join", join, Access.CAPABILITY, limit=Limit.JSON),
    Raw("POST", _POOL + "/listeners/join", join, Access.CAPABILITY, limit=Limit.JSON),
    Endpoint("GET", _ME, LISTENER, show_listener, Level.READ),
    Endpoint("POST", _ME + "/actions/drain", LISTENER, drain, Level.ADMIN, body=False),
    Endpoint("POST", _ME + "/actions/undrain", LISTENER, undrain, Level.ADMIN, body=False),
    Endpoint("POST", _ME + "/actions/allow-rejoin", LISTENER, allow_rejoin, Level.ADMIN, body=False),
    Raw("DELETE", "/api/v2/listeners/{listener}", remove, Level.ADMIN),
    Raw("POST", _ME + "/leave", remove, **_SIGNED),
    Raw("POST", _ME + "/renew", renew, **_SIGNED),
    Raw("POST", _ME + "/heartbeat", heartbeat, **_SIGNED),
    Raw("GET", _ME + "/runs/next", next_run, **_SIGNED),
    Raw("PATCH", _ME + "/runs/{run}", report, **_SIGNED),
    Raw("PUT", _ME + "/runs/{run}/{phase}/log", put_log, **_SIGNED),
    Raw("PUT", _ME + "/runs/{run}/{artifact}", put_artifact, **_SIGNED),
    Raw("GET", _ME + "/runs/{run}/{artifact}", get_artifact, **_SIGNED),
    Raw("GET", _ME + "/engines/{tool}/{version}/{os}/{arch}", get_engine, **_SIGNED),
)
