"""The browser's half of `terrapod login`: authorization code with PKCE (RFC 7636, RFC 8252) over a loopback port.

As `terraform login` does it: discovery's `login.v1` names the pages, the
browser comes back to `http://localhost:PORT/login` with a code, and the code
with the verifier buys the token. Whoever comes back without the `state` that
was sent is not listened to.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import random
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

from terrapod_shared import errors
from terrapod_shared.client import Client

_PORTS = (10000, 10010)
_REQUEST_MOST = 16 << 10
_REQUEST_S = 10.0
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Terrapod</title>
<meta name="color-scheme" content="light dark"><body style="font:1.1rem system-ui;margin:4rem auto;max-width:30rem">
<h1>{title}</h1><p>{text}</p></body></html>"""


@dataclass(frozen=True)
class Service:
    """What discovery says about signing in."""

    client_id: str
    authorize_url: str
    token_url: str
    ports: tuple[int, int]
    scopes: tuple[str, ...] = ()


def service(base: str, document: Any) -> Service:
    """Reads `login.v1`; URLs are relative to where the document came from. Raises BadGateway for one that is unfit."""
    found = document.get("login.v1") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise errors.NotFound(f"{urlsplit(base).netloc} offers no sign-in; use --token-stdin")
    try:
        low, high = found.get("ports", _PORTS)
        made = Service(
            str(found["client"]), urljoin(base, found["authz"]), urljoin(base, found["token"]), (int(low), int(high)),
            tuple(map(str, found.get("scopes", ()))),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        raise errors.BadGateway("the server's login.v1 service cannot be read") from None
    schemes = {urlsplit(url).scheme for url in (made.authorize_url, made.token_url)}
    if "authz_code" not in found.get("grant_types", ["authz_code"]) or schemes != {urlsplit(base).scheme}:
        raise errors.BadGateway("the server's login.v1 service is none that can be used here")
    return made


class Attempt:
    """One sign-in: its secrets live as long as it does."""

    def __init__(self, offered: Service) -> None:
        self._service = offered
        self._state = secrets.token_urlsafe(24)
        self._verifier = secrets.token_urlsafe(48)
        self._code: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._redirect = ""

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Waits on a loopback port; gives the address to open in a browser."""
        low, high = self._service.ports
        for port in random.sample(range(low, high + 1), high - low + 1):
            try:
                server = await asyncio.start_server(self._met, "127.0.0.1", port, limit=_REQUEST_MOST)
            except OSError:
                continue
            break
        else:
            raise errors.Conflict(f"no port from {low} to {high} is free on this host; use --token-stdin")
        self._redirect = f"http://localhost:{port}/login"
        query = {
            "client_id": self._service.client_id,
            "code_challenge": _challenge(self._verifier),
            "code_challenge_method": "S256",
            "redirect_uri": self._redirect,
            "response_type": "code",
            "state": self._state,
        }
        if self._service.scopes:
            query["scope"] = " ".join(self._service.scopes)
        joint = "&" if urlsplit(self._service.authorize_url).query else "?"
        try:
            yield f"{self._service.authorize_url}{joint}{urlencode(query)}"
        finally:
            server.close()

    async def token(self, client: Client) -> str:
        """Waits for the browser and buys the token. Raises Forbidden where it was refused."""
        code = await self._code
        answer = await client.form(
            self._service.token_url,
            {
                "client_id": self._service.client_id,
                "code": code,
                "code_verifier": self._verifier,
                "grant_type": "authorization_code",
                "redirect_uri": self._redirect,
            },
        )
        try:
            document = answer.json()
        except ValueError:
            document = {}
        token = document.get("access_token") if isinstance(document, dict) else None
        if answer.is_success and isinstance(token, str) and token:
            return token
        said = document.get("error_description") or document.get("error") if isinstance(document, dict) else None
        raise errors.Forbidden(f"the server gave no token: {said or answer.status_code}")

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, title, text = self._answer(head.split(b"\r\n", 1)[0].decode("latin-1"))
                body = _PAGE.format(title=title, text=text).encode()
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
                    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
                    "Referrer-Policy: no-referrer\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n".encode()
                )
                writer.write(body)
                await writer.drain()
        writer.close()

    def _answer(self, request_line: str) -> tuple[str, str, str]:
        method, _, rest = request_line.partition(" ")
        target = urlsplit(rest.partition(" ")[0])
        query = parse_qs(target.query)

        def one(name: str) -> str:
            return query.get(name, [""])[0]

        if method != "GET" or target.path != "/login":
            return "404 Not Found", "Not found", "There is nothing here."
        if not hmac.compare_digest(one("state").encode(), self._state.encode()) or not (one("code") or one("error")):
            return "400 Bad Request", "Not the answer that was waited for", "Start again with terrapod login."
        if self._code.done():
            return "400 Bad Request", "Already answered", "This sign-in is over."
        if one("error"):
            self._code.set_exception(
                errors.Forbidden(f"signing in was refused: {one('error_description') or one('error')}")
            )
            return "200 OK", "Not signed in", "The sign-in was refused. You can close this page."
        self._code.set_result(one("code"))
        return (
            "200 OK",
            "Almost there",
            "Return to your terminal: it says whether you are signed in. You can close this page.",
        )


def _challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


async def sign_in(client: Client, shown: Callable[[str], Any], timeout_s: float) -> str:
    """The whole exchange; `shown` gets the address to open. Raises Unavailable when nobody came in time."""
    base, document = await client.discover()
    attempt = Attempt(service(base, document))
    async with attempt.listening() as url:
        shown(url)
        try:
            async with asyncio.timeout(timeout_s):
                return await attempt.token(client)
        except TimeoutError:
            raise errors.Unauthorized(f"nobody signed in within {timeout_s:g} s") from None
