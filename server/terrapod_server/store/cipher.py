"""Encryption at rest: AES-256-GCM, in chunks for files and in one piece for small values.

A file is a header and chunks. The header is magic (4 bytes), key id (8) and
salt (16); HKDF-SHA256 of the named key with that salt gives the file's own
key, so that nonces can be plain counters. Each chunk is sealed under the
nonce (index, is it the last) with the object's key as associated data: a
chunk that is missing, moved, cut or put into another object does not open.
Any chunk can be read by itself, so an offset costs one chunk and not the
file before it.
"""

import asyncio
import base64
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from terrapod_server.store.port import Store, Stored, checked, gathered
from terrapod_shared.errors import Internal, NotFound

_MAGIC = b"TPE1"
_ID, _SALT, _TAG, _NONCE = 8, 16, 16, 12
HEADER = len(_MAGIC) + _ID + _SALT
#: Plain bytes of a chunk.
PLAIN = 256 << 10
_SEALED = PLAIN + _TAG
#: Below this it is quicker to seal here than to ask a thread.
_INLINE = 64 << 10


class Damaged(Internal):
    """An object or a value does not open: it was altered, or its key is missing."""


class KeyRing:
    """The keys that encrypt at rest, by id; the first one encrypts, all decrypt."""

    def __init__(self, keys: dict[bytes, bytes]) -> None:
        if not keys:
            message = "a key ring needs a key"
            raise ValueError(message)
        self._keys = keys
        self.current = next(iter(keys))

    @classmethod
    def create(cls, path: Path) -> "KeyRing":
        """Makes a key file of mode 0600. Raises FileExistsError where there is one."""
        ring = cls({os.urandom(_ID): os.urandom(32)})
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        ring._write(path)
        return ring

    @classmethod
    def load(cls, path: Path) -> "KeyRing":
        """Reads a key file: a line a key, `<id in hex>:<key in base64>`, the current one first."""
        keys = {}
        for number, line in enumerate(path.read_text(encoding="ascii").split(), 1):
            head, _, tail = line.partition(":")
            try:
                identity, key = bytes.fromhex(head), base64.b64decode(tail, validate=True)
            except ValueError:
                identity = key = b""
            if len(identity) != _ID or len(key) != 32:  # noqa: PLR2004
                message = f"line {number} of {path} is no key"
                raise ValueError(message)
            keys[identity] = key
        return cls(keys)

    def rotate(self, path: Path) -> "KeyRing":
        """Puts a new key first; what older keys sealed stays readable."""
        ring = KeyRing({os.urandom(_ID): os.urandom(32), **self._keys})
        ring._write(path)
        return ring

    def _write(self, path: Path) -> None:
        lines = [f"{identity.hex()}:{base64.b64encode(key).decode()}\n" for identity, key in self._keys.items()]
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def derive(self, purpose: str) -> list[bytes]:
        """A key of 32 bytes for another purpose, from each key of the ring; the current one first."""
        return [_hkdf(key, b"", b"terrapod " + purpose.encode()) for key in self._keys.values()]

    def seal(self, data: bytes, context: str) -> bytes:
        """A small value, bound to `context` (its table, column and row): it opens nowhere else."""
        nonce = os.urandom(_NONCE)
        key = AESGCM(_hkdf(self._keys[self.current], b"", b"terrapod values"))
        return self.current + nonce + key.encrypt(nonce, data, context.encode())

    def unseal(self, sealed: bytes, context: str) -> bytes:
        """Raises Damaged."""
        sealed = bytes(sealed)
        identity, nonce, rest = sealed[:_ID], sealed[_ID : _ID + _NONCE], sealed[_ID + _NONCE :]
        key = AESGCM(_hkdf(self.key(identity), b"", b"terrapod values"))
        try:
            return key.decrypt(nonce, rest, context.encode())
        except InvalidTag:
            message = f"the value of {context} does not open: it was altered, or belongs elsewhere"
            raise Damaged(message) from None

    def key(self, identity: bytes) -> bytes:
        """Raises Damaged where the ring lacks it."""
        try:
            return self._keys[identity]
        except KeyError:
            message = f"the key {identity.hex()} is not in the key file"
            raise Damaged(message) from None


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(key)


class _File:
    """The cipher of one object."""

    def __init__(self, ring: KeyRing, identity: bytes, salt: bytes, key: str) -> None:
        self._aead = AESGCM(_hkdf(ring.key(identity), salt, b"terrapod files"))
        self._key = key

    def seal(self, index: int, chunk: bytes, *, last: bool) -> bytes:
        return self._aead.encrypt(self._nonce(index, last), chunk, self._key.encode())

    def open(self, index: int, sealed: bytes, *, last: bool) -> bytes:
        try:
            return self._aead.decrypt(self._nonce(index, last), sealed, self._key.encode())
        except InvalidTag:
            message = f"{self._key} is damaged at chunk {index}"
            raise Damaged(message) from None

    @staticmethod
    def _nonce(index: int, last: bool) -> bytes:
        return index.to_bytes(_NONCE - 1, "big") + bytes([last])


