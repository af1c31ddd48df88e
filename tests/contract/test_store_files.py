"""What the store on disk promises beyond `port.Store`: modes, leftovers, and nothing in clear below an encrypted one."""

import os
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terrapod_server.config.load import load
from terrapod_server.store.cipher import HEADER, PLAIN, Damaged, EncryptedStore, KeyRing
from terrapod_server.store.files import FileStore
from terrapod_server.store.port import Store, once
from terrapod_server.store.select import open_store

SEALED = PLAIN + 16
CANARY = b"canary-7f3a-of-a-secret"


async def read(store: Store, key: str, **where: int) -> bytes:
    return b"".join([chunk async for chunk in store.get(key, **where)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "above" / "store"


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.create(tmp_path / "keys")


@pytest.fixture
def encrypted(root: Path, ring: KeyRing) -> EncryptedStore:
    return EncryptedStore(FileStore(root), ring)


@pytest.mark.parametrize("durable", [True, False])
async def test_nobody_else_may_read(root: Path, durable: bool) -> None:
    before = os.umask(0)
    try:
        await FileStore(root).put("workspaces/ws-1/runs/run-1/plan.log", once(b"x"), durable=durable)
    finally:
        os.umask(before)
    seen = [root, *root.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in seen if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in seen if path.is_file()} == {0o600}
    assert len(seen) == 7


async def test_a_root_that_was_open_is_closed(root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o755)
    FileStore(root)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


async def test_a_start_tidies_up_after_a_dead_process_and_not_after_a_living_one(root: Path) -> None:
    store = FileStore(root)
    dead, gone = root / ".parts" / "dead", root / ".parts" / "gone-folder" / "deep"
    dead.write_bytes(b"half")
    os.utime(dead, (1, 1))
    gone.mkdir(parents=True)
    (gone / "file").write_bytes(b"left")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * (1 << 20)
        yield b"y" * (1 << 20)
        assert len(list((root / ".parts").iterdir())) == 3  # this one is being written
        FileStore(root)
        yield b"z"

    await store.put("a/b", chunks())
    assert await store.size("a/b") == (2 << 20) + 1
    assert list((root / ".parts").iterdir()) == []


async def test_a_disk_that_takes_nothing_is_not_healthy(root: Path) -> None:
    store = FileStore(root)
    assert await store.healthy()
    (root / ".parts").rmdir()
    assert not await store.healthy()


async def test_nothing_is_in_clear_on_disk(root: Path, encrypted: EncryptedStore) -> None:
    await encrypted.put("a/small", once(CANARY))
    await encrypted.put("a/large", once(CANARY * 50_000))
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in files:
        assert CANARY not in path.read_bytes()
    assert await read(encrypted, "a/large") == CANARY * 50_000


@pytest.fixture
async def sealed(root: Path, encrypted: EncryptedStore) -> Path:
    """A file of two full chunks and a part of one."""
    await encrypted.put("a/b", once(os.urandom(2 * PLAIN + 1000)))
    assert (root / "a/b").stat().st_size == HEADER + 2 * SEALED + 1016
    return root / "a/b"


async def opens(store: Store, **where: int) -> bool:
    try:
        await read(store, "a/b", **where)
    except Damaged:
        return False
    return True


async def test_each_altered_byte_is_seen(sealed: Path, encrypted: EncryptedStore) -> None:
    good = sealed.read_bytes()
    cases: set[tuple[int, int]] = {(at, 0x80) for at in range(HEADER)}
    borders = [HEADER + k * SEALED + d for k in (0, 1, 2) for d in (-17, -16, -1, 0, 1)]

    @settings(max_examples=80, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(borders) | st.integers(0, len(good) - 1), st.sampled_from([1 << bit for bit in range(8)]))
    def gather(at: int, bit: int) -> None:
        cases.add((at, bit))

    gather()
    for at, bit in cases:
        bad = bytearray(good)
        bad[at] ^= bit
        sealed.write_bytes(bad)
        assert not await opens(encrypted), (at, bit)
    sealed.write_bytes(good)
    assert await opens(encrypted)


async def test_each_cut_is_seen(sealed: Path, encrypted: EncryptedStore) -> None:
    good = sealed.read_bytes()
    # some of these leave a size that only a file has whose last chunk is empty, or shorter than its tag
    borders = {HEADER + k * SEALED + d for k in (0, 1, 2) for d in range(-17, 18)} | set(range(HEADER + 1))
    for length in [*sorted(borders), *(len(good) - 1 - most for most in range(20))]:
        sealed.write_bytes(good[:length])
        assert not await opens(encrypted), length
        # nor does a reader who asks behind the cut take it for the end
        assert not await opens(encrypted, offset=2 * PLAIN + 5), length
    for more in (b"\0", b"\0" * 16, bytes(SEALED), good[-1016:]):
        sealed.write_bytes(good + more)
        assert not await opens(encrypted), len(more)


async def test_chunks_that_were_moved_are_seen(sealed: Path, encrypted: EncryptedStore) -> None:
    good = sealed.read_bytes()
    head, first, second, last = good[:HEADER], good[HEADER:][:SEALED], good[HEADER + SEALED :][:SEALED], good[-1016:]
    for parts in ((second, first, last), (first, first, last), (second, last), (first, last), (first, second), (last,)):
        sealed.write_bytes(head + b"".join(parts))
        assert not await opens(encrypted)


async def test_objects_that_were_swapped_are_seen(root: Path, encrypted: EncryptedStore) -> None:
    await encrypted.put("a/b", once(b"one"))
    await encrypted.put("a/c", once(b"two"))
    one, two = (root / "a/b").read_bytes(), (root / "a/c").read_bytes()
    (root / "a/b").write_bytes(two)
    assert not await opens(encrypted)
    (root / "a/b").write_bytes(two[:HEADER] + one[HEADER:])
    assert not await opens(encrypted)
    await encrypted.put("a/b", once(b"new"))
    again = (root / "a/b").read_bytes()
    (root / "a/b").write_bytes(one[:HEADER] + again[HEADER:])  # of the same name, at another time
    assert not await opens(encrypted)


async def test_the_same_bytes_are_never_sealed_alike(root: Path, encrypted: EncryptedStore) -> None:
    await encrypted.put("a/b", once(CANARY))
    first = (root / "a/b").read_bytes()
    await encrypted.put("a/b", once(CANARY))
    assert first[HEADER:] != (root / "a/b").read_bytes()[HEADER:]


async def test_keys_rotate(tmp_path: Path, root: Path, ring: KeyRing, encrypted: EncryptedStore) -> None:
    await encrypted.put("a/old", once(b"old"))
    newer = ring.rotate(tmp_path / "keys")
    after = EncryptedStore(FileStore(root), KeyRing.load(tmp_path / "keys"))
    assert await read(after, "a/old") == b"old"
    await after.put("a/new", once(b"new"))
    assert (root / "a/new").read_bytes()[4:12] == newer.current != ring.current
    assert (root / "a/old").read_bytes()[4:12] == ring.current
    with pytest.raises(Damaged, match="is not in the key file"):
        await read(encrypted, "a/new")


async def test_size_of_a_stream_does_not_show_in_memory(encrypted: EncryptedStore) -> None:
    block = os.urandom(64 << 10)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(200 << 4):
            yield block

    await encrypted.put("a/warm", once(block))
    tracemalloc.start()
    try:
        await encrypted.put("a/b", chunks(), durable=False)
        size = 0
        async for chunk in encrypted.get("a/b"):
            size += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == 200 << 20
    assert peak < 4 << 20


def test_the_s3_client_is_loaded_only_where_s3_is_set(tmp_path: Path) -> None:
    assert isinstance(open_store(load({}, data=str(tmp_path))), FileStore)
    program = (
        "import sys\nfrom terrapod_server.config.load import load\nfrom terrapod_server.store import cipher, select\n"
        "store = select.open_store(load({}, data=sys.argv[1], storage={'kind': sys.argv[2], 'bucket': 'b'}))\n"
        "print(type(store).__name__, 'botocore' in sys.modules, 'aiohttp' in sys.modules)"
    )
    for kind, expected in (("files", "FileStore False False"), ("s3", "S3Store True True")):
        command = [sys.executable, "-c", program, str(tmp_path), kind]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == expected


async def test_what_is_remembered_is_sealed_and_bounded(encrypted: EncryptedStore) -> None:
    store = encrypted
    content = {f"a/{number}": os.urandom(1 << 20) for number in range(12)}
    for key, raw in content.items():
        await store.put(key, once(raw))
    await store.put("a/large", once(bytes(2 << 20)))
    for _ in range(2):
        for key, raw in content.items():
            assert await store.whole(key, 2 << 20, version="one") == raw
        assert await store.whole("a/large", 2 << 20, version="one") == bytes(2 << 20)
    kept = store._lately._sealed
    assert 4 < len(kept) < 12
    assert sum(map(len, kept.values())) == store._lately._bytes <= 8 << 20
    assert not any(content[key][:64] in sealed for (key, _), sealed in kept.items()), "nothing is remembered in clear"
    assert ("a/large", "one") not in kept


async def test_a_damaged_object_is_an_error_and_is_not_remembered(root: Path, encrypted: EncryptedStore) -> None:
    store = encrypted
    await store.put("a/b", once(b"x" * 1000))
    file = root / "a/b"
    good = file.read_bytes()
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1], good[:10], b"", b"TPE0" + good[4:]):
        file.write_bytes(bad)
        with pytest.raises(Damaged):
            await store.whole("a/b", 1000, version="one")
    file.write_bytes(good)
    assert await store.whole("a/b", 1000, version="one") == b"x" * 1000
