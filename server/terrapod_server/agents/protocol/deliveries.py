"""What listeners send: joining, renewing, heartbeats, work and its deliveries."""

import asyncio
import contextlib
import logging
from datetime import timedelta
from functools import partial
from typing import TypeVar

import msgspec
from starlette.responses import Response

from terrapod_server.agents import listeners
from terrapod_server.agents.late import actions as late
from terrapod_server.agents.model import Listener
from terrapod_server.agents.protocol import auth, claiming, dispatch, work
from terrapod_server.configs import actions as configs
from terrapod_server.engines import actions as engine_cache
from terrapod_server.kit.api import parse
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.caller import Principal
from terrapod_server.kit.db import database_errors
from terrapod_server.kit.http import lockout
from terrapod_server.kit.services import Services
from terrapod_server.runs import actions as runs
from terrapod_server.runs import engines, leases, logs
from terrapod_server.states import actions as states
from terrapod_shared import clock, wire
from terrapod_shared.errors import (
    BadRequest,
    Invalid,
    LeaseEnded,
    NotFound,
    TerrapodError,
    Unauthorized,
    Unavailable,
    Unreachable,
)

log = logging.getLogger(__name__)
_WAIT_MOST_S = 60.0
_RELOAD_S = 30.0
_SETTLE_S = 3.0
_HALF_LIFE = timedelta(hours=listeners.CERTIFICATE_HOURS / 2)
_ARTIFACTS = ("plan-file", "lock-file", "plan-json", "schemas")

_BYTES = "application/octet-stream"
_M = TypeVar("_M", bound=wire.Message)


def _decode(raw: bytes, kind: type[_M]) -> _M:
    try:
        found = msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise Invalid(str(error)) from None
    except msgspec.DecodeError as error:
        message = f"the body is not JSON: {error}"
        raise BadRequest(message) from None
    for name in found.__struct_fields__:
        value = getattr(found, name)
        if isinstance(value, list | tuple | dict):
            parse.check_count(value, name, f"/{name}")
    return found


class JoinAnswer(wire.Message, frozen=True, kw_only=True):
    """What `join` gives, as the reference wraps it."""

    data: wire.Joined


class RenewAnswer(wire.Message, frozen=True, kw_only=True):
    """What `renew` gives."""

    data: wire.Renewed


def _answer(message: wire.Message, status: int = 200, **headers: str) -> Response:
    return Response(msgspec.json.encode(message), status, headers, "application/json")


async def join(call: Call) -> Response:
    """Join a pool with a token; the answer has the certificate and the server's key to be pinned."""
    signer: Listener | None = None
    if "signature" in call.request.headers:  # the old key vouches for a name that is taken
        signer, verified = await auth.verify_once(call.request, call.services)
        call.request.state.digest = verified.content_digest
        raw = await auth.small(call)
    else:
        call.limit_bytes = 1 << 20
        raw = await call.body()
    message = _decode(raw, wire.Join)
    try:
        row, joined = await listeners.join(call.services, message, pool_id=call.path.get("pool"), signer=signer)
    except Unauthorized:  # nobody guesses 256 bits: a good token is looked at however many wrong ones came before
        await lockout.check("join", call.address)
        raise
    who = Principal(kind="listener", id=row.id, name=row.name, pool_id=row.pool_id)
    call.about("listeners", row.id, actor=who)
    return _answer(JoinAnswer(data=joined), 201)


def _me(call: Call) -> Listener:
    row: Listener = call.request.state.listener
    return row


@auth.signs
async def renew(call: Call) -> Response:
    """A new certificate, for a new key that the old one vouches for."""
    message = _decode(await auth.small(call), wire.Renew)
    return _answer(RenewAnswer(data=await listeners.renew(call.services, _me(call), message)))


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


