"""Nothing secret is in a log, in an error, in the database or in the files: canaries go in, and are looked for."""

import asyncio
import contextlib
import gzip
import hashlib
import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from kit.canaries import dump
from kit.postgres import free_port
from kit.serving import state_bytes, tar, until
from kit.site import BIN
from terrapod_server import app
from terrapod_server.commands import accounts, tls
from terrapod_server.config.load import load
from terrapod_server.store.cipher import KeyRing

CANARY = "canary-7f3a9c-hunter2"
LIST = "/organizations/default/workspaces"


@contextlib.asynccontextmanager
async def served(data: Path, database_url: str, log: Path) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """`terrapod-server serve` over TLS and HTTP/2 that logs all it can, and an admin's client with its token."""
    data.mkdir()
    certificate, key = tls.ensure(data, "127.0.0.1", KeyRing.create(data / "keys"))
    async with app.opened(load({}, None, data=str(data), database_url=database_url)):
        token = await accounts.admin_token("test")
    port = free_port()
    settings = {
        "DATA": str(data), "DATABASE_URL": database_url, "PORT": str(port), "LOG_LEVEL": "debug", "ACCESS_LOG": "true",
        "HTTP2": "true", "TLS__CERTIFICATE": str(certificate), "TLS__KEY": str(key),
        "ENGINES__TERRAFORM_URL": "http://127.0.0.1:9", "ENGINES__TOFU_INDEX_URL": "http://127.0.0.1:9",
    }  # fmt: skip
    environment = {"PATH": os.environ["PATH"], **{f"TERRAPOD_{name}": value for name, value in settings.items()}}
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            str(BIN / "terrapod-server"), "serve", env=environment, stderr=file, stdout=file
        )
    trusted = ssl.create_default_context(cafile=data / "ca.pem")
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{port}/api/v2/", http2=True, verify=trusted, headers=headers, timeout=30
        ) as api:

            async def is_ready() -> bool:
                assert process.returncode is None, log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    return (await api.get("ping")).http_version == "HTTP/2"
                return False

            await until(is_ready)
            yield api, token
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0


def body(attributes: dict[str, Any], **related: str) -> dict[str, Any]:
    relationships = {name: {"data": {"type": "", "id": value}} for name, value in related.items()}
    return {"data": {"attributes": attributes, "relationships": relationships}}


async def put_in(api: httpx.AsyncClient) -> list[str]:
    """Canaries into all that may hold secrets, in good requests and in wrong ones; gives the secrets that came back."""
    own = f"/workspaces/{(await api.post(LIST, json=body({'name': 'w'}))).json()['data']['id']}"
    once = {"Idempotency-Key": "k"}
    for key, sensitive in (("a", True), ("b", False)):
        variable = {"key": key, "value": CANARY, "category": "env", "sensitive": sensitive}
        assert (
            await api.post(f"{own}/vars", json=body(variable), headers=once if sensitive else {})
        ).status_code == 201
    output = {"o": {"value": CANARY, "type": "string", "sensitive": True}}
    raw = state_bytes(1, "line", output).replace(b'"resources": []', b'"check": "' + CANARY.encode() + b'"')
    announced = {"serial": 1, "lineage": "line", "md5": hashlib.md5(raw).hexdigest()}
    state = (await api.post(f"{own}/state-versions", json=body(announced))).json()["data"]
    state_url = state["attributes"]["hosted-state-upload-url"]
    assert (await api.put(state_url, content=raw + b" ")).status_code == 422
    assert (await api.put(state_url, content=raw)).status_code == 200
    assert (await api.put(state["attributes"]["hosted-json-state-upload-url"], content=raw)).status_code == 200
    download = (await api.get(f"/state-versions/{state['id']}/download")).headers["Location"]
    assert CANARY in (await api.get(download)).text
    made = await api.post(f"{own}/configuration-versions", json=body({"auto-queue-runs": False}))
    configuration_url = made.json()["data"]["attributes"]["upload-url"]
    archive = gzip.compress(gzip.decompress(tar({"main.tf": CANARY.encode()})), 0)
    assert CANARY.encode() in archive
    assert (await api.put(configuration_url, content=archive)).status_code == 200
    await api.post("/runs", json=body({"variables": [{"key": "a", "value": f'"{CANARY}"'}]}, workspace=own[12:]))
    pool = (await api.get("/organizations/default/agent-pools")).json()["data"][0]["id"]
    tokens = f"/agent-pools/{pool}/authentication-tokens"
    join = (await api.post(tokens, json=body({"description": "t"}), headers={"Idempotency-Key": "t"})).json()["data"]
    wrong = [
        await api.post(f"{own}/vars", content=f'{{"data": {{"attributes": {{"value": "{CANARY}"'.encode()),
        await api.post(f"{own}/vars", json=body({"key": "a", "value": CANARY, "category": "env"})),
        await api.post(f"{own}/vars", json=body({"key": "PATH", "value": CANARY, "category": "env"})),
        await api.post(f"{own}/vars", json=body({"key": "c", "value": [CANARY], "category": "env"})),
        await api.post(f"{own}/state-versions", json=body({"serial": 1, "md5": "x", "state": CANARY})),
        await api.delete(download),
        await api.get(f"{state_url}/more"),
        await api.post(
            "/agent-pools/join", json={"join_token": join["attributes"]["token"], "name": "", "csr": CANARY}
        ),
        await api.get(own, headers={"Authorization": f"Bearer {CANARY}"}),
    ]
    for answer in wrong:
        assert 400 <= answer.status_code < 500, answer.text
        assert CANARY not in answer.text
    urls = [state_url, configuration_url, download]
    return [join["attributes"]["token"], *(url.rpartition("/")[2] for url in urls)]


async def test_canaries_are_nowhere_in_clear(database_url: str, tmp_path: Path) -> None:
    data, log = tmp_path / "served", tmp_path / "log"
    async with served(data, database_url, log) as (api, token):
        secrets = [CANARY, token, *(await put_in(api))]
    logged = log.read_text()
    assert "/vars 201" in logged
    assert "/uploads/states/{token} 200" in logged
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if database_url.startswith("postgres"):
        kept[Path("dump")] = await dump(database_url)
    for secret in secrets:
        for form in (secret.encode(), secret.encode().hex().encode()):
            assert [str(path) for path, content in kept.items() if form in content] == [], secret[:12]
