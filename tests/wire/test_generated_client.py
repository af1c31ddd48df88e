"""A client that another tool generates of our OpenAPI document: whole, without a warning, and of use."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from kit.serving import Running
from terrapod_server import app
from terrapod_server.kit.api import openapi
from terrapod_server.kit.api.render import encode

GENERATE = "from openapi_python_client.cli import app; app()"


@pytest.fixture(scope="module")
def raw() -> bytes:
    """The document as the server encodes it."""
    return encode(openapi.document(app.ENDPOINTS, app.TAGS))


@pytest.fixture(scope="module")
def package(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package that is generated of it."""
    folder = tmp_path_factory.mktemp("generated")
    document, made = folder / "openapi.json", folder / "terrapod_api"
    document.write_bytes(raw)
    command = [
        sys.executable, "-c", GENERATE, "generate", "--path", str(document), "--output-path", str(made),
        "--meta", "none", "--fail-on-warning", "--config", str(_without_formatter(folder)),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "arning" not in done.stdout + done.stderr
    return made


def _without_formatter(folder: Path) -> Path:
    """How the code looks is nobody's business here, and a formatter takes longer than all else."""
    config = folder / "config.yaml"
    config.write_text("post_hooks: []\n")
    return config


@pytest.fixture
def client(package: Path) -> Iterator[ModuleType]:
    sys.path.insert(0, str(package.parent))
    try:
        yield importlib.import_module("terrapod_api")
    finally:
        sys.path.remove(str(package.parent))
        for name in [name for name in sys.modules if name.partition(".")[0] == "terrapod_api"]:
            del sys.modules[name]


@pytest.mark.slow
async def test_a_generated_client_lists_and_creates_workspaces(server: Running, client: ModuleType, raw: bytes) -> None:
    assert (await server.api.get("/openapi.json")).content == raw
    models: Any = importlib.import_module("terrapod_api.models")
    create: Any = importlib.import_module("terrapod_api.api.workspaces.post_organizations_org_workspaces")
    index: Any = importlib.import_module("terrapod_api.api.workspaces.get_organizations_org_workspaces")
    show: Any = importlib.import_module("terrapod_api.api.workspaces.get_workspaces_workspace")
    async with client.AuthenticatedClient(base_url=server.url, token=server.token) as session:
        for name in ("one", "two"):
            attributes = models.WorkspacesNewAttributes(name=name, auto_apply=True)
            body = models.PostOrganizationsOrgWorkspacesBody(data=models.WorkspacesNew(attributes=attributes))
            answer = await create.asyncio_detailed("default", client=session, body=body)
            assert answer.status_code == 201, answer.content
            made = answer.parsed.data
            assert (made.type_, made.attributes.name, made.attributes.auto_apply) == ("workspaces", name, True)
            again = await create.asyncio_detailed("default", client=session, body=body)
            assert again.status_code == 422
            assert again.parsed.errors[0].source.pointer == "/data/attributes/name"
        listed = await index.asyncio("default", client=session, pagesize=1, include="organization")
        assert [each.attributes.name for each in listed.data] == ["one"]
        assert listed.meta.pagination.total_count == 2
        assert listed.meta.pagination.next_page == 2
        assert [each.type_ for each in listed.included] == ["organizations"]
        shown = await show.asyncio(listed.data[0].id, client=session)
        assert shown.data.to_dict() == (await server.api.get(f"/workspaces/{listed.data[0].id}")).json()["data"]
    async with client.AuthenticatedClient(base_url=server.url, token="wrong") as session:
        refused = await index.asyncio_detailed("default", client=session)
        assert (refused.status_code, refused.parsed.errors[0].status) == (401, "401")


@pytest.mark.slow
def test_every_operation_has_its_module(raw: bytes, package: Path) -> None:
    document = json.loads(raw)
    operations = [each for path in document["paths"].values() for each in path.values()]
    modules = [file for file in (package / "api").rglob("*.py") if file.name != "__init__.py"]
    assert len(modules) == len(operations) > 150


@pytest.mark.slow
def test_the_document_is_one_of_openapi(raw: bytes) -> None:
    document = json.loads(raw)
    OpenAPIV31SpecValidator(document).validate()
    assert document["servers"][0]["url"] == "/"
    names = {tag["name"] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert set(operation["tags"]) <= names, (method, path)
            assert all("type" in each["schema"] for each in operation["parameters"]), (method, path)
    assert list(_bare_arrays(document, "")) == []


def _bare_arrays(found: Any, where: str) -> Iterator[str]:
    """Arrays of which nothing is said what they hold."""
    if isinstance(found, dict):
        kind = found.get("type")
        if (kind == "array" or (isinstance(kind, list) and "array" in kind)) and "items" not in found:
            yield where
        for name, member in found.items():
            yield from _bare_arrays(member, f"{where}/{name}")
    elif isinstance(found, list):
        for at, member in enumerate(found):
            yield from _bare_arrays(member, f"{where}/{at}")
