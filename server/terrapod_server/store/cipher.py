"""Encryption at rest: AES-256-GCM, in chunks for files and in one piece for small values.

A file is a header and chunks. The header is magic (4 bytes), key id (8) and
salt (16); HKDF-SHA256 of the named key with that salt gives the file's own
key, so that nonces can be plain counters. Each chunk is sealed under the
nonce (index, is it the last) with the object's key as associated data: a
chunk that is missing, moved, cut or put into another object does not open
(the STREAM construction, https://eprint.iacr.org/2015/189). Any chunk can be
read by itself, so an offset costs one chunk and not the file before it.

What this does not see: an object that was put back as it once was under the
same name, and one that was deleted. `size` is reckoned from the file's length
and proves nothing; a read does, a read past the end too.
"""

import base64
import contextlib
import fcntl
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from terrapod_server.store.port import (
    EVERYTHING,
    Larger,
    Made,
    Opened,
    Span,
    Store,
    Stored,
    Tally,
    checked,
    gathered,
)
from terrapod_server.store.threads import Threads
from terrapod_shared.errors import Internal

_MAGIC = b"TPE1"
_ID, _KEY, _SALT, _TAG, _NONCE = 8, 32, 16, 16, 12
HEADER = len(_MAGIC) + _ID + _SALT
#: Plain bytes of a chunk.
PLAIN = 256 << 10
_SEALED = PLAIN + _TAG
#: Below this it is quicker to count here than to ask a thread.
_INLINE = 64 << 10
#: What is remembered of sealed objects: in all, and at most of one.
_LATELY_BYTES, _LATELY_EACH = 8 << 20, (1 << 20) + (64 << 10)


class Damaged(Internal):
    """An object or a value does not open: it was altered, or its key is missing."""


