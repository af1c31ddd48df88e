"""The verbs of listeners."""

import base64
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from tortoise.exceptions import IntegrityError

from terrapod_server.agents import ca, join_tokens, pools
from terrapod_server.agents.model import JoinToken, Listener, Pool
from terrapod_server.kit.db.database import in_transaction, query
from terrapod_server.kit.services import Services
from terrapod_server.runs import leases
from terrapod_shared import clock, ids, signing, wire
from terrapod_shared.errors import Conflict, Invalid, NotFound

log = logging.getLogger(__name__)

CERTIFICATE_HOURS = 24.0
#: For so long the same join is answered once more.
_REPEAT = timedelta(minutes=10)
_PATTERNS_MOST, _PATTERN_MOST = 300, 254


async def _repeated(message: wire.Join, public: Ed25519PublicKey) -> Listener | None:
    """The listener that the same request, whose answer was lost, has made of the same key a moment ago."""
    token_row = await JoinToken.get_or_none(hash=join_tokens.fingerprint(message.join_token), revoked=False)
    if token_row is None:
        return None
    issued_after = clock.now() - _REPEAT + timedelta(hours=CERTIFICATE_HOURS)
    return await Listener.get_or_none(
        name=message.name,
        pool_id=token_row.pool_id,
        public_key=signing.raw_public(public),
        sealing_key=message.sealing_key,
        revoked_at=None,
        certificate_until__gt=issued_after,
    )


async def join(
    services: Services, message: wire.Join, *, pool_id: str | None = None, signer: Listener | None = None
) -> tuple[Listener, wire.Joined]:
    """Makes a listener of who holds a token; the token is spent in the same transaction.

    A name that is taken in another pool, or in this one by somebody whose key
    did not sign the request (and whom no admin let back in), is a Conflict.
    """
    if not 0 < len(message.name) <= 90 or not message.name.isprintable():  # noqa: PLR2004
        wrong = "name must have 1 to 90 letters"
        raise Invalid(wrong, pointer="/name")
    keys = await ca.keys(services)
    private = None
    _check_sealing(message.sealing_key, is_needed=bool(message.csr))
    if message.csr:
        public = signing.public_key_of_csr(message.csr)
    else:
        private = Ed25519PrivateKey.generate()
        public = private.public_key()
    async with in_transaction():
        repeated = await _repeated(message, public) if message.csr else None
        joined = await pools.get(repeated.pool_id if repeated else await join_tokens.spend(message.join_token))
        if pool_id is not None and joined.id != pool_id:
            wrong = "the join token is for another pool"
            raise Conflict(wrong)
        if private is not None and not joined.allow_server_keys:
            wrong = "csr is needed: this pool does not let the server make keys"
            raise Invalid(wrong, pointer="/csr")
        row = await Listener.get_or_none(name=message.name)
        if row is None:
            row = Listener(id=ids.make("listener"), name=message.name, pool_id=joined.id)
        elif repeated is None:
            _check_rejoin(row, joined, signer)
        certificate = signing.issue(keys.ca_key, keys.ca, public, row.id, joined.id, CERTIFICATE_HOURS)
        before = row.certificate_serial
        is_new = not row._saved_in_db  # noqa: SLF001  the ORM has no public word for it
        _certify(row, certificate, signing.raw_public(public))
        row.pool_id, row.sealing_key, row.version = joined.id, message.sealing_key, message.version[:40]
        row.runner_definitions = message.runner_definitions
        row.allow_rejoin, row.revoked_at, row.last_seen_at = False, None, clock.now()
        try:
            await row.save(force_create=is_new, force_update=not is_new)
        except IntegrityError:
            wrong = f"a listener named {message.name} joined, or was removed, at the same time"
            raise Conflict(wrong) from None
    if not is_new:
        log.warning(
            "listener %s (%s) joined again, %s: certificate %s instead of %s",
            row.name,
            row.id,
            "signed with its old key" if signer is not None and signer.id == row.id else "let in by an admin",
            row.certificate_serial,
            before,
        )
        await services.bus.publish(f"listener:{row.id}")
    answer = wire.Joined(
        listener_id=row.id,
        pool_id=joined.id,
        certificate=_pem(certificate),
        ca_certificate=keys.ca_pem,
        server_key=keys.server_key,
        private_key=_private(private) if private else "",
    )
    return row, answer


def _check_sealing(key: str, *, is_needed: bool) -> None:
    """A listener that makes its own keys has one for sensitive values too."""
    try:
        raw = base64.b64decode(key, validate=True)
    except ValueError:
        raw = b"?"
    if len(raw) != 32 and (is_needed or raw):  # noqa: PLR2004
        wrong = "sealing_key must be an X25519 public key, raw, base64"
        raise Invalid(wrong, pointer="/sealing_key")


def _check_rejoin(row: Listener, joined: Pool, signer: Listener | None) -> None:
    if row.pool_id != joined.id:
        wrong = f"a listener named {row.name} is in another pool"
        raise Conflict(wrong)
    if not row.allow_rejoin and (signer is None or signer.id != row.id):
        wrong = f"a listener named {row.name} has joined: sign with its key, or let an admin allow its rejoin"
        raise Conflict(wrong)


