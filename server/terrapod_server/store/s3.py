"""Objects in an S3 bucket, by multipart upload: an upload that breaks off leaves nothing.

Imported by `select` alone, and only where S3 is set: the client holds 40 MiB.
What an upload of a killed process leaves is invisible, and goes by a rule of
the bucket (`AbortIncompleteMultipartUpload`).
"""

import asyncio
import base64
import contextlib
import hashlib
import io
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aioboto3
import aiohttp
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from terrapod_server.config.settings import Storage
from terrapod_server.store.port import (
    EVERYTHING,
    Replaced,
    Span,
    Store,
    Stored,
    Tally,
    checked,
    checked_prefix,
    gathered,
)
from terrapod_server.store.threads import Threads
from terrapod_shared.errors import NotFound, Unavailable

#: S3 takes no part under 5 MiB but the last, and 10,000 parts: objects up to 48 GiB. An upload holds three parts.
_PART = 5 << 20
_GONE = frozenset({"NoSuchKey", "404", "NotFound", "NoSuchUpload"})
_CHANGED = frozenset({"PreconditionFailed", "412"})
_PAST = frozenset({"InvalidRange", "416"})
_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")


class S3Store(Store):
    """Credentials come from the environment or the host, as for every AWS client. Keeps the promise of `port.Store`."""

    def __init__(self, storage: Storage) -> None:
        self._session = aioboto3.Session()
        self._storage = storage
        self._prefix = storage.prefix.strip("/") + "/" if storage.prefix.strip("/") else ""
        self._client: Any = None
        self._stack = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._threads = Threads("store", 2)

    async def _s3(self) -> Any:
        async with self._opening:
            if self._client is None:
                made = self._session.client(
                    "s3",
                    region_name=self._storage.region or None,
                    endpoint_url=self._storage.endpoint or None,
                    config=Config(
                        connect_timeout=10,
                        read_timeout=60,
                        max_pool_connections=64,
                        retries={"mode": "standard", "max_attempts": 3},
                        # our parts carry Content-MD5, made in a thread; the default would sum them up on the loop,
                        # and stores that are not Amazon's refuse it
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                        s3={"addressing_style": "path" if self._storage.endpoint else "auto"},
                    ),
                )
                with _translated():
                    self._client = await self._stack.enter_async_context(made)
        return self._client

    async def close(self) -> None:
        self._threads.close()
        await self._stack.aclose()

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._storage.bucket, "Key": self._prefix + checked(key)}

    async def put(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        *,
        durable: bool = True,  # noqa: ARG002  it always is
        digests: bool = True,
    ) -> Stored:
        at, tally = self._at(key), Tally(digests=digests)
        parts = gathered(chunks, _PART)
        first = await anext(parts, b"")
        s3 = await self._s3()
        if len(first) < _PART:
            md5 = await self._count(tally, first)
            with _translated():
                await s3.put_object(**at, Body=first, ContentMD5=md5)
            return tally.stored()
        with _translated():
            upload = {**at, "UploadId": (await s3.create_multipart_upload(**at))["UploadId"]}
        try:
            done = await self._send_all(s3, upload, first, parts, tally)
            with _translated():
                await s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})
        except BaseException:
            await asyncio.shield(_abort(s3, upload))
            raise
        return tally.stored()

    async def _send_all(
        self, s3: Any, upload: dict[str, str], part: bytes, parts: AsyncIterator[bytes], tally: Tally
    ) -> list[dict[str, Any]]:
        """Sends a part while the next one comes in."""
        done: list[dict[str, Any]] = []
        sending: asyncio.Task[dict[str, Any]] | None = None
        try:
            while part:
                md5 = await self._count(tally, part)
                if sending is not None:
                    done.append(await sending)
                sending = asyncio.create_task(_send(s3, upload, len(done) + 1, part, md5))
                part = await anext(parts, b"")
            if sending is not None:
                done.append(await sending)
        finally:
            if sending is not None and not sending.done():
                sending.cancel()
                await asyncio.wait([sending])
        return done

    async def _count(self, tally: Tally, part: bytes) -> str:
        return await self._threads.run(_counted, tally, part)

    @contextlib.asynccontextmanager
    async def opened(self, key: str, *spans: Span) -> AsyncIterator["_Object"]:
        made = _Object(await self._s3(), self._at(key), spans or (EVERYTHING,))
        try:
            await made.begin()
            yield made
        finally:
            made.close()

    async def size(self, key: str) -> int:
        s3 = await self._s3()
        with _translated():
            return int((await s3.head_object(**self._at(key)))["ContentLength"])

    async def delete(self, key: str) -> None:
        s3 = await self._s3()
        with _translated(), contextlib.suppress(NotFound):
            await s3.delete_object(**self._at(key))

    async def delete_prefix(self, prefix: str) -> None:
        s3 = await self._s3()
        async for page in self._pages(prefix):
            if not page:
                continue
            with _translated():
                gone = {"Objects": [{"Key": name} for name in page], "Quiet": True}
                answer = await s3.delete_objects(Bucket=self._storage.bucket, Delete=gone)
            if errors := answer.get("Errors"):
                message = f"the object store kept {len(errors)} objects: {errors[0].get('Code')}"
                raise Unavailable(message)

    async def keys(self, prefix: str) -> list[str]:
        return sorted([name.removeprefix(self._prefix) async for page in self._pages(prefix) for name in page])

    async def _pages(self, prefix: str) -> AsyncIterator[list[str]]:
        """Names in the bucket, up to 1000 at once."""
        s3 = await self._s3()
        token: dict[str, str] = {}
        while True:
            with _translated():
                page = await s3.list_objects_v2(
                    Bucket=self._storage.bucket, Prefix=self._prefix + checked_prefix(prefix), **token
                )
            yield [entry["Key"] for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    async def healthy(self) -> bool:
        s3 = await self._s3()
        try:
            with _translated():
                await s3.head_bucket(Bucket=self._storage.bucket)
        except (NotFound, Unavailable):
            return False
        return True


class _Object:
    """An open object; `port.Opened`. One request serves reads that follow one another."""

    def __init__(self, s3: Any, at: dict[str, str], spans: tuple[Span, ...]) -> None:
        self.size = 0
        self._s3, self._name, self._spans = s3, at, spans
        self._tag = ""
        self._body: Any = None
        self._at, self._until = 0, 0  #: what of the object the body has yet to give

    async def begin(self) -> None:
        start, stop = self._spans[0]
        if stop is None or stop > start:
            await self._ask(start, stop)
        if not self._tag:  # nothing is there to be read; but is the object?
            with _translated():
                head = await self._s3.head_object(**self._name)
            self.size, self._tag = int(head["ContentLength"]), head["ETag"]

    async def _ask(self, start: int, stop: int | None) -> None:
        """Begins to read at `start`; without a body when that is past the end."""
        self.close()
        wanted = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        if self._tag:
            wanted["IfMatch"] = self._tag
        try:
            with _translated():
                answer = await self._s3.get_object(**self._name, **wanted)
        except _Past:
            return
        total = _TOTAL.match(answer.get("ContentRange", ""))
        self.size = int(total[1]) if total else int(answer["ContentLength"])
        self._tag, self._body = answer["ETag"], answer["Body"]
        self._at, self._until = start, self.size if stop is None else min(stop, self.size)

    async def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        if not size:
            return b""
        parts = []
        at, end = offset, offset + size
        while at < end:
            if self._body is None or at != self._at or at >= self._until:
                await self._ask(at, self._planned(at, end))
            with _translated():
                piece = await self._body.read(min(end, self._until) - at) if self._body is not None else b""
            if not piece:
                message = "the object store broke off in the middle"
                raise Unavailable(message)
            parts.append(piece)
            at += len(piece)
            self._at = at
        return b"".join(parts)

    def _planned(self, at: int, end: int) -> int | None:
        """Where a request for these bytes should end, so that it serves the reads that follow too."""
        stops = [stop for start, stop in self._spans if start <= at and (stop is None or end <= stop)]
        return stops[0] if stops else end

    def close(self) -> None:
        if self._body is not None:
            self._body.close()  # of a body that was not read to its end, the connection is closed
            self._body = None


class _Past(Exception):
    """A range that begins past the object's end."""


def _counted(tally: Tally, part: bytes) -> str:
    tally.count(part)
    return base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()


async def _send(s3: Any, upload: dict[str, str], number: int, part: bytes, md5: str) -> dict[str, Any]:
    with _translated():
        # as a file, because aiohttp would hand 5 MiB of bytes to the socket in one go
        answer = await s3.upload_part(**upload, PartNumber=number, Body=io.BytesIO(part), ContentMD5=md5)
    return {"ETag": answer["ETag"], "PartNumber": number}


async def _abort(s3: Any, upload: dict[str, str]) -> None:
    with contextlib.suppress(NotFound, Unavailable), _translated():
        await s3.abort_multipart_upload(**upload)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Errors of the client become ours. Not around what the caller streams in."""
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _GONE:
            raise NotFound from None
        if code in _CHANGED:
            raise Replaced from None
        if code in _PAST:
            raise _Past from None
        message = f"the object store answered {code}"
        raise Unavailable(message) from error
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError) as error:
        message = f"the object store does not answer: {type(error).__name__}"
        raise Unavailable(message) from error
