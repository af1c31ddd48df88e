"""An OpenID Connect provider that can be made to lie, and the real one of PyPI's `oidc-provider-mock` as a process.

The first speaks real HTTP, checks PKCE and the client's secret, and signs
with keys that tests change; what a test puts into `claims`, `header` or
`metadata` goes out in place of the truth.
"""

import asyncio
import base64
import contextlib
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import httpx
from hypercorn.asyncio import serve
from hypercorn.config import Config
from joserfc import jwk, jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from kit.postgres import free_port
from terrapod_server.identity.rules import challenge_of

CLIENT = ("terrapod", "a secret: with % and : in it")


class Provider:
    """The one that lies where a test wants it to."""

    def __init__(self, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self.keys: list[jwk.Key] = [jwk.RSAKey.generate_key(2048, {"kid": "first"})]
        self.algorithm = "RS256"
        self.claims: dict[str, Any] = {"sub": "1", "email": "ann@example.org", "email_verified": True}
        self.header: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.answer: dict[str, str] = {}  #: further parameters of the way back
        self.userinfo: dict[str, Any] = {}
        self.sign: Callable[[dict[str, Any], dict[str, Any]], str] = self._sign
        self.asked_for_keys = 0
        self._codes: dict[str, dict[str, str]] = {}
        self.app = Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._discovery),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
                Route("/keys", self._keys),
                Route("/userinfo", self._userinfo),
            ]
        )

    def _sign(self, header: dict[str, Any], claims: dict[str, Any]) -> str:
        with warnings.catch_warnings(action="ignore"):
            return jwt.encode(header, claims, self.keys[-1], algorithms=[str(header["alg"])])

    async def _discovery(self, _request: Request) -> Response:
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
        }
        return JSONResponse(document | self.metadata)

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = base64.urlsafe_b64encode(asked["state"][:12].encode()).decode()
        self._codes[code] = asked
        back = {"code": code, "state": asked["state"], **self.answer}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)

    async def _token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        name, _, secret = base64.b64decode(request.headers["authorization"].split()[1]).decode().partition(":")
        if parse_qs(f"a={name}&b={secret}") != {"a": [CLIENT[0]], "b": [CLIENT[1]]}:
            return JSONResponse({"error": "invalid_client"}, 401)
        asked = self._codes.pop(form["code"], None)
        if asked is None or challenge_of(form["code_verifier"]) != asked["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT[0],
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
            **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": self.algorithm, "kid": self.keys[-1].kid, **self.header}
        header = {name: value for name, value in header.items() if value is not None}
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": self.sign(header, claims)})

    async def _keys(self, _request: Request) -> Response:
        self.asked_for_keys += 1
        return JSONResponse({"keys": [key.as_dict(private=False) for key in self.keys]})

    async def _userinfo(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer x"
        return JSONResponse(self.userinfo)


@contextlib.asynccontextmanager
async def lying_provider() -> AsyncIterator[Provider]:
    port = free_port()
    provider = Provider(port)
    config, stop = Config(), asyncio.Event()
    config.bind, config.errorlog = [f"127.0.0.1:{port}"], None
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(provider.app, config, shutdown_trigger=stop.wait, mode="asgi"))  # type: ignore[arg-type]
        await _answers(provider.issuer)
        try:
            yield provider
        finally:
            stop.set()


@contextlib.asynccontextmanager
async def real_provider(folder: Path) -> AsyncIterator[str]:
    """Its issuer. Everybody may sign in there, under any name."""
    port = free_port()
    with (folder / "provider.log").open("wb") as log:
        command = [sys.executable, "-m", "oidc_provider_mock", "--port", str(port), "--require-nonce"]
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
    issuer = f"http://127.0.0.1:{port}"
    try:
        await _answers(issuer)
        yield issuer
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)


async def _answers(issuer: str) -> None:
    async with httpx.AsyncClient() as client, asyncio.timeout(20):
        while True:
            try:
                if (await client.get(f"{issuer}/.well-known/openid-configuration")).status_code == 200:
                    return
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
