"""A real server in the test's own loop: Hypercorn on a port, a real database, a client with an admin's token."""

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import ssl
import sys
import tarfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.requests import Request

from kit.postgres import free_port
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_listener.link.identity import Identity
from terrapod_listener.link.join import join
from terrapod_server import app, serving
from terrapod_server.commands import accounts
from terrapod_server.config.check import LEAST_ARGON2_KIB
from terrapod_server.config.load import load
from terrapod_server.config.settings import Config
from terrapod_server.identity import actions as identity
from terrapod_server.kit.api import openapi
from terrapod_server.kit.api.declare import Route
from terrapod_server.kit.asgi.application import Server
from terrapod_server.kit.room import Composition, Room
from terrapod_server.kit.services import Services
from terrapod_shared import wire

DATA = dict[str, Any]
#: For clients of servers without TLS: they need not read all certificates of the host, which takes a while.
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def until(ask: Callable[[], Awaitable[Any]], timeout_s: float = 20.0) -> Any:
    """Waits until `ask` answers something true, and gives it."""
    begun = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while True:
            found = await ask()
            if found:
                return found
            await asyncio.sleep(pause_s(time.monotonic() - begun))


def pause_s(waited_s: float) -> float:
    """How long to wait before the next question: asking all the time takes the processor from what is waited for."""
    return min(max(0.02, waited_s / 10), 0.3)


@dataclass
class Running:
    """A server that serves, and what tests do with it."""

    url: str
    token: str
    api: httpx.AsyncClient
    services: Services
    folder: Path
    asgi: Server

    async def post(
        self, path: str, attributes: DATA | None = None, kind: str = "", **relationships: Any
    ) -> httpx.Response:
        data: DATA = {"type": kind, "attributes": attributes or {}}
        if relationships:
            data["relationships"] = {name.replace("_", "-"): {"data": value} for name, value in relationships.items()}
        return await self.api.post(path, json={"data": data})

    async def workspace(self, name: Any = "", **attributes: Any) -> DATA:
        answer = await self.post(
            "/organizations/default/workspaces", {"name": name or f"w-{uuid.uuid4().hex[:10]}", **attributes}
        )
        assert answer.status_code == 201, answer.text
        data: DATA = answer.json()["data"]
        return data

    async def configuration(self, workspace_id: str, archive: bytes | None = None, **attributes: Any) -> DATA:
        answer = await self.post(
            f"/workspaces/{workspace_id}/configuration-versions", {"auto-queue-runs": False, **attributes}
        )
        assert answer.status_code == 201, answer.text
        data: DATA = answer.json()["data"]
        put = await self.api.put(data["attributes"]["upload-url"], content=archive or tar({"main.tf": b"# nothing\n"}))
        assert put.status_code == 200, put.text
        return data

    async def run(self, workspace_id: str, configuration_id: Any = None, **attributes: Any) -> httpx.Response:
        related: DATA = {"workspace": {"type": "workspaces", "id": workspace_id}}
        if configuration_id:
            related["configuration_version"] = {"type": "configuration-versions", "id": configuration_id}
        return await self.post("/runs", attributes, "runs", **related)

    async def shown(self, run_id: str) -> DATA:
        """A run's attributes as they are now: why it waits is remembered for a moment, unless its workspace has changed."""
        path = f"/runs/{run_id}"
        workspace = (await self.api.get(path)).json()["data"]["relationships"]["workspace"]["data"]["id"]
        await self.services.bus.publish(f"workspace:{workspace}")
        attributes: DATA = (await self.api.get(path)).json()["data"]["attributes"]
        return attributes

    async def status(self, run_id: str) -> str:
        answer = await self.api.get(f"/runs/{run_id}")
        status: str = answer.json()["data"]["attributes"]["status"]
        return status

    async def state(self, workspace_id: str, raw: bytes, **more: Any) -> httpx.Response:
        document = json.loads(raw)
        return await self.post(
            f"/workspaces/{workspace_id}/state-versions",
            {
                "serial": document["serial"],
                "lineage": document["lineage"],
                "md5": hashlib.md5(raw).hexdigest(),
                **more,
            },
            "state-versions",
        )

    async def person(self, email: str, *roles: str, **limits: Any) -> str:
        """A new user with roles; the text of a token of it."""
        user = await identity.create_user(email)
        if roles:
            attributes = {"provider-name": "local", "email": email, "roles": list(roles)}
            answer = await self.api.put("/role-assignments", json={"data": {"attributes": attributes}})
            assert answer.status_code == 200, answer.text
        return (await identity.create_token(user.id, "test", **limits)).text or ""

    def as_(self, token: str) -> httpx.AsyncClient:
        """A client with another token; to be closed."""
        return httpx.AsyncClient(
            base_url=self.api.base_url, headers={"Authorization": f"Bearer {token}"}, timeout=30, verify=PLAIN
        )

    async def pool_id(self) -> str:
        answer = await self.api.get("/organizations/default/agent-pools?q=default")
        pool_id: str = answer.json()["data"][0]["id"]
        return pool_id

    async def join_token(self, pool_id: Any = "", **attributes: Any) -> str:
        pool_id = pool_id or await self.pool_id()
        answer = await self.post(f"/agent-pools/{pool_id}/authentication-tokens", {"description": "test", **attributes})
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["data"]["attributes"]["token"]
        return token

    async def listener(
        self, home: Path, name: str = "one", engine: str = "1.15.5", pool_id: str = "", ca: Path | None = None
    ) -> ListenerClient:
        """A joined listener that says it has an engine of its own; its calls are the real, signed ones."""
        identity: Identity = await join(home, self.url, await self.join_token(pool_id), name, ca)
        client = ListenerClient(identity)
        local = [wire.LocalEngine(tool="terraform", version=engine, sha256="0" * 64)]
        await client.beat(wire.Beat(free_slots=5, capacity=5, local_engines=local))
        return client


