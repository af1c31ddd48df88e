"""Objects in an S3 bucket, by multipart upload: an upload that breaks off leaves nothing.

Imported by `select` alone, and only where S3 is set: the client holds 30 MiB.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import aioboto3
from botocore.exceptions import ClientError

from terrapod_server.config import Storage
from terrapod_server.store.port import Stored, checked, gathered
from terrapod_shared.errors import NotFound

#: S3 takes no part under 5 MiB but the last.
_PART = 8 << 20
_GONE = frozenset({"NoSuchKey", "404", "NotFound", "NoSuchUpload"})
_DELETED_AT_ONCE = 1000


class S3Store:
    """Credentials come from the environment or the host, as for every AWS client."""

    def __init__(self, storage: Storage) -> None:
        self._session = aioboto3.Session()
        self._storage = storage
        self._prefix = storage.prefix.strip("/") + "/" if storage.prefix.strip("/") else ""
        self._client: Any = None
        self._stack = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()

    async def _s3(self) -> Any:
        async with self._opening:
            if self._client is None:
                made = self._session.client(
                    "s3", region_name=self._storage.region or None, endpoint_url=self._storage.endpoint or None
                )
                self._client = await self._stack.enter_async_context(made)
        return self._client

    async def close(self) -> None:
        await self._stack.aclose()

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._storage.bucket, "Key": self._prefix + checked(key)}

    async def put(self, key: str, chunks: AsyncIterator[bytes], *, durable: bool = True) -> Stored:  # noqa: ARG002
        s3, at = await self._s3(), self._at(key)
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0

        def count(chunk: bytes) -> None:
            sha256.update(chunk)
            md5.update(chunk)

        parts = gathered(chunks, _PART)
        first = await anext(parts, b"")
        await asyncio.to_thread(count, first)
        size = len(first)
        if size < _PART:
            await s3.put_object(**at, Body=first)
            return Stored(size, sha256.hexdigest(), md5.hexdigest())
        upload = (await s3.create_multipart_upload(**at))["UploadId"]
        try:
            done = [await _part(s3, at, upload, 1, first)]
            async for chunk in parts:
                size += len(chunk)
                await asyncio.to_thread(count, chunk)
                done.append(await _part(s3, at, upload, len(done) + 1, chunk))
            await s3.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": done})
        except BaseException:
            await asyncio.shield(s3.abort_multipart_upload(**at, UploadId=upload))
            raise
        return Stored(size, sha256.hexdigest(), md5.hexdigest())

    async def get(self, key: str, *, offset: int = 0, limit: int | None = None) -> AsyncIterator[bytes]:
        if limit == 0:
            await self.size(key)
            return
        s3 = await self._s3()
        end = "" if limit is None else offset + limit - 1
        try:
            answer = await s3.get_object(**self._at(key), **({"Range": f"bytes={offset}-{end}"} if offset or limit else {}))
        except ClientError as error:
            if error.response["Error"]["Code"] == "InvalidRange":
                return
            raise _known(error) from None
        async with answer["Body"] as body:
            async for chunk in body.iter_chunks(256 << 10):
                yield chunk

    async def size(self, key: str) -> int:
        s3 = await self._s3()
        try:
            return int((await s3.head_object(**self._at(key)))["ContentLength"])
        except ClientError as error:
            raise _known(error) from None

    async def delete(self, key: str) -> None:
        await (await self._s3()).delete_object(**self._at(key))

    async def delete_prefix(self, prefix: str) -> None:
        s3, keys = await self._s3(), await self.keys(prefix)
        for start in range(0, len(keys), _DELETED_AT_ONCE):
            some = [{"Key": self._prefix + key} for key in keys[start : start + _DELETED_AT_ONCE]]
            await s3.delete_objects(Bucket=self._storage.bucket, Delete={"Objects": some, "Quiet": True})

    async def keys(self, prefix: str) -> list[str]:
        s3 = await self._s3()
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=self._storage.bucket, Prefix=self._prefix + checked(prefix.rstrip("/")) + "/"
        )
        return [
            entry["Key"].removeprefix(self._prefix) async for page in pages for entry in page.get("Contents", ())
        ]

    async def healthy(self) -> bool:
        await (await self._s3()).head_bucket(Bucket=self._storage.bucket)
        return True


async def _part(s3: Any, at: dict[str, str], upload: str, number: int, chunk: bytes) -> dict[str, Any]:
    answer = await s3.upload_part(**at, UploadId=upload, PartNumber=number, Body=chunk)
    return {"ETag": answer["ETag"], "PartNumber": number}


def _known(error: ClientError) -> Exception:
    return NotFound() if error.response["Error"]["Code"] in _GONE else error
