"""Which keys have sealed what the database and the store hold, and whether the key file has them all.

The database names every key before the key seals anything. A server whose key
file lacks one of them does not start: it could not read what is there, and a
new key would seal new data beside it. A key is made only where the database
names none and holds nothing that is sealed.

A database of a release before this table names none either. Then the sealed
values are asked: each begins with the id of its key, in clear.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from terrapod_server.encryption.model import EncryptionKey
from terrapod_server.kit.db import database
from terrapod_server.store.cipher import Damaged, EncryptedStore, KeyRing
from terrapod_server.store.sealed import SealedColumn, SealedObjects
from terrapod_shared import clock
from terrapod_shared.errors import NotFound
from terrapod_shared.operator_errors import OperatorError

_TABLE = "encryption_key"
#: So many objects of one table are looked at, spread over all of its rows: keys rotate with time.
_OBJECTS = 32
_AT_ONCE = 8


class Unusable(OperatorError):
    """The key file or the database cannot be worked with; the text is for the operator."""


@dataclass(frozen=True)
class Witnesses:
    """What tells the keys of a database that names none.

    `signed(ring)` says whether what was signed by derived keys was signed by
    the ring's; None where there is nothing.
    """

    columns: Sequence[SealedColumn]
    objects: Sequence[SealedObjects]
    signed: Callable[[KeyRing], Awaitable[bool | None]]


def load(path: Path) -> KeyRing | None:
    """The ring of the key file, None where there is no file. Raises Unusable."""
    try:
        return KeyRing.load(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unusable(f"the key file {path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise Unusable(f"the key file {path} cannot be used: {error}") from None


class KnownKeys:
    """The keys of one database against those of one key file. To be used while the database is open."""

    def __init__(self, path: Path, opened_store: Callable[[KeyRing], EncryptedStore], witnesses: Witnesses) -> None:
        """`opened_store` opens the store with a ring; it is closed again here."""
        self._path, self._opened_store, self._witnesses = path, opened_store, witnesses

    async def settle(self, ring: KeyRing) -> None:
        """At a start: proves the ring and records its keys. A ring that is in memory alone is written to the key file.

        Raises Unusable, and then nothing was changed.
        """
        async with database.one_at_a_time("encryption keys"):
            on_disk = await asyncio.to_thread(load, self._path)
            if on_disk and not set(on_disk.ids) & set(ring.ids):  # the ring is of a start that found no file
                raise Unusable(self._just_made())
            await self.check(ring if on_disk else None)
            if not on_disk:
                self._write(ring)
            await _record(ring)

    def _write(self, ring: KeyRing) -> None:
        try:
            ring.write_new(self._path)
        except FileExistsError:
            raise Unusable(self._just_made()) from None
        except OSError as error:
            raise Unusable(f"the key file {self._path} cannot be made: {error.strerror or error}") from None

    def _just_made(self) -> str:
        return f"another process has just made {self._path}: start again"

    async def check(self, ring: KeyRing | None) -> None:
        """Changes nothing; `ring` is None where there is no key file. Raises Unusable where a server must not start."""
        lost = await self.lost(ring)
        if lost:
            raise Unusable(self._explained(lost, ring))
        if ring is not None and (changed := await _changed(ring)):
            what = _named(changed)
            raise Unusable(f"{what} in {self._path} is not what the database knows by that id: restore the key file")
        if await named() or await _forgotten():
            return
        if await self._witnesses.signed(ring or KeyRing.fresh()) is False:
            raise Unusable(self._explained((), ring))

    async def lost(self, ring: KeyRing | None) -> list[str]:
        """Ids of keys that are in use and that the ring lacks."""
        have = set(ring.ids) if ring else set()
        in_use = await named()
        if not in_use:
            in_use = await self._asked(ring) - await _forgotten()
        return sorted(in_use - have)

    async def forget(self, ring: KeyRing | None) -> list[str]:
        """Gives up the keys that are lost, and records the ring; a new key is made where there is no file. The ids."""
        async with database.one_at_a_time("encryption keys"):
            lost = await self.lost(ring)
            for identity in lost:
                await EncryptionKey.update_or_create({"forgotten_at": clock.now()}, id=identity)
            if ring is None:
                ring = KeyRing.fresh()
                self._write(ring)
            await _record(ring)
            return lost

    def _explained(self, lost: Collection[str], ring: KeyRing | None) -> str:
        if ring is None:
            have = f"there is no key file {self._path}"
        else:
            have = f"the key file {self._path} has only {', '.join(ring.ids)}"
        what = f"data is encrypted with {_named(lost)}" if lost else "the audit log was signed with another key"
        return (
            f"{have}, and {what}: restore the key file (`terrapod-server keys forget` gives up what is lost for good)"
        )

    async def _asked(self, ring: KeyRing | None) -> set[str]:
        """Ids of the keys that have sealed what is there, asked of the values and of a sample of the objects.

        Raises Unusable where nothing opens of what a key of the ring is said to have sealed.
        """
        found: dict[str, bool] = {}
        there = await database.tables()
        for column in self._witnesses.columns:
            if column.table in there:
                async for identity, opens in _values(column, ring):
                    found[identity] = found.get(identity, False) or opens
        objects = [key for each in self._witnesses.objects if each.table in there for key in await _keys(each)]
        for identity, opens in await self._opened(objects, ring):
            found[identity] = found.get(identity, False) or opens
        wrong = [identity for identity in ring.ids if found.get(identity) is False] if ring else []
        if wrong:
            raise Unusable(f"{_named(wrong)} of {self._path} opens nothing of what a key of that id has sealed")
        return set(found)

    async def _opened(self, keys: Sequence[str], ring: KeyRing | None) -> list[tuple[str, bool]]:
        """Of each object that is there: the id of its key, and whether it opens."""
        if not keys:
            return []
        found: list[tuple[str, bool]] = []
        store = self._opened_store(ring or KeyRing.fresh())
        try:
            for at in range(0, len(keys), _AT_ONCE):
                some = await asyncio.gather(*(_object(store, key) for key in keys[at : at + _AT_ONCE]))
                found += [one for one in some if one is not None]
        finally:
            await store.close()
        return found


async def named() -> set[str]:
    """Ids of the keys that the database says are in use."""
    if _TABLE not in await database.tables():
        return set()
    return {str(row[0]) for row in await database.rows("SELECT id FROM encryption_key WHERE forgotten_at IS NULL")}


async def missing(path: Path, ring: KeyRing) -> set[str]:
    """Ids of keys in use that the ring, or its file as it is now, lacks. Raises Unusable for a file that is none."""
    on_disk = await asyncio.to_thread(load, path)
    have = set(ring.ids) & set(on_disk.ids if on_disk else ())
    return await named() - have


async def _forgotten() -> set[str]:
    if _TABLE not in await database.tables():
        return set()
    return {str(row[0]) for row in await database.rows("SELECT id FROM encryption_key WHERE forgotten_at IS NOT NULL")}


async def _changed(ring: KeyRing) -> list[str]:
    """Ids under which the ring has another key than the one that the database knows."""
    if _TABLE not in await database.tables():
        return []
    wrong = []
    for row in await EncryptionKey.filter(id__in=ring.ids):
        try:
            ring.unseal(row.proof, _context(row.id))
        except Damaged:
            wrong += [row.id] if row.proof else []
    return wrong


async def _record(ring: KeyRing) -> None:
    """Names all keys of the ring in the database; one that was given up and is there again is in use again."""
    known = {row.id: row for row in await EncryptionKey.all()}
    fresh = [
        EncryptionKey(id=identity, proof=ring.seal(b"", _context(identity), by=bytes.fromhex(identity)))
        for identity in ring.ids
        if identity not in known
    ]
    await EncryptionKey.bulk_create(fresh, ignore_conflicts=True)
    found = [identity for identity in ring.ids if identity in known and known[identity].forgotten_at is not None]
    if found:
        await EncryptionKey.filter(id__in=found).update(forgotten_at=None)


async def _values(column: SealedColumn, ring: KeyRing | None) -> AsyncIterator[tuple[str, bool]]:
    """Each key id that values of the column begin with, and whether the oldest or the newest of them opens."""
    name, table = column.column, column.table
    head = (
        f"encode(substring({name} FROM 1 FOR 8), 'hex')"
        if database.is_postgres()
        else f"lower(hex(substr({name}, 1, 8)))"
    )
    asked = await database.rows(
        f"SELECT {head} AS key, MIN(id), MAX(id) FROM {table} WHERE length({name}) > 0 GROUP BY 1"  # noqa: S608
    )
    for identity, *ends in asked:
        opens = False
        if ring is not None and identity in ring.ids:
            for end in dict.fromkeys(ends):
                rows = await database.rows(f"SELECT {name} FROM {table} WHERE id = $1", [end])  # noqa: S608
                opens = opens or any(_opens(ring, row[0], column.context.format(id=end)) for row in rows)
        yield str(identity), opens


async def _keys(objects: SealedObjects) -> list[str]:
    """Of a sample of the objects."""
    greatest = "GREATEST" if database.is_postgres() else "MAX"
    rows = await database.rows(
        f"""
        SELECT key FROM (
          SELECT {objects.key} AS key, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS total
          FROM {objects.table} WHERE {objects.key} <> ''
        ) AS named
        WHERE place = total OR place % {greatest}(1, total / {_OBJECTS}) = 0
        """  # noqa: S608  names of ours
    )
    return [str(row[0]) for row in rows]


async def _object(store: EncryptedStore, key: str) -> tuple[str, bool] | None:
    """Key id, and whether it opens; None for an object that is gone or has no head."""
    try:
        identity = await store.sealed_by(key)
    except (NotFound, Damaged):
        return None
    try:
        async for _ in store.get(key, limit=1):
            pass
    except (NotFound, Damaged):
        return identity, False
    return identity, True


def _opens(ring: KeyRing, sealed: bytes, context: str) -> bool:
    try:
        ring.unseal(sealed, context)
    except Damaged:
        return False
    return True


def _context(identity: str) -> str:
    return f"encryption key {identity}"


def _named(ids: Collection[str]) -> str:
    return f"the key{'s' if len(ids) > 1 else ''} {', '.join(sorted(ids))}"


__all__ = ["KnownKeys", "Unusable", "Witnesses", "load", "missing", "named"]
