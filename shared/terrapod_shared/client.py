"""The server as a person's program sees it: JSON:API over HTTPS, with the errors of `errors` raised again.

A call that found no server, lost its answer, met a 5xx or an answer that is
not the server's (`answers`) is made again with growing, scattered pauses while
the client's patience lasts. POSTs carry an `Idempotency-Key`, so a repeat does
nothing twice.
"""

import asyncio
import os
import random
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import msgspec

from terrapod_shared import answers, errors, trust

_CHUNK = 256 << 10
_PAGE = 100
_DIGITS = 10
_GOOD = range(200, 300)
_REDIRECTS = range(300, 400)
_AGAIN = (
    errors.Unavailable,
    errors.BadGateway,
    errors.Internal,
    errors.TooManyRequests,
    errors.TooSlow,
    errors.UnderWay,
)

Resource = dict[str, Any]


@dataclass
class Listing:
    """Rows of a list, how many there are in all, and what came with them by (type, id)."""

    rows: list[Resource] = field(default_factory=list)
    total: int = 0
    included: dict[tuple[str, str], Resource] = field(default_factory=dict)


def pause_s(attempt: int) -> float:
    """0.25 s, 0.5 s, 1 s … up to 8 s, scattered by half."""
    return min(8.0, 0.25 * float(1 << min(attempt, 10))) * random.uniform(0.5, 1.0)  # noqa: S311


def tls(ca: Path | None) -> ssl.SSLContext:
    """Trusts the authority of the PEM file alone; without one SSL_CERT_FILE or the system's. Raises OSError."""
    return trust.only(file=ca) if ca else trust.host()


class Client:
    """All calls to one server. `url` is its address without a path; paths are below `/api/v2/`.

    `patience_s` is for how long from its first failure a call is made again; it may be changed at any time.
    """

    def __init__(
        self, url: str, token: str = "", *, ca: Path | None = None, agent: str = "terrapod", patience_s: float = 8.0
    ) -> None:
        self.url, self.patience_s = url.rstrip("/"), patience_s
        #: Hears why a call is made again.
        self.told: Callable[[errors.TerrapodError], None] = lambda _: None
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            verify=tls(ca),
            timeout=httpx.Timeout(60.0, connect=10.0),
            headers={"User-Agent": agent, "Accept": "application/vnd.api+json, application/json"},
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def call(
        self, method: str, path: str, body: Any = None, params: Mapping[str, str | int | None] | None = None
    ) -> Any:
        """The decoded answer, None for an empty one. Raises the server's error, or Unavailable without an answer."""
        headers = dict(self._headers)
        content = b""
        if body is not None:
            content = msgspec.json.encode(body)
            headers["Content-Type"] = "application/vnd.api+json"
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        given = {name: value for name, value in (params or {}).items() if value is not None}

        async def once() -> Any:
            url = f"{self.url}/api/v2/{path.lstrip('/')}"
            answer = await self._http.request(method, url, content=content, headers=headers, params=given or None)
            return _decoded(answer)

        return await self._again(once, is_gone_good=method == "DELETE")

    async def get(self, path: str, **params: str | int | None) -> Resource:
        """The `data` of one resource."""
        data: Resource = (await self.call("GET", path, params=params))["data"]
        return data

    async def send(
        self, method: str, path: str, kind: str, attributes: Mapping[str, Any], related: Mapping[str, Any] | None = None
    ) -> Resource:
        """Writes one resource; `related` is `{"workspace": ("workspaces", id)}`. Gives the answer's `data`."""
        data: Resource = {"type": kind, "attributes": attributes}
        if related:
            data["relationships"] = {
                name: {"data": {"type": type_, "id": id_}} for name, (type_, id_) in related.items()
            }
        answer: Resource = (await self.call(method, path, {"data": data}))["data"]
        return answer

    async def listing(self, path: str, most: int = 0, **params: str | int | None) -> Listing:
        """Rows of a list from its first page on, `most` at most (0: all)."""
        found, number = Listing(), 1
        size = min(most or _PAGE, _PAGE)
        while True:
            query = {**params, "page[number]": number, "page[size]": size}
            document = await self.call("GET", path, params=query)
            found.rows += document["data"]
            for item in document.get("included", ()):
                found.included[item["type"], item["id"]] = item
            pagination = document.get("meta", {}).get("pagination", {})
            found.total = pagination.get("total-count", len(found.rows))
            following = pagination.get("next-page")
            if not following or (most and len(found.rows) >= most):
                found.rows = found.rows[: most or None]
                return found
            number = following

    async def upload(self, url: str, file: Path, sent: Callable[[int], None] = lambda _: None) -> None:
        """PUTs a file to a URL that is itself the right to do so; `sent` hears how many bytes have left."""
        self._check(url)
        size = (await asyncio.to_thread(file.stat)).st_size

        async def once() -> None:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            answer = await self._http.put(url, content=_pieces(file, sent), headers=headers)
            _check_answer(answer)

        await self._again(once)

    async def download(self, path: str, file: Path) -> int:
        """Writes what a path redirects to into a file that only its owner can read; how many bytes it has.

        The URL that it leads to is itself the right, so no token goes there.
        """

        async def once() -> int:
            first = await self._http.get(f"{self.url}/api/v2/{path}", headers=self._headers)
            if first.status_code not in _REDIRECTS or not answers.is_servers(first.headers):
                raise _refusal(first)
            url = str(first.headers.get("Location", ""))
            self._check(url)
            size = 0
            opened = await asyncio.to_thread(_private, file)
            try:
                async with self._http.stream("GET", url) as answer:
                    if not _is_good(answer):
                        await answer.aread()
                        raise _refusal(answer)
                    async for piece in answer.aiter_bytes(_CHUNK):
                        size += await asyncio.to_thread(opened.write, piece)
            finally:
                await asyncio.to_thread(opened.close)
            return size

        size: int = await self._again(once)
        return size

    async def read_log(self, url: str, offset: int, limit: int) -> bytes:
        """A part of a framed log; the URL is the right to read it, so no token goes with it."""
        self._check(url)

        async def once() -> bytes:
            answer = await self._http.get(url, params={"offset": offset, "limit": limit})
            _check_answer(answer)
            return answer.content

        content: bytes = await self._again(once)
        return content

    async def form(self, url: str, fields: Mapping[str, str]) -> httpx.Response:
        """POSTs a form without a token; whatever the server's answer is. Raises Unavailable without one.

        It is sent again only where something else than the server has answered: what it buys is sold once.
        """
        self._check(url)

        async def once() -> httpx.Response:
            try:
                answer = await self._http.post(url, data=dict(fields))
            except (httpx.HTTPError, ssl.SSLError) as error:
                raise _Final(self._unreachable(error)) from None
            if not answers.is_servers(answer.headers):
                raise answers.foreign(answer.url.host, f"answered {answer.status_code}")
            return answer

        try:
            found: httpx.Response = await self._again(once)
        except _Final as final:
            raise final.error from None
        return found

    async def discover(self) -> tuple[str, Any]:
        """The discovery document, and the URL that it came from at last. Raises NotFound, BadGateway, Unavailable."""

        async def once() -> tuple[str, Any]:
            answer = await self._http.get(f"{self.url}/.well-known/terraform.json", follow_redirects=True)
            self._check(str(answer.url))
            if answer.status_code not in _GOOD:  # whether a Terrapod is there is the question
                raise _refusal(answer, is_known=False)
            return str(answer.url), _json(answer)

        found: tuple[str, Any] = await self._again(once)
        return found

    def _check(self, url: str) -> None:
        if self.url.startswith("https:") and not url.startswith("https:"):
            raise errors.BadGateway(f"{self.url} named an address that is not https: nothing was sent there")

    async def _again(self, once: Callable[[], Awaitable[Any]], *, is_gone_good: bool = False) -> Any:
        """Makes the call until it is answered for good; a DELETE that was cut off may find that it was done."""
        until, attempt, was_cut = 0.0, 0, False
        while True:
            try:
                return await once()
            except errors.NotFound:
                if is_gone_good and was_cut:
                    return None
                raise
            except _AGAIN as error:
                failed: errors.TerrapodError = error
                was_cut = was_cut or isinstance(error, errors.BadGateway)
            except (httpx.HTTPError, ssl.SSLError) as error:
                failed = self._unreachable(error)
                was_cut = was_cut or not isinstance(error, httpx.ConnectError)
                if is_mistrust(error):
                    raise failed from None
            until = until or time.monotonic() + self.patience_s
            wait_s = max(pause_s(attempt), float(failed.meta.get("retry-after", 0)))
            if time.monotonic() + wait_s > until:
                raise failed
            self.told(failed)
            await asyncio.sleep(wait_s)
            attempt += 1

    def _unreachable(self, error: Exception) -> errors.Unavailable:
        return errors.Unavailable(not_reached(self.url, error))