class KeyRing:
    """The keys that encrypt at rest, by id; the first one encrypts, all decrypt."""

    def __init__(self, keys: dict[bytes, bytes]) -> None:
        if not keys:
            message = "a key ring needs a key"
            raise ValueError(message)
        self._keys = dict(keys)
        self._values: dict[bytes, AESGCM] = {}
        self.current = next(iter(keys))

    @classmethod
    def fresh(cls) -> "KeyRing":
        """One new key, which is in memory alone."""
        return cls({os.urandom(_ID): os.urandom(_KEY)})

    @classmethod
    def create(cls, path: Path) -> "KeyRing":
        """Makes a key file of mode 0600 with a new key. Raises FileExistsError where there is a file."""
        ring = cls.fresh()
        ring.write_new(path)
        return ring

    def write_new(self, path: Path) -> None:
        """Writes the ring to a new file of mode 0600. Raises FileExistsError where there is one."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._written(path) as part:
            os.link(part, path)  # unlike a rename it never replaces: a lost key is lost data

    @classmethod
    def load(cls, path: Path) -> "KeyRing":
        """Reads a key file: a line a key, `<id in hex>:<key in base64>`, the current one first."""
        return cls(_read(path))

    @property
    def ids(self) -> list[str]:
        """Of the keys, in hex; the current one first."""
        return [identity.hex() for identity in self._keys]

    def rotate(self, path: Path) -> "KeyRing":
        """Puts a new key first; what older keys sealed stays readable.

        Keys that another process added to the file since this ring was read
        are kept. Processes that run go on with the ring that they have: start
        them again, all of them, before what the new key sealed is read.
        """
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            ring = KeyRing({os.urandom(_ID): os.urandom(_KEY), **_read(path), **self._keys})
            with ring._written(path) as part:
                part.replace(path)
        finally:
            os.close(folder)
        return ring

    @contextlib.contextmanager
    def _written(self, path: Path) -> Iterator[Path]:
        """A file beside `path` that holds the ring; what the block did with it is on disk afterwards."""
        lines = [f"{identity.hex()}:{base64.b64encode(key).decode()}\n" for identity, key in self._keys.items()]
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            yield part
        finally:
            part.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def derive(self, purpose: str) -> list[bytes]:
        """A key of 32 bytes for another purpose, from each key of the ring; the current one first."""
        return [_hkdf(key, b"", b"terrapod " + purpose.encode()) for key in self._keys.values()]

    def seal(self, data: bytes, context: str, *, by: bytes | None = None) -> bytes:
        """A small value, bound to `context` (its table, column and row): it opens nowhere else.

        `by` is the id of the key that seals; default the current one.
        """
        nonce, by = os.urandom(_NONCE), by or self.current
        return by + nonce + self._value_key(by).encrypt(nonce, data, context.encode())

    def unseal(self, sealed: bytes, context: str) -> bytes:
        """Raises Damaged."""
        sealed = bytes(sealed)
        identity, nonce, rest = sealed[:_ID], sealed[_ID : _ID + _NONCE], sealed[_ID + _NONCE :]
        with contextlib.suppress(InvalidTag):
            if len(nonce) == _NONCE:  # of a shorter one the library says that the caller is wrong
                return self._value_key(identity).decrypt(nonce, rest, context.encode())
        message = f"the value of {context} does not open: it was altered, or belongs elsewhere"
        raise Damaged(message)

    def _value_key(self, identity: bytes) -> AESGCM:
        if (made := self._values.get(identity)) is None:
            made = self._values[identity] = AESGCM(_hkdf(self.key(identity), b"", b"terrapod values"))
        return made

    def key(self, identity: bytes) -> bytes:
        """Raises Damaged where the ring lacks it."""
        try:
            return self._keys[identity]
        except KeyError:
            message = f"the key {identity.hex()} is not in the key file"
            raise Damaged(message) from None


def _read(path: Path) -> dict[bytes, bytes]:
    keys = {}
    for number, line in enumerate(path.read_text(encoding="ascii").split(), 1):
        head, _, tail = line.partition(":")
        try:
            identity, key = bytes.fromhex(head), base64.b64decode(tail, validate=True)
        except ValueError:
            identity = key = b""
        if len(identity) != _ID or len(key) != _KEY or identity in keys:
            message = f"line {number} of {path} is no key, or one that is there already"
            raise ValueError(message)
        keys[identity] = key
    return keys


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), _KEY, salt, info).derive(key)


class _Cipher:
    """The cipher of one object. A chunk takes 35 microseconds, and a hop to a thread 100: so none is made."""

    def __init__(self, ring: KeyRing, identity: bytes, salt: bytes, key: str) -> None:
        self.header = _MAGIC + identity + salt
        self._aead = AESGCM(_hkdf(ring.key(identity), salt, b"terrapod files"))
        self._key = key

    def seal(self, index: int, chunk: bytes, *, last: bool) -> bytes:
        return self._aead.encrypt(_nonce(index, last=last), chunk, self._key.encode())

    def open(self, index: int, sealed: bytes | memoryview, *, last: bool) -> bytes:
        try:
            return self._aead.decrypt(_nonce(index, last=last), sealed, self._key.encode())
        except InvalidTag:
            message = f"{self._key} is damaged at chunk {index}"
            raise Damaged(message) from None


def _nonce(index: int, *, last: bool) -> bytes:
    return index.to_bytes(_NONCE - 1, "big") + bytes([last])


class _Lately:
    """Small objects as they lie in the store, sealed: those that were read last. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sealed: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0

    def get(self, key: str, version: str) -> bytes | None:
        with self._lock:
            found = self._sealed.get((key, version)) if version else None
            if found is not None:
                self._sealed.move_to_end((key, version))
            return found

    def put(self, key: str, version: str, sealed: bytes) -> None:
        if len(sealed) > _LATELY_EACH:
            return
        with self._lock:
            self._bytes += len(sealed) - len(self._sealed.pop((key, version), b""))
            self._sealed[key, version] = sealed
            while self._bytes > _LATELY_BYTES:
                self._bytes -= len(self._sealed.popitem(last=False)[1])