@auth.signs
async def heartbeat(call: Call) -> Response:
    """Prolong leases; hear of cancels at once where `wait` is given."""
    me = _me(call)
    message = _decode(await auth.small(call), wire.Beat)
    wait = _wait_s(call)
    bus, lapsed = call.services.bus, leases.lapsed(me.id)
    async with bus.subscribe(f"listener:{me.id}", lapsed) as subscription, bus.subscribe(lapsed) as lost:
        if await listeners.beat(me, message):
            await engines.settle_waiting(call.services, me.pool_id)
        verdicts = await leases.prolong(call.services, me.id, message.leases)
        pulse = await _pulse(me, verdicts)
        if wait and not _is_news(message, pulse):
            await call.wait(subscription, wait)
            if lost.take():
                verdicts = await leases.prolong(call.services, me.id, message.leases)
            pulse = await _pulse(me, verdicts)
        if message.left:
            settled = await late.settled(me.id, message.left[: wire.LEFT_MOST])
            pulse = msgspec.structs.replace(pulse, settled=settled)
    return _answer(pulse)


def _is_news(beat: wire.Beat, pulse: wire.Pulse) -> bool:
    """Whether the listener is told something that it did not say that it knows."""
    known = {lease.run_id: lease.cancel for lease in beat.leases}
    lost = {(lease.run_id, lease.phase) for lease in beat.leases if lease.is_lost}
    return (
        any(known.get(run_id) != how for run_id, how in pulse.cancels.items())
        or any(each.verdict == "lost" and (each.run_id, each.phase) not in lost for each in pulse.leases)
        or (pulse.drain and not beat.draining)
    )


async def _pulse(me: Listener, verdicts: list[wire.LeaseVerdict]) -> wire.Pulse:
    row = await listeners.get(me.id)
    return wire.Pulse(
        server_time=clock.now().timestamp(),
        leases=verdicts,
        cancels=await leases.cancels_for(me.id),
        drain=row.drain_requested,
        renew=row.certificate_until - _HALF_LIFE < clock.now(),
    )


@auth.signs
async def next_run(call: Call) -> Response:
    """Work, as an offer of 15 s; 204 when there is none within `wait` seconds, of which 30 are the most.

    A listener that is to drain is told so at once.
    """
    me = _me(call)
    bus = call.services.bus
    engines = tuple(sorted(f"{entry['tool']} {entry['version']}" for entry in me.local_engines))
    now = asyncio.get_running_loop().time
    until, loaded = now() + min(_wait_s(call), wire.POLL_S), now()
    await dispatch.heard(me)
    own, lapsed = f"listener:{me.id}", leases.lapsed(me.id)
    async with (
        bus.subscribe(own, lapsed) as woken,
        bus.subscribe(own) as mine,
        bus.subscribe(lapsed) as lost,
        dispatch.line(bus, me.pool_id, dispatch.Place((engines, msgspec.json.encode(me.accepts)), woken)) as (
            line,
            place,
        ),
    ):
        while not bus.is_closing:
            if lost.take():  # whoever hears this answer asks again; a host that hangs would keep an offer for 15 s
                break
            if me.drain_requested:
                return Response(status_code=204, headers={wire.DRAIN_HEADER: "true"})
            if line.may_look(place):
                claim = partial(claiming.claim, me.id, me.pool_id, engines, me.accepts)
                phase = await line.look(place, claim)
                if phase is not None:
                    answer = await _offer(call, phase)
                    if answer is not None:
                        return answer
                    me = await _still(me.id)
                    continue
            left = until - now()
            if left <= 0 or not await call.wait(woken, left):
                break
            if mine.take() or now() - loaded > _RELOAD_S:
                me, loaded = await _still(me.id), now()
    return Response(status_code=204)


async def _still(listener_id: str) -> Listener:
    """The listener as it is now. Raises Unauthorized where it was removed meanwhile."""
    row = await Listener.get_or_none(id=listener_id)
    if row is None or row.revoked_at is not None:
        message = "this listener was removed"
        raise Unauthorized(message)
    return row


