"""The server as the listener sees it: signed requests, errors raised again, pauses that grow.

Whatever is not recognisably the server's answer has decided nothing
(`answers`): a proxy's 404 ends no run, and its 200 frees no state.
"""

import asyncio
import hashlib
import logging
import math
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from terrapod_listener.link.identity import Identity
from terrapod_shared import answers, errors, signing, trust, wire
from terrapod_shared.client import not_reached

log = logging.getLogger(__name__)
_CHUNK = 256 << 10
_PAUSE_MOST_S = 30.0
_EMPTY = hashlib.sha256(b"").digest()
_GOOD, _NOTHING = range(200, 300), 204
#: The largest message is work, with the variables in it.
_ANSWER_MOST = 512 << 20
#: Of what nothing shows to be the server's, enough is read for an error document.
_FOREIGN_MOST = 64 << 10
#: Bytes that are not those that were asked for are fetched so often: a connection that is cut in the middle is not always seen.
_WRONG_MOST = 4
_M = TypeVar("_M", bound=wire.Message)


def tls(ca_pem: str) -> ssl.SSLContext:
    """Trusts the given authority alone, or the system's where none is given."""
    return trust.only(pem=ca_pem) if ca_pem else trust.host()


def pause_s(attempt: int) -> float:
    """0.5 s, 1 s, 2 s … up to 30 s, scattered by half."""
    return min(_PAUSE_MOST_S, 0.5 * float(1 << min(attempt, 10))) * random.uniform(0.5, 1.0)  # noqa: S311


async def digest_of(path: Path) -> bytes:
    def read() -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    return await asyncio.to_thread(read)


#: What is over some time: the request is made again. A clock may jump again before the second try, and a server of an
#: older version is upgraded one day.
PASSING = (
    errors.Unavailable, errors.Internal, errors.BadGateway, errors.TooManyRequests, errors.TooSlow, errors.ClockSkew, errors.SeenBefore,
    errors.ProtocolMismatch,
)  # fmt: skip
#: Who the listener is does not count any more: somebody has to join it again, and its work is kept for that.
STRANGER = (errors.Unauthorized, errors.UnknownListener)
#: Believed without a signature: they end nothing. Any other refusal is anybody's word, and a proxy could show an old one.
_UNSIGNED = (*(kind for kind in PASSING if kind is not errors.BadGateway), *STRANGER)