def _certify(row: Listener, certificate: x509.Certificate, public: str) -> None:
    row.public_key = public
    row.certificate_serial = f"{certificate.serial_number:x}"
    row.certificate_until = certificate.not_valid_after_utc


async def renew(services: Services, row: Listener, message: wire.Renew) -> wire.Renewed:
    keys = await ca.keys(services)
    public = signing.public_key_of_csr(message.csr)
    _check_sealing(message.sealing_key, is_needed=False)
    certificate = signing.issue(keys.ca_key, keys.ca, public, row.id, row.pool_id, CERTIFICATE_HOURS)
    before = row.public_key
    _certify(row, certificate, signing.raw_public(public))
    changed: dict[str, Any] = {
        "public_key": row.public_key,
        "certificate_serial": row.certificate_serial,
        "certificate_until": row.certificate_until,
    }
    if message.sealing_key:
        changed["sealing_key"] = message.sealing_key
    # of two renewals by the same key one wins: a stolen key and its owner cannot both go on
    if not await Listener.filter(id=row.id, public_key=before, revoked_at=None).update(**changed):
        wrong = "the key was renewed by somebody else meanwhile"
        raise Conflict(wrong)
    return wire.Renewed(certificate=_pem(certificate), ca_certificate=keys.ca_pem)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _private(key: Ed25519PrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


async def get(listener_id: str) -> Listener:
    row = await Listener.get_or_none(id=listener_id)
    if row is None:
        raise NotFound
    return row


async def note_seen(listener_ids: Sequence[str], at: datetime) -> None:
    """Notes that listeners were heard of at that time, or later where that is known."""
    marks = ", ".join(f"${number}" for number in range(2, len(listener_ids) + 2))
    await query(
        f"""
        WITH one AS (SELECT 1)
        UPDATE listener SET last_seen_at = $1
        WHERE id IN ({marks}) AND (last_seen_at IS NULL OR last_seen_at < $1) RETURNING 1
        """,  # noqa: S608  only marks are put in
        [at, *listener_ids],
    )


async def set_drain(services: Services, row: Listener, *, wanted: bool) -> None:
    """Asks a listener to take no more work, or to take work again."""
    await Listener.filter(id=row.id).update(drain_requested=wanted)
    await services.bus.publish(f"listener:{row.id}", *([f"pool:{row.pool_id}"] if wanted else []))


async def allow_rejoin(row: Listener) -> None:
    """Lets the next holder of a join token take the listener's name, once."""
    await Listener.filter(id=row.id).update(allow_rejoin=True)


async def leave(services: Services, row: Listener) -> None:
    """Revokes a listener's certificate. Its row stays while a lease of it is open."""
    if await leases.are_open(row.id):
        await Listener.filter(id=row.id).update(revoked_at=clock.now())
    else:
        await row.delete()
    await services.bus.publish(f"listener:{row.id}")


async def forget(before: datetime) -> list[Listener]:
    """Removes listeners that were last heard of before that time, unless somebody still waits for what they have.

    That is a lease, a held apply, a state that the listener has told of and not delivered (no other listener can deliver
    it), or the unknown state of an apply whose run keeps its workspace locked. Any server process may call this: where two
    do so at once, one gets each row. A listener that calls meanwhile changes its row, and stays.
    """
    rows = await query(
        f"""
        WITH one AS (SELECT 1)
        DELETE FROM listener
        WHERE coalesce(last_seen_at, created_at) < $1 AND CAST(spooled AS text) = '[]'
            AND NOT {leases.is_awaited("listener.id")}
        RETURNING id, name, pool_id
        """,  # noqa: S608  our own words
        [before],
    )
    return [Listener(id=row["id"], name=row["name"], pool_id=row["pool_id"]) for row in rows]


async def beat(row: Listener, message: wire.Beat) -> bool:
    """Writes down what a listener says of itself; whether its engines are others than before.

    Raises Invalid for settings that are too large to ask by.
    """
    accepts = message.accepts
    patterns = [*accepts.workspaces, *accepts.labels, *accepts.labels.values()]
    if len(patterns) > _PATTERNS_MOST or any(len(each) > _PATTERN_MOST for each in patterns):
        wrong = f"accepts may hold {_PATTERNS_MOST} patterns of {_PATTERN_MOST} letters"
        raise Invalid(wrong, pointer="/accepts")
    local = [{"tool": e.tool, "version": e.version, "sha256": e.sha256} for e in message.local_engines]
    await Listener.filter(id=row.id).update(
        last_seen_at=clock.now(),
        capacity=message.capacity,
        free_slots=message.free_slots,
        local_engines=local,
        isolation=message.isolation[:20],
        version=message.version[:40],
        os=message.os[:20],
        arch=message.arch[:20],
        draining=message.draining,
        spooled=message.spooled[:100],
        accepts=msgspec.to_builtins(accepts),
    )
    return bool(local != row.local_engines)