async def _offer(call: Call, phase: runs.PhaseRow) -> Response | None:
    """The answer that carries work; None where there is none after all.

    The listener is looked at again: it may have been removed or asked to drain
    since it began to wait, and its sealing key may be another.
    """
    listener_id = phase.lease_listener_id or ""
    try:
        me = await _still(listener_id)
    except Unauthorized:
        await _give_back(call, phase, listener_id, "the listener was removed")
        raise
    if me.drain_requested:
        await _give_back(call, phase, listener_id, "the listener takes no more work")
        return None
    keeping = asyncio.create_task(leases.keep_offer(phase))
    try:
        body = msgspec.json.encode(await work.build(call.services, me, phase))
    except Unreachable as error:  # it says nothing about the run: others are taken, and this one waits
        log.warning("%s waits for its engine: %s", phase.id, error.detail)
        await leases.wait_for_engine(call.services, phase, error.detail)
        return None
    except Exception as error:
        if database_errors.is_reason(error, call.services.config.database):  # it says nothing about the run
            with contextlib.suppress(Exception):  # else the offer ends by itself
                await _give_back(call, phase, listener_id, "the server's database could not be used")
            raise
        text, trace = (error.detail, None) if isinstance(error, TerrapodError) else ("internal server error", error)
        log.warning("cannot hand out %s: %s", phase.id, text, exc_info=trace)
        why = f"it could not be handed to listener {me.name}: {text}"
        try:
            await _give_back(call, phase, listener_id, why, counts=True)
        except LeaseEnded:  # it was canceled, or its workspace deleted, meanwhile
            return None
        raise Unavailable(f"{phase.run_id}: {why}") from None  # the listener pauses before it asks again
    finally:
        keeping.cancel()
    return Response(body, 200, media_type="application/json")


async def _give_back(call: Call, phase: runs.PhaseRow, listener_id: str, why: str, *, counts: bool = False) -> None:
    number = phase.lease_number
    await leases.refuse(call.services, phase.run_id, phase.kind, number, listener_id, why, counts=counts)


@auth.signs
async def report(call: Call) -> Response:
    """Accept, give back or end a phase."""
    me, run_id, number = _me(call), call.path["run"], call.principal.lease
    message = _decode(await auth.small(call), wire.Report)
    services = call.services
    if message.status in ("planning", "applying"):
        if call.request.state.is_late:
            why = "this listener's certificate is over: renew it before taking work"
            raise Unauthorized(why)
        seconds = await leases.accept(services, run_id, message.phase, number, me.id)
        return _answer(wire.Reported(status=message.status, seconds=seconds))
    if message.status == "refused":
        why = f"listener {me.name} gave it back: {message.reason or 'it said no reason'}"
        counts = not message.is_unwilling
        await leases.refuse(services, run_id, message.phase, number, me.id, why, counts=counts)
        return _answer(wire.Reported(status="refused"))
    phase = await leases.find(run_id, message.phase)
    if phase is None:
        raise NotFound
    end = await logs.size(services, phase)
    run = await leases.finish(services, run_id, message, number, me.id, end)
    task = asyncio.create_task(_seal(services, phase.id))
    _sealing.add(task)
    task.add_done_callback(_sealing.discard)
    return _answer(wire.Reported(status=run.status.value))


#: Logs that are being sealed: a task that nobody holds may be collected.
_sealing: set[asyncio.Task[None]] = set()


async def _seal(services: Services, phase_id: str) -> None:
    try:
        await logs.seal(services, phase_id)
    except Exception as error:  # noqa: BLE001  a task of its own: nobody else hears of it
        database_errors.log_failure(
            log, f"sealing the log of {phase_id}, which is done later,", error, services.config.database
        )


async def settle() -> None:
    """Waits for the logs that are being sealed, before the database closes; what takes long is left to another process."""
    left = set(_sealing)
    if left:
        _, left = await asyncio.wait(left, timeout=_SETTLE_S)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@auth.signs