@dataclass(frozen=True)
class Answer:
    """A success of the server, all of it here."""

    status_code: int
    headers: httpx.Headers
    content: bytes


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

    def _headers(self, method: str, path: str, digest: bytes, lease: int, nonce: str) -> dict[str, str]:
        url = self.identity.kept.server.rstrip("/") + path
        return signing.sign_request(
            self.identity.key,
            self.identity.kept.listener_id,
            method,
            url,
            body_sha256=digest,
            lease=lease,
            now=time.time() + self.offset_s,
            nonce=nonce,
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
        is_signed: bool = True,
    ) -> Answer:
        """One request. Raises the server's error, Unavailable where it cannot be reached, Foreign where another answers.

        `is_signed`: the success must be, by the pinned key and for this very request.
        """
        digest = await digest_of(file) if file else hashlib.sha256(body).digest() if body else _EMPTY
        for attempt in range(2):
            nonce = signing.new_nonce()
            headers = self._headers(method, path, digest, lease, nonce)
            if file:
                headers["Content-Length"] = str((await asyncio.to_thread(file.stat)).st_size)
            content: Any = _read(file) if file else body
            try:
                async with self._http.stream(
                    method, path, content=content, headers=headers, timeout=httpx.Timeout(timeout_s, connect=10.0)
                ) as response:
                    answer = await self._answer(response, nonce)
            except (httpx.HTTPError, ssl.SSLError) as error:
                raise errors.Unavailable(not_reached(self.identity.kept.server, error)) from None
            except (errors.ClockSkew, errors.SeenBefore):
                if attempt:
                    raise
            else:
                if is_signed and answer.status_code != _NOTHING:
                    self._check_signature(answer, nonce)
                return answer
        raise errors.Unavailable("the clocks do not agree")

    def _check_signature(self, answer: Answer, nonce: str) -> None:
        """Raises Foreign: who this listener is is not in question."""
        kept, signature = self.identity.kept, answer.headers.get(wire.ANSWER_SIGNATURE_HEADER, "")
        try:
            signing.verify_answer(
                kept.server_key, kept.listener_id, nonce, answer.status_code, answer.content, signature
            )
        except errors.Unauthorized as error:
            raise errors.Foreign(error.detail) from None

    async def _answer(self, response: httpx.Response, nonce: str) -> Answer:
        """The whole of a success. Raises the error that it says otherwise."""
        is_servers = answers.is_servers(response.headers)
        content = await _some(response, _ANSWER_MOST if is_servers else _FOREIGN_MOST)
        if response.status_code in _GOOD and is_servers and content is not None:
            return Answer(response.status_code, response.headers, content)
        raise self._refusal(response, content or b"", nonce)

    def _refusal(self, response: httpx.Response, content: bytes, nonce: str) -> errors.TerrapodError:
        """What an answer says that is no success. Where it is a ClockSkew, the clock is set by it."""
        server = self.identity.kept.server
        error = answers.error_of(server, response.status_code, response.headers, content)
        if isinstance(error, errors.ProtocolMismatch):
            error.detail = mismatch(server, response.headers)
        if isinstance(error, errors.ClockSkew):
            return self._set_clock(error, nonce)
        if not isinstance(error, (*_UNSIGNED, errors.Foreign)):
            try:
                self._check_signature(Answer(response.status_code, response.headers, content), nonce)
            except errors.Foreign as foreign:
                return errors.Foreign(f"{error.detail}: {foreign.detail}")
        return error

    def read(self, answer: Answer, kind: type[_M]) -> _M:
        """The message. Raises Foreign for what is none: it was cut off, or changed on the way."""
        try:
            return msgspec.json.decode(answer.content, type=kind)
        except msgspec.DecodeError as error:
            server = self.identity.kept.server
            raise answers.foreign(server, f"answered with what is no {kind.__name__} ({error})") from None

    def _set_clock(self, error: errors.ClockSkew, nonce: str) -> errors.TerrapodError:
        """Takes the server's time where it is signed for this request; else it is anybody's word, and Foreign.

        An answer that is held up makes the clock late, never early: no signature can be had for a time to come.
        """
        kept, meta = self.identity.kept, error.meta
        try:
            server_time = signing.verify_clock(
                kept.server_key, kept.listener_id, nonce, meta.get("server-time"), meta.get("signature")
            )
        except errors.Unauthorized as wrong:
            return errors.Foreign(wrong.detail)
        self.offset_s = server_time - time.time()
        log.warning("this host's clock is %.0f s off the server's", self.offset_s)
        return error

    async def persist(
        self, method: str, path: str, *, kind: type[_M] | None = None, patience_s: float = math.inf, **more: Any
    ) -> Answer:
        """The same until the server answers, or for so long: only its refusals are raised then.

        An answer that is no message of the `kind` is none.
        """
        attempt, until = 0, time.monotonic() + patience_s
        while True:
            try:
                answer = await self.call(method, path, **more)
                if kind is not None:
                    self.read(answer, kind)
                return answer
            except PASSING as error:
                wait_s = pause_s(attempt)
                if time.monotonic() + wait_s > until:
                    raise
                log.warning("%s %s: %s; trying again", method, path.partition("?")[0], error.detail)
                await asyncio.sleep(wait_s)
                attempt += 1

    async def download(self, path: str, target: Path, *, lease: int, sha256: str = "") -> str:
        """Streams to a file and checks its digest; the digest, once the server has answered.

        Raises its refusals, BadGateway for bytes that are wrong again and again
        and where the server says itself that an engine's publisher fails it.
        """
        attempt = wrong = 0
        while True:
            try:
                return await self._download(path, target, lease, sha256)
            except PASSING as error:
                wrong += isinstance(error, WrongBytes)
                is_said = isinstance(error, errors.BadGateway) and not isinstance(error, errors.Foreign | WrongBytes)
                if is_said or wrong == _WRONG_MOST:
                    raise
                log.warning("GET %s: %s; trying again", path, error.detail)
                await asyncio.sleep(pause_s(attempt))
                attempt += 1

    async def _download(self, path: str, target: Path, lease: int, sha256: str) -> str:
        nonce = signing.new_nonce()
        headers = self._headers("GET", path, _EMPTY, lease, nonce)
        seen = hashlib.sha256()
        part = target.with_name(f".{target.name}.part")
        try:
            async with self._http.stream(
                "GET", path, headers=headers, timeout=httpx.Timeout(60.0, connect=10.0)
            ) as answer:
                if answer.status_code not in _GOOD or not answers.is_servers(answer.headers):
                    raise self._refusal(answer, await _some(answer, _FOREIGN_MOST) or b"", nonce)
                with part.open("wb") as file:
                    async for chunk in answer.aiter_bytes(_CHUNK):
                        await asyncio.to_thread(_take, file, seen, chunk)
                wanted = sha256 or answer.headers.get(wire.DIGEST_HEADER, "")
        except (httpx.HTTPError, ssl.SSLError) as error:
            raise errors.Unavailable(f"the download broke off: {str(error) or type(error).__name__}") from None
        if wanted and seen.hexdigest() != wanted:
            part.unlink()
            raise WrongBytes(f"{path} has the SHA-256 {seen.hexdigest()} and not {wanted}")
        part.replace(target)
        return seen.hexdigest()

    async def next_work(self, wait_s: float) -> wire.Work | None:
        """Work, signed by the key that the join pinned for this very poll; None where there is none.

        Raises Foreign for what was issued too long ago: it was held up, and its offer is over.
        """
        asked, begun = time.time(), time.monotonic()
        answer = await self._heartbeat("GET", f"{self.base}/runs/next?wait={wait_s:g}", timeout_s=wait_s + 20)
        if answer.status_code == _NOTHING:
            self.is_told_to_drain = wire.DRAIN_HEADER in answer.headers
            return None
        work = self.read(answer, wire.Work)
        now = asked + time.monotonic() - begun + self.offset_s  # a clock that jumps meanwhile does not count
        age_s = now - work.issued_at
        if not -wire.SIGNATURE_AGE_S <= age_s <= wire.SIGNATURE_AGE_S + work.lease.offer_seconds:
            raise errors.Foreign(f"the work of {work.run_id} was issued {age_s:.0f} s ago: it is not taken")
        return work

    async def beat(self, message: wire.Beat, wait_s: float = 0.0) -> wire.Pulse:
        path = f"{self.base}/heartbeat?wait={wait_s:g}"
        answer = await self._heartbeat("POST", path, body=msgspec.json.encode(message), timeout_s=wait_s + 15)
        return self.read(answer, wire.Pulse)

    async def _heartbeat(self, method: str, path: str, **more: Any) -> Answer:
        try:
            answer = await self.call(method, path, **more)
        except errors.TerrapodError as error:
            self.standing.failed(error.detail)
            raise
        self.standing.answered()
        return answer

    async def report(self, run_id: str, message: wire.Report, lease: int) -> wire.Reported:
        path = f"{self.base}/runs/{run_id}"
        body = msgspec.json.encode(message)
        answer = await self.persist("PATCH", path, kind=wire.Reported, body=body, lease=lease)
        if message.status not in ("planning", "applying"):
            self.standing.ended[message.phase, message.status] += 1
        return self.read(answer, wire.Reported)


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


def _take(file: Any, seen: Any, chunk: bytes) -> None:
    seen.update(chunk)
    file.write(chunk)


async def _some(response: httpx.Response, most: int) -> bytes | None:
    """The body, None for one that is larger; the rest of it is not read."""
    found = bytearray()
    async for chunk in response.aiter_bytes():
        found += chunk
        if len(found) > most:
            return None
    return bytes(found)


def mismatch(server: str, headers: Mapping[str, str]) -> str:
    """What to do about a server that does not speak this listener's protocol."""
    theirs = headers.get(wire.PROTOCOL_HEADER, "")
    is_older = theirs.isascii() and theirs.isdigit() and len(theirs) < 4 and int(theirs) < wire.PROTOCOL  # noqa: PLR2004
    which = "the server: it comes before its listeners" if is_older else "this listener"
    return f"{server} speaks version {theirs or '?'} of the listener protocol, this listener {wire.PROTOCOL}: upgrade {which}"


class WrongBytes(errors.BadGateway):
    """What came is not what was asked for."""
