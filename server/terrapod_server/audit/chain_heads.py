"""Where the chains end: checkpoints in the database and in a file beside it, signed with Ed25519.

A checkpoint in the database lists all chains, so that one that is gone as a
whole is missed. Each process writes it with its own end as it remembers it, and
appends that end to the file `checkpoints` of its data folder and to its log:
whoever has the database alone can put back an older checkpoint, and is found
out by the file. Retention moves a chain's floor, in a checkpoint as well.
"""

import base64
import contextlib
import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tortoise.exceptions import IntegrityError

from terrapod_server.audit.model import AuditCheckpoint
from terrapod_server.audit.rules import NOTHING
from terrapod_server.kit.db.database import in_transaction, tables
from terrapod_server.store.cipher import KeyRing
from terrapod_shared import clock
from terrapod_shared.files import write_private

log = logging.getLogger("terrapod.audit")
_KEPT = 100
_TRIES = 10


class Head(msgspec.Struct, frozen=True, array_like=True):
    """A chain's entries are those after `floor`, up to `number`; `*_mac` are the seals of these two."""

    floor: int = 0
    floor_mac: str = NOTHING
    number: int = 0
    mac: str = NOTHING


class Heads(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint. Chains of which nothing was left at `purged_until` are no longer listed."""

    sequence: int = 0
    at: str = ""
    purged_until: str = ""
    chains: dict[str, Head] = {}


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file: one chain's end, proved by itself."""

    sequence: int
    chain: str
    number: int
    mac: str
    at: str
    signature: str = ""

    @property
    def signed(self) -> bytes:
        return msgspec.json.encode((self.sequence, self.chain, self.number, self.mac, self.at))


class Keys:
    """Signs with the first of the keys and believes all; `macs` are those of the chains, likewise."""

    @classmethod
    def of(cls, keyring: KeyRing) -> "Keys":
        return cls(keyring.derive("audit checkpoints"), keyring.derive("audit chains"))

    def __init__(self, signing: Sequence[bytes], macs: Sequence[bytes]) -> None:
        self._private = [Ed25519PrivateKey.from_private_bytes(seed) for seed in signing]
        self.macs = tuple(macs)

    def sign(self, data: bytes) -> str:
        return base64.b64encode(self._private[0].sign(data)).decode()

    def has_signed(self, data: bytes, signature: str) -> bool:
        for key in self._private:
            with contextlib.suppress(InvalidSignature, ValueError):
                key.public_key().verify(base64.b64decode(signature), data)
                return True
        return False


class Ledger:
    """Reads and writes checkpoints. What this process knows wins over what the database says."""

    def __init__(self, keys: Keys, folder: Path) -> None:
        self.keys, self._file = keys, folder / "checkpoints"
        self._known = Heads()

    async def newest(self) -> Heads:
        """The newest checkpoint that is signed and not older than what this process has seen."""
        rows = await AuditCheckpoint.all().order_by("-id").limit(_KEPT)
        for row in rows:
            found = opened(self.keys, row)
            if found is not None:
                break
            log.error("audit checkpoint %s is not signed by this server: it was altered or put in", row.id)
        else:
            found = Heads()
        if found.sequence < self._known.sequence:
            log.error("audit checkpoint %s is gone from the database", self._known.sequence)
            found = self._known
        newest = rows[0].id if rows else 0
        return msgspec.structs.replace(found, sequence=max(found.sequence, newest))

    async def amend(
        self, change: Callable[[Heads], Heads], also: Callable[[], Awaitable[object]] | None = None
    ) -> Heads:
        """Writes a checkpoint that `change` makes of the newest one; `also` is done in its transaction."""
        for _ in range(_TRIES):
            before = await self.newest()
            after = msgspec.structs.replace(change(before), sequence=before.sequence + 1, at=clock.stamp(clock.now()))
            text = msgspec.json.encode(after)
            try:
                async with in_transaction():
                    await AuditCheckpoint.create(
                        id=after.sequence, document=text.decode(), signature=self.keys.sign(text)
                    )
                    await AuditCheckpoint.filter(id__lte=after.sequence - _KEPT).delete()
                    if also is not None:
                        await also()
            except IntegrityError:  # another process wrote that one
                continue
            self._known = after
            return after
        message = "other processes wrote audit checkpoints all the time"
        raise TimeoutError(message)

    def append(self, sequence: int, chain: str, number: int, mac: str) -> None:
        """Writes a chain's end to the file, so that it is on the disk when the call returns, and to the log."""
        line = Line(sequence=sequence, chain=chain, number=number, mac=mac, at=clock.stamp(clock.now()))
        line = msgspec.structs.replace(line, signature=self.keys.sign(line.signed))
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self._file) as handle:
            os.write(handle, msgspec.json.encode(line) + b"\n")
            os.fsync(handle)
        log.info("audit checkpoint %s: chain %s ends at entry %s, %s", sequence, chain, number, mac)

    def trim(self, before: str) -> None:
        """Takes lines from before that time out of the file."""
        if not self._file.exists():
            return
        with _locked(self._file) as handle:
            text = os.pread(handle, os.fstat(handle).st_size, 0).splitlines(keepends=True)
            kept = [line for line in text if _time(line) >= before]
            if len(kept) < len(text):
                write_private(self._file, b"".join(kept))


def opened(keys: Keys, row: AuditCheckpoint) -> Heads | None:
    """What a row says, or None where it is not what was signed."""
    if not keys.has_signed(row.document.encode(), row.signature):
        return None
    found = msgspec.json.decode(row.document, type=Heads)
    return found if found.sequence == row.id else None


async def is_signed_by(keys: Keys) -> bool | None:
    """Whether the newest checkpoint was signed by these keys; None where there is none. The table may be missing."""
    if "audit_checkpoint" not in await tables():
        return None
    row = await AuditCheckpoint.all().order_by("-id").first()
    return None if row is None else opened(keys, row) is not None


def lines(file: Path) -> Iterator[Line | None]:
    """The lines of a checkpoint file; None for one that is none."""
    if not file.exists():
        return
    with file.open("rb") as opened_file:
        for text in opened_file:
            try:
                yield msgspec.json.decode(text, type=Line)
            except msgspec.DecodeError:
                yield None


def _time(line: bytes) -> str:
    try:
        return msgspec.json.decode(line, type=Line).at
    except msgspec.DecodeError:
        return "9"  # what cannot be read is kept: somebody has to look at it


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[int]:
    """The file, for this process alone; it is the one that bears the name, whoever replaced it meanwhile."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if file.exists() and os.path.samestat(os.fstat(handle), file.stat()):
                yield handle
                return
        finally:
            os.close(handle)


__all__ = ["Head", "Heads", "Keys", "Ledger", "Line", "is_signed_by", "lines", "opened"]