async def put_log(call: Call) -> Response:
    """Raw bytes of the phase's log, at an offset."""
    kind = call.path["phase"]
    if kind not in ("plan", "apply"):
        raise NotFound
    text = call.param("offset", "0") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 15:  # noqa: PLR2004
        message = "offset must be a whole number"
        raise Invalid(message)
    call.expect_upload()
    chunk = await auth.small(call, logs.CHUNK_MOST)  # first: the lease may end while a body is on its way
    phase = await leases.check(call.path["run"], kind, call.principal.lease, _me(call).id)
    following = await logs.append(call.services, phase, int(text), chunk)
    return _answer(wire.LogAnswer(next_offset=following))


@auth.signs
async def put_artifact(call: Call) -> Response:
    """A product of the phase: plan-file, lock-file, plan-json, schemas or state."""
    name = call.path["artifact"]
    if name == "state":
        return await _put_state(call)
    if name not in _ARTIFACTS:
        raise NotFound
    run_id, number, me = call.path["run"], call.principal.lease, _me(call)
    phase = await leases.check(run_id, "plan", number, me.id)
    call.limit_bytes = wire.ARTIFACT_MOST[name]
    stored = await call.services.store.put(leases.artifact_key(phase, name), auth.body(call))
    await leases.note_artifact(call.services, run_id, "plan", number, me.id, name, stored.sha256)
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
        phase = await leases.check(run_id, "apply", number, me.id)
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
        fence=lambda: leases.check(run_id, "apply", number, me.id),
    )
    await leases.note_artifact(call.services, run_id, "apply", number, me.id, "state", row.sha256)
    return _digest(row.sha256)


async def _late(call: Call, run_id: str, serial: int, lineage: str, md5: str) -> Response:
    """A state whose lease is over: kept aside, one for each lease that the sender held."""
    me, number = _me(call), call.principal.lease
    phase = await leases.find(run_id, "apply")
    if phase is None or number > phase.lease_number or not _held(phase, me, number):
        raise NotFound
    await late.keep(call.services, phase, me, number, (serial, lineage, md5), auth.body(call))
    return Response(status_code=202)


def _held(phase: runs.PhaseRow, me: Listener, number: int) -> bool:
    """Whether the listener held that lease: an apply is never handed to a second one."""
    return phase.lease_listener_id == me.id and 0 < number <= phase.lease_number


async def _run(run_id: str, number: int, listener_id: str) -> runs.Row:
    """Raises LeaseEnded where its workspace was deleted meanwhile, NotFound."""
    try:
        return await runs.get(run_id)
    except NotFound:
        await leases.check(run_id, "plan", number, listener_id)
        raise


async def get_artifact(call: Call) -> Response:
    """What the phase needs: configuration, state, plan-file or lock-file."""
    name, run_id, me = call.path["artifact"], call.path["run"], _me(call)
    run = await _run(run_id, call.principal.lease, me.id)
    kind = "apply" if (await leases.phase(run.apply_id)).lease_listener_id == me.id else "plan"
    await leases.check(run_id, kind, call.principal.lease, me.id)
    if name == "configuration":
        version = await configs.get(run.configuration_version_id)
        key, digest = version.stored_key, version.sha256
    elif name == "state":
        state = await states.current(run.workspace_id)
        if state is None:
            raise NotFound
        key, digest = state.key, state.sha256
    elif name in _ARTIFACTS:
        plan = await leases.phase(run.plan_id)
        if name not in plan.digests:
            raise NotFound
        key, digest = leases.artifact_key(plan, name), plan.digests[name]
    else:
        raise NotFound
    return await call.stored(key, _BYTES, headers={wire.DIGEST_HEADER: digest})


async def get_engine(call: Call) -> Response:
    """The zip of an engine; fetched and verified first where it is not in the cache."""
    row = await engine_cache.ensure(call.services, *(call.path[name] for name in ("tool", "version", "os", "arch")))
    return await call.stored(engine_cache.key_of(row), _BYTES, row.size, {wire.DIGEST_HEADER: row.sha256})
