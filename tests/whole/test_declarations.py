"""All declarations at once: documented, guarded, and the schema is what the models ask for."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from tortoise import Tortoise, connections
from tortoise.migrations.autodetector import MigrationAutodetector

from kit.schema import structure
from kit.serving import Running
from terrapod_server import app
from terrapod_server.access import actions as access
from terrapod_server.commands import accounts
from terrapod_server.identity import actions as people
from terrapod_server.identity import sessions
from terrapod_server.identity.model import ApiToken
from terrapod_server.kit.api import openapi
from terrapod_server.kit.api.declare import Endpoint, Page, Route
from terrapod_server.kit.caller import Access
from terrapod_server.kit.db import database
from terrapod_shared import ids

ROOT = Path(__file__).parents[2]


def path_of(endpoint: Route) -> str:
    """The path with ids of things that are not there."""
    path = endpoint.path.replace("{org}", "default")
    return re.sub(r"\{(\w+)\}", lambda _: ids.make("ws"), path)


def test_every_endpoint_is_documented() -> None:
    assert [e.path for e in app.ENDPOINTS if not openapi.summary(e)] == []
    assert all(attr.doc for resource in app.RESOURCES for attr in resource.attributes)


def test_the_openapi_document_has_every_endpoint() -> None:
    document = openapi.document(app.ENDPOINTS)
    assert sum(len(operations) for operations in document["paths"].values()) == len(app.ENDPOINTS)
    names = [op["operationId"] for operations in document["paths"].values() for op in operations.values()]
    assert len(names) == len(set(names))


def check_page(page: Page, answer: httpx.Response) -> None:
    """What a page answers to somebody who has neither a session nor a form of ours."""
    assert not answer.cookies.get("terrapod"), page.path
    if page.needs in (Access.PUBLIC, Access.CAPABILITY):
        assert answer.status_code in ((200, 303, 400) if page.method == "GET" else (400, 415)), (page.path, answer.text)
        return
    assert (answer.status_code, answer.text) == (303, ""), page.path
    back = quote(answer.request.url.path, safe="") if page.method == "GET" and page.path != "/" else ""
    assert answer.headers["location"] == (f"/sign-in?next={back}" if back else "/sign-in"), page.path


async def test_a_stranger_learns_nothing(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as stranger:
        for endpoint in app.ENDPOINTS:
            answer = await stranger.request(endpoint.method, path_of(endpoint))
            if isinstance(endpoint, Page):
                check_page(endpoint, answer)
                continue
            if endpoint.path in ("/oauth/token", "/api/v2/auth/token"):  # its errors are OAuth's
                assert (answer.status_code, answer.json()["error"]) == (415, "invalid_request")
                continue
            if "saml" in endpoint.path or endpoint.path.startswith("/static/"):  # of something that is not there
                assert answer.status_code == 404
                continue
            if endpoint.needs is Access.PUBLIC:
                assert answer.status_code < 300, endpoint.path
            elif endpoint.needs is Access.CAPABILITY:
                assert answer.status_code in (401, 404, 422), (endpoint.path, answer.text)
            elif endpoint.needs is Access.LISTENER:
                assert answer.status_code in (401, 404, 426), (endpoint.path, answer.text)
            else:
                assert answer.status_code == 401, (endpoint.path, answer.text)
            if answer.status_code >= 400:
                error = answer.json()["errors"][0]
                assert {"status", "title", "detail"} <= error.keys()
            assert answer.headers["x-request-id"]


async def test_unknown_ids_are_404_and_never_500(server: Running) -> None:
    _, session = await sessions.begin(await people.user(accounts.ADMIN_EMAIL), "local", (), "", "")
    for endpoint in app.ENDPOINTS:
        if "{" not in endpoint.path.replace("{org}", "") or endpoint.needs in (Access.LISTENER, Access.CAPABILITY):
            continue
        for identity in (ids.make("ws"), "nonsense", "ws-%00", "%F0%9F%92%A9", "x" * 300):
            path = re.sub(r"\{\w+\}", identity, endpoint.path.replace("{org}", "default"))
            body: Any = None if endpoint.method in ("GET", "DELETE") else {"data": {"attributes": {}}}
            cookie = {"Cookie": f"terrapod={session}"} if isinstance(endpoint, Page) else {}
            answer = await server.api.request(endpoint.method, server.url + path, json=body, headers=cookie)
            assert answer.status_code in (404, 422, 400), (endpoint.method, path, answer.status_code, answer.text)


async def test_what_is_required_is_refused_where_it_is_missing(server: Running) -> None:
    workspace, pool = (await server.workspace("w"))["id"], await server.pool_id()
    await server.post("/organizations/default/registry-modules", {"name": "m", "provider": "p"})
    names = {
        "org": "default",
        "workspace": workspace,
        "pool": pool,
        "namespace": "default",
        "name": "m",
        "provider": "p",
    }
    values = {
        "workspace-permission": "read", "serial": 1, "md5": "0" * 32, "roles": [], "current_password": "x",
        "password": "x", "email": "ann@example.org", "version": "1.0.0",
    }  # fmt: skip
    asked = 0
    for endpoint in app.ENDPOINTS:
        if not isinstance(endpoint, Endpoint):
            continue
        for missing in endpoint.requires:
            asked += 1
            sent = {name: values.get(name, "x") for name in endpoint.requires if name != missing}
            path = endpoint.path.format(**names)
            answer = await server.api.request(endpoint.method, server.url + path, json={"data": {"attributes": sent}})
            assert answer.status_code == 422, (endpoint.path, missing, answer.text)
            pointer = answer.json()["errors"][0]["source"]["pointer"]
            assert pointer.rpartition("/")[2] == missing, (endpoint.path, answer.text)
    assert asked > 15


async def test_the_public_documents(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url) as anybody:
        assert (await anybody.get("/health")).json() == {"status": "healthy"}
        assert (await anybody.get("/ready")).json()["checks"] == {"database": "healthy", "storage": "healthy"}
        services = await anybody.get("/.well-known/terraform.json")
        assert services.headers["content-type"] == "application/json"
        assert services.json()["tfe.v2"] == services.json()["tfe.v2.1"] == "/api/v2/"
        ping = await anybody.get("/api/v2/ping")
        assert (ping.status_code, ping.headers["TFP-API-Version"], ping.headers["X-TFE-Version"]) == (
            204,
            "2.6",
            "v202505-1",
        )
        assert (await anybody.get("/api/v2/openapi.json")).json()["openapi"] == "3.1.0"
    assert (await server.api.get("/organizations/default/entitlement-set")).json()["data"]["attributes"][
        "operations"
    ] is True
    assert (await server.api.get("/organizations/default/projects")).json()["data"][0]["attributes"][
        "name"
    ] == "Default Project"
    made = await server.api.post("/organizations/default/projects", json={"data": {"attributes": {"name": "x"}}})
    assert made.status_code == 422


async def test_migrations_lead_to_what_the_models_ask_for(empty_url: str) -> None:
    await database.open_(empty_url, app.MODELS)
    try:
        await database.migrate("0001_initial")
        await database.migrate()
        await database.migrate()
        database.drop_descriptions()
        config = database.settings(empty_url, app.MODELS, 1)
        apps = Tortoise._require_context().apps
        assert apps is not None
        assert not await MigrationAutodetector(apps, config["apps"]).changes(), "run make migration"
        migrated = await _schema()
    finally:
        await database.close()
    assert {"run", "run_phase", "workspace", "state_version", "listener"} <= {table for table, _ in migrated}
    wanted = ("run_phase", "pool_id", "lease_state")
    assert any(table == wanted[0] and wanted[1] in columns and wanted[2] in columns for table, columns in migrated)


async def test_a_new_database_has_the_schema_that_all_migrations_lead_to(empty_url: str) -> None:
    await database.open_(empty_url, app.MODELS)
    try:
        await Tortoise.generate_schemas(safe=True)  # cut off before it was noted, and done again
        await database.migrate()
        made = await structure()
        noted = await database.query("SELECT name FROM tortoise_migrations ORDER BY name")
        await _drop_all()
        await database.migrate("0001_initial")
        await database.migrate()
        assert made == await structure()
        assert noted == await database.query("SELECT name FROM tortoise_migrations ORDER BY name")
        assert len(noted) >= 10
    finally:
        await database.close()


@pytest.mark.slow
async def test_administrators_and_labels_come_along_from_the_first_schema(empty_url: str) -> None:
    await database.open_(empty_url, app.MODELS)
    try:
        await database.migrate("0001_initial")
        client = connections.get("default")
        await client.execute_script(
            "INSERT INTO user_account (id, email, display_name, is_active, is_admin, created_at, updated_at) VALUES "
            "('user-1', 'ann@example.org', '', true, true, '2026-01-01 00:00:00', '2026-01-01 00:00:00'), "
            "('user-2', 'bea@example.org', '', true, false, '2026-01-01 00:00:00', '2026-01-01 00:00:00');"
            "INSERT INTO agent_pool (id, name, description, organization_scoped, allow_server_keys, "
            "service_account_name, labels, owner_id, created_at) VALUES "
            "('apool-1', 'p', '', true, false, '', '{\"env\": \"dev\"}', '', '2026-01-01 00:00:00');"
            "INSERT INTO api_token (id, user_id, hash, description, created_at) VALUES "
            "('at-1', 'user-1', 'x', '', '2026-01-01 00:00:00')"
        )
        await database.migrate()
        assert [await access.roles_for("local", f"{name}@example.org") for name in ("ann", "bea")] == [["admin"], []]
        labels = await database.query("SELECT pool_id, key, value FROM agent_pool_label")
        assert [tuple(row.values()) for row in labels] == [("apool-1", "env", "dev")]
        kept = await ApiToken.get()
        assert (kept.id, kept.provider, kept.read_only, kept.workspace_id) == ("at-1", "local", False, "")
    finally:
        await database.close()


async def _schema() -> set[tuple[str, str]]:
    """(table, text of an index) of all that is there."""
    if database.is_postgres():
        rows = await connections.get("default").execute_query_dict(
            "SELECT tablename AS t, indexdef AS d FROM pg_indexes WHERE schemaname = 'public'"
        )
    else:
        rows = await connections.get("default").execute_query_dict(
            "SELECT tbl_name AS t, coalesce(sql, '') AS d FROM sqlite_master"
        )
    return {(row["t"], row["d"]) for row in rows}


def test_the_documents_name_every_room() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    rooms = [
        p.name for p in (ROOT / "server" / "terrapod_server").iterdir() if p.is_dir() and (p / "__init__.py").exists()
    ]
    missing = [room for room in rooms if f"{room}`" not in text]
    assert not missing, f"the table of rooms in docs/ARCHITECTURE.md has no line for {', '.join(missing)}"


@pytest.mark.parametrize(("program", "document"), [("server", "settings.md"), ("listener", "listener-settings.md")])
def test_the_document_of_the_settings_is_of_these_settings(program: str, document: str) -> None:
    words = [sys.executable, str(ROOT / "packaging" / "settings.py"), program]
    made = subprocess.run(words, capture_output=True, check=True)
    assert made.stdout == (ROOT / "docs" / document).read_bytes(), "run make docs"


@pytest.mark.parametrize("forbidden", ["/work/", "/root/"])
def test_no_absolute_path_of_a_machine(forbidden: str) -> None:
    for folder in ("server", "listener", "shared", "cli", "docs", "packaging"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".py", ".md", ".toml"):
                assert forbidden not in file.read_text(), file


async def _drop_all() -> None:
    client = connections.get("default")
    if database.is_postgres():
        await client.execute_script("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return
    await client.execute_script("PRAGMA foreign_keys = OFF")
    for row in await client.execute_query_dict("SELECT name FROM sqlite_master WHERE type = 'table'"):
        if not row["name"].startswith("sqlite_"):
            await client.execute_script(f'DROP TABLE "{row["name"]}"')
    await client.execute_script("PRAGMA foreign_keys = ON")