class EncryptedStore(Store):
    """Any store, with nothing in clear in it. Sizes and digests are those of the plain bytes."""

    def __init__(self, store: Store, ring: KeyRing) -> None:
        self._store, self._ring = store, ring
        self._threads = Threads("digest", 2)
        self._lately = _Lately()

    async def put(
        self, key: str, chunks: AsyncIterator[bytes], *, durable: bool = True, digests: bool = True
    ) -> Stored:
        tally = Tally(digests=digests)
        cipher = _Cipher(self._ring, self._ring.current, os.urandom(_SALT), checked(key))
        await self._store.put(key, self._sealed(cipher, chunks, tally), durable=durable, digests=False)
        return tally.stored()

    async def _sealed(self, cipher: _Cipher, chunks: AsyncIterator[bytes], tally: Tally) -> AsyncIterator[bytes]:
        """Header and sealed chunks; the last one is known only when the stream ends, so one is held back.

        A chunk is counted in a thread while the store below writes the same one.
        """
        yield cipher.header
        held: bytes | None = None
        index = 0
        async for chunk in gathered(chunks, PLAIN):
            if held is not None:
                counted = self._threads.start(tally.count, held)
                yield cipher.seal(index, held, last=False)
                await counted
                index += 1
            held = chunk
        held = held or b""
        if len(held) < _INLINE:
            tally.count(held)
        else:
            await self._threads.run(tally.count, held)
        yield cipher.seal(index, held, last=True)

    @contextlib.asynccontextmanager
    async def opened(self, key: str, *spans: Span) -> AsyncIterator["_Open"]:
        async with self._source(checked(key), spans or (EVERYTHING,)) as source:
            yield _Open(source, self._cipher(key, await source.read(0, HEADER)), key)

    async def whole(self, key: str, most: int, made: Made = bytes, *, version: str = "") -> bytes:
        """The whole object is opened by the thread that has read it; a small one that was read lately, here and now."""
        known = self._lately.get(key, version)
        if known is not None:
            found = self._opened_all(key, known)
        else:
            sealed_most = HEADER + most + (most // PLAIN + 1) * _TAG
            try:
                found = await self._store.whole(checked(key), sealed_most, lambda raw: self._read(key, version, raw))
            except Larger:
                raise Larger(key, most) from None
        if len(found) > most:
            raise Larger(key, most)
        return made(found)

    def _read(self, key: str, version: str, sealed: bytes) -> bytes:
        found = self._opened_all(key, sealed)
        if version:
            self._lately.put(key, version, sealed)
        return found

    def _opened_all(self, key: str, sealed: bytes) -> bytes:
        _, last = _shape(key, len(sealed))
        cipher = self._cipher(key, sealed[:HEADER])
        chunks = memoryview(sealed)[HEADER:]
        return b"".join(
            [
                cipher.open(index, chunks[index * _SEALED : (index + 1) * _SEALED], last=index == last)
                for index in range(last + 1)
            ]
        )

    def _cipher(self, key: str, header: bytes) -> _Cipher:
        if len(header) != HEADER or not header.startswith(_MAGIC):
            message = f"{key} is damaged at its head"
            raise Damaged(message)
        return _Cipher(self._ring, header[len(_MAGIC) : -_SALT], header[-_SALT:], key)

    def _source(self, key: str, spans: tuple[Span, ...]) -> AbstractAsyncContextManager[Opened]:
        below = [_below(span) for span in spans]
        start, stop = below[0]
        if start == HEADER:
            return self._store.opened(key, (0, stop), *below[1:])
        return self._store.opened(key, (0, HEADER), *below)

    async def sealed_by(self, key: str) -> str:
        """Id in hex of the key that has sealed an object, whether the ring has it or not. Raises NotFound, Damaged."""
        async with self._store.opened(checked(key), (0, HEADER)) as source:
            header = await source.read(0, HEADER)
        if len(header) != HEADER or not header.startswith(_MAGIC):
            message = f"{key} is damaged at its head"
            raise Damaged(message)
        return header[len(_MAGIC) : -_SALT].hex()

    async def size(self, key: str) -> int:
        return _shape(key, await self._store.size(key))[0]

    async def delete(self, key: str) -> None:
        await self._store.delete(key)

    async def delete_prefix(self, prefix: str) -> None:
        await self._store.delete_prefix(prefix)

    async def keys(self, prefix: str) -> list[str]:
        return await self._store.keys(prefix)

    async def healthy(self) -> bool:
        return await self._store.healthy()

    async def close(self) -> None:
        self._threads.close()
        await self._store.close()


class _Open:
    """An open object, decrypted chunk by chunk; `port.Opened`."""

    def __init__(self, source: Opened, cipher: _Cipher, key: str) -> None:
        self.size, self._last = _shape(key, source.size)
        self._source, self._cipher = source, cipher
        self._index, self._chunk = -1, b""

    async def read(self, offset: int, size: int) -> bytes:
        end = min(self.size, offset + size)
        if offset >= self.size:
            await self._open(self._last)  # so that a file that was cut does not pass as a short one
        parts = []
        for index in range(offset // PLAIN, -(-end // PLAIN)):
            begin = index * PLAIN
            parts.append((await self._open(index))[max(0, offset - begin) : end - begin])
        return b"".join(parts)

    async def _open(self, index: int) -> bytes:
        if index != self._index:
            sealed = await self._source.read(HEADER + index * _SEALED, _SEALED)
            self._chunk = self._cipher.open(index, sealed, last=index == self._last)
            self._index = index
        return self._chunk


def _below(span: Span) -> Span:
    """Where the chunks lie that hold these bytes."""
    start, stop = span
    begin = HEADER + start // PLAIN * _SEALED
    return begin, None if stop is None else max(begin, HEADER + -(-stop // PLAIN) * _SEALED)


def _shape(key: str, sealed: int) -> tuple[int, int]:
    """Plain size, and the index of the last chunk. Raises Damaged for a size that no object has.

    Only an empty object ends with an empty chunk. So whoever reads all plain
    bytes opens the last chunk, and learns by that whether it is the last.
    """
    full, rest = divmod(sealed - HEADER, _SEALED)
    if sealed < HEADER + _TAG or (full and 0 < rest <= _TAG):
        message = f"{key} is damaged: it was cut"
        raise Damaged(message)
    chunks = full + bool(rest)
    return sealed - HEADER - chunks * _TAG, chunks - 1