@contextlib.asynccontextmanager
async def running(data: Path, database_url: str, **settings: Any) -> AsyncIterator[Running]:
    """Starts and stops a server; the release sites of its settings are nowhere, so that no test asks the internet.

    Passwords are hashed with as little as the settings allow: 7 ms of the processor instead of 120.
    `composition`: the rooms that it is made of, instead of all.
    """
    composition: Composition = settings.pop("composition", app.COMPOSITION)
    port = settings.get("port") or free_port()
    nowhere = {
        "terraform_url": "http://127.0.0.1:9/terraform",
        "tofu_url": "http://127.0.0.1:9/tofu",
        "tofu_index_url": "http://127.0.0.1:9/tofu.json",
    }
    settings["auth"] = {"argon2_kib": LEAST_ARGON2_KIB, "argon2_passes": 1, **settings.get("auth", {})}
    config: Config = load(
        {},
        None,
        **{
            "data": str(data),
            "port": port,
            "database_url": database_url,
            "engines": nowhere,
            "shutdown_s": 5.0,
            **settings,
        },
    )
    stop, ready = asyncio.Event(), asyncio.Event()
    built: list[app.App] = []
    task = asyncio.create_task(serving.serve_until(config, stop, ready, built, composition=composition))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=30)
    if not ready.is_set():
        waiting.cancel()
        await task
    token = await accounts.admin_token("test")
    url = f"http://127.0.0.1:{port}"
    answered = _noted(built[0].services)
    try:
        async with httpx.AsyncClient(
            base_url=f"{url}/api/v2/", headers={"Authorization": f"Bearer {token}"}, timeout=30, verify=PLAIN
        ) as api:
            yield Running(url, token, api, built[0].services, data, built[0].asgi)
    finally:
        stop.set()
        await asyncio.wait({task}, timeout=4)
        if not task.done():  # it does not stop: say where it waits
            for each in asyncio.all_tasks():
                each.print_stack(file=sys.stdout)
        await task
    undeclared = [key for key, endpoint in answered.items() if key[2] not in openapi.statuses(endpoint)]
    assert undeclared == [], "statuses that the OpenAPI document does not have"


def _noted(services: Services) -> dict[tuple[str, str, int], Route]:
    """Fills with the successes that the server answers, by the hook that tells the audit log of them."""
    found: dict[tuple[str, str, int], Route] = {}
    record = services.recorder.record

    def note(request: Request, endpoint: Route | None, status: int, request_id: str, took_s: float) -> None:
        if endpoint is not None and 200 <= status < 400:
            found[endpoint.method, endpoint.path, status] = endpoint
        record(request, endpoint, status, request_id, took_s)

    services.recorder.record = note  # type: ignore[method-assign]
    return found


def extended(*rooms: Room) -> Composition:
    """All rooms of the server, and these above them."""
    return Composition((*app.COMPOSITION.rooms, *rooms), own=app.COMPOSITION.own)


def tar(files: dict[str, bytes], form: int = tarfile.DEFAULT_FORMAT) -> bytes:
    """A gzip tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def state_bytes(serial: int = 1, lineage: str = "aaaa", outputs: DATA | None = None, resources: int = 0) -> bytes:
    """A state of terraform's format 4."""
    found = [
        {
            "mode": "managed", "type": "terraform_data", "name": f"r{number}",
            "provider": 'provider["terraform.io/builtin/terraform"]', "instances": [{"attributes": {"id": str(number)}}],
        }
        for number in range(resources)
    ]  # fmt: skip
    return json.dumps(
        {
            "version": 4, "terraform_version": "1.15.5", "serial": serial, "lineage": lineage,
            "outputs": outputs or {}, "resources": found,
        }, indent=2,
    ).encode()  # fmt: skip