def not_reached(url: str, error: Exception) -> str:
    """What is said of a server that could not be called, and what to do where its certificate was the reason."""
    why, hint = str(error) or type(error).__name__, ""
    if is_mistrust(error):
        is_of_clock = "not yet valid" in why or "has expired" in why
        hint = "; is this host's clock right?" if is_of_clock else "; --ca names the authority to trust"
    return f"{url} cannot be reached: {why}{hint}"


def is_mistrust(error: BaseException | None) -> bool:
    """Whether a call failed because the certificate of whoever is there is not trusted: that does not pass."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Final(Exception):
    """An error that ends a call which is made again after such errors otherwise."""

    def __init__(self, error: errors.TerrapodError) -> None:
        super().__init__(error.detail)
        self.error = error


def _check_answer(answer: httpx.Response) -> None:
    """Raises what an answer says that is no success of the server."""
    if not _is_good(answer):
        raise _refusal(answer)


def _is_good(answer: httpx.Response) -> bool:
    return answer.status_code in _GOOD and answers.is_servers(answer.headers)


def _refusal(answer: httpx.Response, *, is_known: bool = True) -> errors.TerrapodError:
    """The error of an answer that was read; `is_known`: a Terrapod is there, and others' answers are not its own."""
    host, status = answer.url.host, answer.status_code
    error = answers.error_of(host, status, answer.headers, answer.content)
    if isinstance(error, errors.Foreign) and not is_known:
        error = errors.from_document(status, None)
    wait = answer.headers.get("Retry-After", "")
    if wait.isascii() and wait.isdigit() and len(wait) < _DIGITS:
        error.meta["retry-after"] = int(wait)
    return error


def _decoded(answer: httpx.Response) -> Any:
    _check_answer(answer)
    return _json(answer) if answer.content else None


def _json(answer: httpx.Response) -> Any:
    try:
        return msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        host = answer.url.host
        raise answers.foreign(host, f"answered {answer.status_code} with something that is no JSON") from None


def _private(file: Path) -> BinaryIO:
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    opened = open(file, "wb", opener=opener)  # noqa: SIM115  `Path.open` takes no opener
    os.fchmod(opened.fileno(), 0o600)
    return opened


async def _pieces(file: Path, sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    done = 0
    with file.open("rb") as opened:
        while piece := await asyncio.to_thread(opened.read, _CHUNK):
            yield piece
            done += len(piece)
            sent(done)
