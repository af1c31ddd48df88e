"""The promise of `terrapod_server.store.port`, held to every store: on disk and in S3, plain and encrypted."""

import asyncio
import contextlib
import functools
import hashlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aioboto3
import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terrapod_server.commands import check
from terrapod_server.config.settings import Storage
from terrapod_server.store.cipher import EncryptedStore, KeyRing
from terrapod_server.store.files import FileStore
from terrapod_server.store.port import CHUNK, Span, Store, once
from terrapod_server.store.s3 import S3Store
from terrapod_shared.errors import NotFound, Unavailable

KINDS = ("files", "files, encrypted", "s3", "s3, encrypted")
#: More than two parts of a multipart upload.
LARGE = (11 << 20) + 3


def data(size: int, seed: int = 0) -> bytes:
    """Bytes that repeat nowhere, the same ones for the same seed."""
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


async def stream(content: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


async def read(store: Store, key: str, **where: int) -> bytes:
    return b"".join([chunk async for chunk in store.get(key, **where)])


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    pytest.importorskip("moto.server", reason="the S3 server of these tests is moto[server], of the extra `dev`")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                if found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", line):
                    break
            else:
                pytest.fail("the S3 server ended at once")
            drain = subprocess.Popen(["cat"], stdin=server.stdout, stdout=subprocess.DEVNULL)
            yield found[1]
        finally:
            server.terminate()
    drain.wait()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Storage:
    for name, value in (("AWS_ACCESS_KEY_ID", "some"), ("AWS_SECRET_ACCESS_KEY", "thing"), ("NO_PROXY", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    name = f"b{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]}"
    httpx.put(f"{s3_endpoint}/{name}", trust_env=False).raise_for_status()
    return Storage(kind="s3", bucket=name, prefix="our/", region="us-east-1", endpoint=s3_endpoint)


@functools.cache
def aws_session() -> aioboto3.Session:
    """One for all stores: it reads the description of S3 once, which is most of what a client costs."""
    return aioboto3.Session()


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    place, _, encrypted = request.param.partition(", ")
    below: Store = FileStore(tmp_path / "store") if place == "files" else S3Store(request.getfixturevalue("bucket"))
    if isinstance(below, S3Store):
        below._session = aws_session()
    made = EncryptedStore(below, KeyRing.create(tmp_path / "keys")) if encrypted else below
    yield made
    await made.close()


async def left_behind(store: Store) -> list[str]:
    """What is under way, and nobody should see, below any store."""
    below: Any = store
    while isinstance(below, EncryptedStore):
        below = below._store
    if isinstance(below, FileStore):
        return [path.name for path in below._parts.iterdir()]
    uploads = await (await below._s3()).list_multipart_uploads(Bucket=below._storage.bucket)
    return [upload["Key"] for upload in uploads.get("Uploads", ())]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 << 20, LARGE])
@pytest.mark.parametrize("durable", [True, False])
async def test_what_was_put_is_read(store: Store, size: int, durable: bool) -> None:
    content = data(size)
    stored = await store.put("a/b", stream(content), durable=durable)
    assert stored.size == size
    assert stored.sha256 == hashlib.sha256(content).hexdigest()
    assert stored.md5 == hashlib.md5(content).hexdigest()
    assert await read(store, "a/b") == content
    assert await store.size("a/b") == size
    assert await store.exists("a/b")


async def test_digests_only_where_asked_for(store: Store) -> None:
    stored = await store.put("a/b", once(b"abc"), digests=False)
    assert (stored.size, stored.sha256, stored.md5) == (3, "", "")
    assert await store.whole("a/b", 3) == b"abc"
    with pytest.raises(ValueError, match="larger than 2 bytes"):
        await store.whole("a/b", 2)


@pytest.mark.parametrize("size", [0, 1, 10_000, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
async def test_an_object_is_read_whole(store: Store, size: int) -> None:
    content = data(size)
    await store.put("a/b", stream(content))
    for version in ("", "one", "one"):
        assert await store.whole("a/b", size, version=version) == content
        assert await store.whole("a/b", size, lambda raw: raw[:5], version=version) == content[:5]
        if size:
            with pytest.raises(ValueError, match=f"larger than {size - 1} bytes"):
                await store.whole("a/b", size - 1, version=version)
    for key in ("a/c", "a", "a/b/c"):
        with pytest.raises(NotFound):
            await store.whole(key, 100, version="one")


async def test_another_version_is_never_what_was_remembered(store: Store) -> None:
    for name in ("one", "two", "three"):
        await store.put("a/b", once(name.encode()))
        for _ in range(2):
            assert await store.whole("a/b", 100, version=name) == name.encode()
        assert await store.whole("a/b", 100) == name.encode()
    await store.delete("a/b")
    with pytest.raises(NotFound):
        await store.whole("a/b", 100)


near_borders = st.builds(
    lambda chunk, distance: max(0, chunk * CHUNK + distance), st.integers(0, 4), st.integers(-40, 40)
)
places = near_borders | st.integers(0, 4 * CHUNK)


async def test_offsets_and_limits_across_borders(store: Store) -> None:
    content = data(3 * CHUNK + 77)
    await store.put("a/b", stream(content))
    # hypothesis runs each example in a loop of its own; the connections of a store belong to one
    cases: list[tuple[int, int | None]] = []

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(places, st.none() | places))
    def gather(case: tuple[int, int | None]) -> None:
        cases.append(case)

    gather()
    for offset, limit in [*cases, (0, 0), (10**30, None), (10**30, 5), (3 * CHUNK + 77, None), (5, 10**30)]:
        stop = len(content) if limit is None else offset + limit
        assert (
            await read(store, "a/b", offset=offset, **({} if limit is None else {"limit": limit}))
            == (content[offset:stop])
        ), (offset, limit)


async def test_a_read_of_nowhere_is_a_bug(store: Store) -> None:
    await store.put("a/b", once(b"abc"))
    for where in ({"offset": -1}, {"limit": -1}):
        with pytest.raises(ValueError, match="nothing is at"):
            await read(store, "a/b", **where)


async def test_an_opened_object_is_read_in_any_order(store: Store) -> None:
    content = data(3 * CHUNK + 77)
    await store.put("a/b", stream(content))
    spans: list[tuple[Span, ...]] = [(), ((CHUNK + 5, CHUNK + 9),), ((2 * CHUNK, None), (0, 4))]
    for some in spans:
        async with store.opened("a/b", *some) as source:
            assert source.size == len(content)
            for at, size in ((2 * CHUNK, 9), (2 * CHUNK + 9, CHUNK), (0, 4), (CHUNK - 2, CHUNK + 4), (len(content), 1)):
                assert await source.read(at, size) == content[at : at + size]


class Torn(Exception):
    """The client went away."""


@pytest.mark.parametrize("size", [0, 10, CHUNK + 10, LARGE])
async def test_a_torn_upload_leaves_nothing(store: Store, size: int) -> None:
    async def torn() -> AsyncIterator[bytes]:
        async for chunk in stream(data(size)):
            yield chunk
        raise Torn

    with pytest.raises(Torn):
        await store.put("a/new", torn())
    assert not await store.exists("a/new")
    await store.put("a/old", once(b"old"))
    with pytest.raises(Torn):
        await store.put("a/old", torn())
    assert await read(store, "a/old") == b"old"
    assert await store.keys("a/") == ["a/old"]
    assert await left_behind(store) == []


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_cancelled_upload_leaves_nothing(store: Store, size: int) -> None:
    waits = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        async for chunk in stream(data(size)):
            yield chunk
        waits.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.put("a/b", endless()))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not await store.exists("a/b")
    assert await left_behind(store) == []


async def test_an_object_that_is_not_there(store: Store) -> None:
    await store.put("a/b/c", once(b"x"))
    for key in ("z", "a/b", "a/z", "a/b/c/d"):
        with pytest.raises(NotFound):
            await anext(aiter(store.get(key)))
        with pytest.raises(NotFound):
            await read(store, key, offset=10, limit=0)
        with pytest.raises(NotFound):
            await store.size(key)
        assert not await store.exists(key)
        await store.delete(key)
    assert await read(store, "a/b/c") == b"x"
    await store.delete("a/b/c")
    assert not await store.exists("a/b/c")
    assert await store.keys("nowhere/") == []
    await store.delete_prefix("nowhere/")


async def test_a_reader_goes_on_with_the_old_object(store: Store) -> None:
    old, new = data(2 * CHUNK, 1), data(2 * CHUNK, 2)
    await store.put("a/b", stream(old))
    reader = aiter(store.get("a/b"))
    found = [await anext(reader)]
    await store.put("a/b", stream(new))
    found += [chunk async for chunk in reader]
    assert b"".join(found) == old
    assert await read(store, "a/b") == new


class Meddled(EncryptedStore):
    """Puts another object in its place each time that one was opened, `times` times."""

    times = 0

    @contextlib.asynccontextmanager
    async def opened(self, key: str, *spans: Span) -> AsyncIterator[Any]:
        async with super().opened(key, *spans) as source:
            if self.times:
                self.times -= 1
                await self.put(key, stream(data(3 * CHUNK, self.times)))
            yield source


@pytest.mark.parametrize("store", ["files", "s3"], indirect=True)
async def test_a_read_is_of_one_object_only(store: Store, tmp_path: Path) -> None:
    """The head of an encrypted object and its middle are two requests: never of two objects."""
    meddled = Meddled(store, KeyRing.create(tmp_path / "more keys"))
    await meddled.put("a/b", stream(data(3 * CHUNK, 99)))
    meddled.times = 2
    found = await read(meddled, "a/b", offset=2 * CHUNK + 5, limit=1000)
    assert found in [data(3 * CHUNK, seed)[2 * CHUNK + 5 :][:1000] for seed in (0, 1, 99)]


async def test_puts_of_one_key_at_once(store: Store) -> None:
    contents = [data(CHUNK + 1000 * seed, seed) for seed in range(8)]
    stored = await asyncio.gather(*(store.put("a/b", stream(content)) for content in contents))
    assert [one.size for one in stored] == [len(content) for content in contents]
    assert await read(store, "a/b") in contents
    assert await left_behind(store) == []


async def test_a_prefix_is_listed_and_deleted_whole(store: Store) -> None:
    names = ["a/b.c", "a/b/1", "a/b/10", "a/b/2", "a/b/c/3", "a/bc/4", "b/b/5"]
    for name in reversed(names):
        await store.put(name, once(name.encode()))
    assert await store.keys("a/b/") == ["a/b/1", "a/b/10", "a/b/2", "a/b/c/3"]
    await store.delete_prefix("a/b/")
    assert await store.keys("a/b/") == []
    assert await store.keys("a/") == ["a/b.c", "a/bc/4"]
    await store.delete_prefix("a/b.c/")  # the name of an object, and no folder
    assert await read(store, "a/b.c") == b"a/b.c"
    await store.put("a/b/1", once(b"again"))
    assert await read(store, "a/b/1") == b"again"


async def test_puts_while_their_prefix_is_deleted(store: Store) -> None:
    async def puts() -> None:
        for number in range(30):
            await store.put(f"a/b/{number}", once(b"x"), durable=False)

    async def deletes() -> None:
        for _ in range(15):
            await store.delete_prefix("a/")

    await asyncio.gather(puts(), puts(), deletes())
    await store.delete_prefix("a/")
    assert await store.keys("a/") == []
    assert await left_behind(store) == []


HOSTILE = (
    "", "/", "/etc/passwd", "a//b", "a/", "../a", "a/../b", "a/..", "a/./b", ".parts/x", "a/.b", "a\\b", "a b", "a\nb",
    "a\0b", "é", "a/b\n", "a..b", "~/x", "x" * 241, "a/" * 500 + "a",
)  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
async def test_hostile_keys_reach_nothing(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        await store.put(key, once(b"x"))
    with pytest.raises(ValueError, match="no key"):
        await read(store, key)
    for verb in (store.size, store.exists, store.delete):
        with pytest.raises(ValueError, match="no key"):
            await verb(key)
    for of_prefix in (store.delete_prefix, store.keys):
        with pytest.raises(ValueError, match=r"no key|no prefix"):
            await of_prefix(f"{key}/" if key else "")


async def test_a_prefix_ends_with_a_slash(store: Store) -> None:
    for verb in (store.delete_prefix, store.keys):
        with pytest.raises(ValueError, match="does not end with a slash"):
            await verb("workspaces/ws-1")


async def test_a_place_that_answers_is_healthy(store: Store) -> None:
    assert await store.healthy()
    assert await left_behind(store) == []


async def test_an_s3_that_does_not_answer(bucket: Storage) -> None:
    elsewhere = S3Store(Storage(kind="s3", bucket="nobodys", region="us-east-1", endpoint=bucket.endpoint))
    assert not await elsewhere.healthy()
    with pytest.raises(Unavailable, match="NoSuchBucket"):
        await elsewhere.put("a", once(b"x"))
    await elsewhere.close()
    silent = S3Store(Storage(kind="s3", bucket=bucket.bucket, region="us-east-1", endpoint="http://127.0.0.1:9"))
    assert not await silent.healthy()
    with pytest.raises(Unavailable, match="does not answer"):
        await read(silent, "a")
    await silent.close()


async def test_check_tries_a_store_and_leaves_nothing(store: Store) -> None:
    assert await check.try_store(store) == ""
    assert await left_behind(store) == []


async def test_check_says_what_a_bucket_lacks(bucket: Storage) -> None:
    store = S3Store(msgspec.structs.replace(bucket, bucket="absent"))
    try:
        said = await check.try_store(store)
    finally:
        await store.close()
    assert said.startswith("an object cannot be written: the object store answered NoSuchBucket"), said
    assert said.endswith(": make the bucket, or correct storage.bucket")
