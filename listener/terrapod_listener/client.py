"""The server as the listener sees it: signed requests, errors raised again, pauses that grow."""

import asyncio
import hashlib
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terrapod_listener.identity import Identity
from terrapod_shared import errors, signing, wire

log = logging.getLogger(__name__)
_CHUNK = 256 << 10
_PAUSE_MOST_S = 30.0
_EMPTY = hashlib.sha256(b"").digest()


def tls(ca_pem: str) -> ssl.SSLContext:
    """Trusts the given authority alone, or the system's where none is given."""
    context = ssl.create_default_context(cadata=ca_pem) if ca_pem else ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def pause_s(attempt: int) -> float:
    """0.5 s, 1 s, 2 s … up to 30 s, scattered by half."""
    return min(_PAUSE_MOST_S, 0.5 * float(1 << min(attempt, 10))) * random.uniform(0.5, 1.0)  # noqa: S311


async def digest_of(path: Path) -> bytes:
    def read() -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    return await asyncio.to_thread(read)


#: Refusals that are over soon; a clock may jump again before the second try.
_PASSING = (errors.Unavailable, errors.Internal, errors.TooManyRequests, errors.ClockSkew)


class Standing:
    """How the listener stands with its server; `on_change` is called when that was seen."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.is_known = False  #: a heartbeat has been tried
        self.heard_at: float | None = None  #: monotonic time at which one was answered last
        self.why = ""  #: the last one was not, empty where it was
        self.ended: Counter[tuple[str, str]] = Counter()  #: phases by kind and outcome, which the server knows of

    def answered(self) -> None:
        self.heard_at, self.why, self.is_known = time.monotonic(), "", True
        self.on_change()

    def failed(self, why: str) -> None:
        self.why, self.is_known = why, True
        self.on_change()


class Server:
    """All calls of the protocol. `offset_s` is what the server's clock is ahead of ours."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.offset_s = 0.0
        self.standing = Standing()
        self.is_told_to_drain = False  #: by the last answer without work
        kept = identity.kept
        self._http = httpx.AsyncClient(
            base_url=kept.server,
            verify=tls(kept.ca),
            timeout=httpx.Timeout(30.0, connect=10.0),
            limits=httpx.Limits(max_connections=50, keepalive_expiry=60),
            trust_env=True,
        )

    async def close(self) -> None:
        await self._http.aclose()

    @property
    def base(self) -> str:
        return f"/api/v2/listeners/{self.identity.kept.listener_id}"

    def state_path(self, run_id: str, mark: Mapping[str, Any], *, intermediate: bool = False) -> str:
        """Where a state of that serial, lineage and md5 is to be PUT."""
        query = f"serial={mark['serial']}&lineage={quote(mark['lineage'], safe='')}&md5={mark['md5']}"
        return f"{self.base}/runs/{run_id}/state?{query}{'&intermediate=true' * intermediate}"

    def _headers(
        self, method: str, path: str, digest: bytes, lease: int, key: Ed25519PrivateKey | None
    ) -> dict[str, str]:
        url = self.identity.kept.server.rstrip("/") + path
        return signing.sign_request(
            key or self.identity.key,
            self.identity.kept.listener_id,
            method,
            url,
            body_sha256=digest,
            lease=lease,
            now=time.time() + self.offset_s,
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        file: Path | None = None,
        lease: int = 0,
        timeout_s: float = 30.0,
    ) -> httpx.Response:
        """One request. Raises the server's error, or Unavailable where it cannot be reached."""
        digest = await digest_of(file) if file else hashlib.sha256(body).digest() if body else _EMPTY
        for attempt in range(2):
            headers = self._headers(method, path, digest, lease, None)
            if file:
                headers["Content-Length"] = str((await asyncio.to_thread(file.stat)).st_size)
            content: Any = _read(file) if file else body
            try:
                answer = await self._http.request(
                    method, path, content=content, headers=headers, timeout=httpx.Timeout(timeout_s, connect=10.0)
                )
            except (httpx.HTTPError, ssl.SSLError) as error:
                raise errors.Unavailable(
                    f"{self.identity.kept.server} cannot be reached: {str(error) or type(error).__name__}"
                ) from None
            if answer.status_code < 400:  # noqa: PLR2004
                return answer
            error_ = error_of(answer.status_code, answer.content)
            if isinstance(error_, errors.ClockSkew) and attempt == 0:
                self._set_clock(error_)
                continue
            raise error_
        raise errors.Unavailable("the clocks do not agree")

    def _set_clock(self, error: errors.ClockSkew) -> None:
        self.offset_s = float(error.meta.get("server-time", time.time())) - time.time()
        log.warning("this host's clock is %.0f s off the server's", self.offset_s)

    async def persist(self, method: str, path: str, **more: Any) -> httpx.Response:
        """The same until the server answers: only its refusals are raised."""
        attempt = 0
        while True:
            try:
                return await self.call(method, path, **more)
            except (*_PASSING, errors.BadGateway) as error:
                log.warning("%s %s: %s; trying again", method, path.partition("?")[0], error.detail)
                await asyncio.sleep(pause_s(attempt))
                attempt += 1

    async def download(self, path: str, target: Path, *, lease: int, sha256: str = "") -> str:
        """Streams to a file and checks its digest; the digest. Raises as `call`, BadGateway for wrong bytes."""
        attempt = 0
        while True:
            try:
                return await self._download(path, target, lease, sha256)
            except _PASSING as error:
                if isinstance(error, errors.ClockSkew):
                    self._set_clock(error)
                log.warning("GET %s: %s; trying again", path, error.detail)
                await asyncio.sleep(pause_s(attempt))
                attempt += 1

    async def _download(self, path: str, target: Path, lease: int, sha256: str) -> str:
        headers = self._headers("GET", path, _EMPTY, lease, None)
        seen = hashlib.sha256()
        part = target.with_name(f".{target.name}.part")
        try:
            async with self._http.stream(
                "GET", path, headers=headers, timeout=httpx.Timeout(60.0, connect=10.0)
            ) as answer:
                if answer.status_code >= 400:  # noqa: PLR2004
                    raise error_of(answer.status_code, await answer.aread())
                with part.open("wb") as file:
                    async for chunk in answer.aiter_bytes(_CHUNK):
                        await asyncio.to_thread(_take, file, seen, chunk)
                wanted = sha256 or answer.headers.get(wire.DIGEST_HEADER, "")
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise errors.Unavailable(f"the download broke off: {str(error) or type(error).__name__}") from None
        if wanted and seen.hexdigest() != wanted:
            part.unlink()
            raise errors.BadGateway(f"{path} has the SHA-256 {seen.hexdigest()} and not {wanted}")
        part.replace(target)
        return seen.hexdigest()

    async def next_work(self, wait_s: float) -> wire.Work | None:
        """Work, signed by the key that the join pinned; None where there is none."""
        answer = await self._heartbeat("GET", f"{self.base}/runs/next?wait={wait_s:g}", timeout_s=wait_s + 20)
        if answer.status_code == 204:  # noqa: PLR2004
            self.is_told_to_drain = wire.DRAIN_HEADER in answer.headers
            return None
        kept = self.identity.kept
        signing.verify_work(
            kept.server_key, kept.listener_id, answer.content, answer.headers.get(wire.WORK_SIGNATURE_HEADER, "")
        )
        return msgspec.json.decode(answer.content, type=wire.Work)

    async def beat(self, message: wire.Beat, wait_s: float = 0.0) -> wire.Pulse:
        path = f"{self.base}/heartbeat?wait={wait_s:g}"
        answer = await self._heartbeat("POST", path, body=msgspec.json.encode(message), timeout_s=wait_s + 15)
        return msgspec.json.decode(answer.content, type=wire.Pulse)

    async def _heartbeat(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = await self.call(method, path, **more)
        except errors.TerrapodError as error:
            self.standing.failed(error.detail)
            raise
        self.standing.answered()
        return answer

    async def report(self, run_id: str, message: wire.Report, lease: int) -> wire.Reported:
        path = f"{self.base}/runs/{run_id}"
        answer = await self.persist("PATCH", path, body=msgspec.json.encode(message), lease=lease)
        if message.status not in ("planning", "applying"):
            self.standing.ended[message.phase, message.status] += 1
        return msgspec.json.decode(answer.content, type=wire.Reported)


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


def _take(file: Any, seen: Any, chunk: bytes) -> None:
    seen.update(chunk)
    file.write(chunk)


def error_of(status: int, body: bytes) -> errors.TerrapodError:
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        document = None
    return errors.from_document(status, document)