class EncryptedStore:
    """Any store, with nothing in clear in it. Sizes are those of the plain bytes."""

    def __init__(self, store: Store, ring: KeyRing) -> None:
        self._store, self._ring = store, ring

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, durable: bool = True) -> Stored:
        counted = _Counted()
        salt = os.urandom(_SALT)
        file = _File(self._ring, self._ring.current, salt, checked(key))
        header = _MAGIC + self._ring.current + salt
        await self._store.put(key, _sealed(file, header, chunks, counted), durable=durable)
        return counted.stored()

    async def get(self, key: str, *, offset: int = 0, limit: int | None = None) -> AsyncIterator[bytes]:
        sealed_size = await self._store.size(key)
        size = _plain_size(sealed_size)
        end = size if limit is None else min(size, offset + limit)
        file = await self._file(key)
        if offset >= end and size:
            return
        first, last = offset // PLAIN, max(0, _chunks(size) - 1)
        until = max(0, end - 1) // PLAIN
        start = HEADER + first * _SEALED
        sealed = gathered(self._store.get(key, offset=start, limit=(until - first + 1) * _SEALED), _SEALED)
        index = first
        async for chunk in sealed:
            plain = await _off_loop(len(chunk), file.open, index, chunk, last=index == last)
            begin = offset - index * PLAIN if index == first else 0
            stop = end - index * PLAIN
            if part := plain[begin:stop]:
                yield part
            index += 1
        if index <= until:
            message = f"{key} is damaged: it ends at chunk {index}"
            raise Damaged(message)

    async def _file(self, key: str) -> _File:
        header = b"".join([chunk async for chunk in self._store.get(key, limit=HEADER)])
        if len(header) != HEADER or not header.startswith(_MAGIC):
            message = f"{key} is damaged at its head"
            raise Damaged(message)
        return _File(self._ring, header[4 : 4 + _ID], header[4 + _ID :], key)

    async def size(self, key: str) -> int:
        return _plain_size(await self._store.size(key))

    async def exists(self, key: str) -> bool:
        try:
            await self._store.size(key)
        except NotFound:
            return False
        return True

    async def delete(self, key: str) -> None:
        await self._store.delete(key)

    async def delete_prefix(self, prefix: str) -> None:
        await self._store.delete_prefix(prefix)

    async def keys(self, prefix: str) -> list[str]:
        return await self._store.keys(prefix)

    async def healthy(self) -> bool:
        return await self._store.healthy()


class _Counted:
    """Size and digests of the plain bytes."""

    def __init__(self) -> None:
        self._digests = hashes.Hash(hashes.SHA256()), hashes.Hash(hashes.MD5())  # noqa: S303  terraform's own check
        self._size = 0

    def count(self, chunk: bytes) -> None:
        self._size += len(chunk)
        for digest in self._digests:
            digest.update(chunk)

    def stored(self) -> Stored:
        sha256, md5 = (digest.finalize().hex() for digest in self._digests)
        return Stored(self._size, sha256, md5)


async def _sealed(
    file: _File, header: bytes, chunks: AsyncIterator[bytes], counted: _Counted
) -> AsyncIterator[bytes]:
    """Header and sealed chunks; the last one is known only when the stream ends, so one is held back."""

    def seal(index: int, chunk: bytes, *, last: bool) -> bytes:
        counted.count(chunk)
        return file.seal(index, chunk, last=last)

    yield header
    held: bytes | None = None
    index = 0
    async for chunk in gathered(chunks, PLAIN):
        if held is not None:
            yield await _off_loop(len(held), seal, index, held, last=False)
            index += 1
        held = chunk
    yield await _off_loop(len(held or b""), seal, index, held or b"", last=True)


async def _off_loop(size: int, work: object, *arguments: object, **named: object) -> bytes:
    if size < _INLINE:
        return work(*arguments, **named)  # type: ignore[operator, no-any-return]
    return await asyncio.to_thread(work, *arguments, **named)  # type: ignore[arg-type, return-value]


def _chunks(size: int) -> int:
    return max(1, -(-size // PLAIN))


def _plain_size(sealed: int) -> int:
    body = sealed - HEADER
    chunks = max(1, -(-body // _SEALED))
    return max(0, body - chunks * _TAG)
