"""No request, however wrong, gets a 5xx: made from the declarations, with what each of them says that it takes."""

import asyncio
import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kit.serving import Running, state_bytes
from terrapod_server import app
from terrapod_server.commands import accounts
from terrapod_server.identity import actions as identity
from terrapod_server.identity import oauth_api, sessions
from terrapod_server.kit.api import openapi
from terrapod_server.kit.api.declare import Attr, Endpoint, Many, Page, Resource, Route
from terrapod_server.kit.caller import Access
from terrapod_shared import ids

#: Their errors are pages, or in OAuth's form.
WAYS_IN = [
    e for e in app.ENDPOINTS if isinstance(e, Page) or e in oauth_api.ENDPOINTS or e.path == "/api/v2/auth/token"
]
CALLED = [e for e in app.ENDPOINTS if e.needs is not Access.LISTENER and not e.path.endswith("/runs/events")]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
HOSTILE = st.sampled_from(
    [
        "abc",
        "main",
        "1.15.5",
        "",
        "\0",
        "\ud7ff\U0010ffff",
        "x" * 300,
        "x" * 5000,
        "../..",
        "a,b",
        "%",
        "_",
        "'",
        '"',
        "${x}",
        "a\nb",
        "0",
        "-1",
    ]
)
KINDS: dict[type, st.SearchStrategy[Any]] = {
    str: HOSTILE | st.text(max_size=40),
    int: st.integers(-(1 << 70), 1 << 70),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    dict: st.dictionaries(HOSTILE | st.text(max_size=8), ANYTHING, max_size=3),
    list: st.lists(ANYTHING, max_size=3),
}


def value_of(attr: Attr) -> st.SearchStrategy[Any]:
    fitting = st.sampled_from(attr.choices) if attr.choices else KINDS.get(attr.kind, ANYTHING)
    return st.one_of(fitting, fitting, fitting, ANYTHING)


def linked(known: dict[str, str], name: str) -> st.SearchStrategy[Any]:
    identity = st.sampled_from([known.get(name, ""), *known.values()]) | st.just(known.get(name, "")) | HOSTILE
    return st.fixed_dictionaries(
        {"id": identity | ANYTHING},
        optional={
            "type": st.sampled_from(["workspaces", "tags", "tag-bindings", "runs", ""]) | ANYTHING,
            "attributes": st.dictionaries(st.sampled_from(["name", "key", "value"]), KINDS[str] | ANYTHING),
        },
    )


@st.composite
def document(draw: st.DrawFn, resource: Resource | None, known: dict[str, str], *, many: bool) -> Any:
    """A body that a resource's declaration would take, or nearly."""
    if draw(st.integers(0, 9)) == 0:
        return draw(ANYTHING)
    written = [attr for attr in (resource.attributes if resource else ()) if attr.write]
    if many:
        return {"data": draw(st.lists(linked(known, ""), max_size=3) | ANYTHING)}
    chosen = draw(st.lists(st.sampled_from(written), unique_by=lambda attr: attr.name)) if written else []
    data = {"type": resource.type if resource else "", "attributes": {a.name: draw(value_of(a)) for a in chosen}}
    related = {}
    for relation in resource.relations if resource else ():
        if relation.write and draw(st.booleans()):
            one = linked(known, relation.name.replace("-", "_"))
            member = st.lists(one, max_size=2) if isinstance(relation, Many) else one
            related[relation.name] = draw(st.fixed_dictionaries({"data": member | ANYTHING}) | ANYTHING)
    return {"data": {**data, "relationships": related}}


@st.composite
def request_of(draw: st.DrawFn, known: dict[str, str]) -> tuple[Route, str, bytes | None]:
    endpoint: Route = draw(st.sampled_from(CALLED))
    anything = st.sampled_from([*known.values()]) | HOSTILE | st.text(max_size=20)
    is_end = endpoint.method == "DELETE" or endpoint.path.endswith("/safe-delete")

    def segment(found: re.Match[str]) -> str:
        if found[1] in known and not is_end and draw(st.integers(0, 4)):
            return known[found[1]]
        return quote(draw(anything), safe="") or "-"

    path = re.sub(r"\{(\w+)\}", segment, endpoint.path)
    names = ["page[number]", "page[size]", "include", "sort", "q", "force", "offset", "limit", "filter[status]"]
    names += [each if isinstance(each, str) else each.name for each in getattr(endpoint, "filters", ())]
    texts = HOSTILE | st.text(max_size=20) | st.sampled_from(["9" * 30, "1", "name", "plan,workspace", "outputs"])
    query = "&".join(
        f"{quote(name)}={quote(text)}"
        for name, text in draw(st.dictionaries(st.sampled_from(names), texts, max_size=3)).items()
    )
    raw: bytes | None = None
    if endpoint.method != "GET":
        resource = endpoint.takes or endpoint.resource if isinstance(endpoint, Endpoint) else None
        body = draw(document(resource, known, many=isinstance(endpoint, Endpoint) and endpoint.body_many))
        raw = json.dumps(body).encode("utf-8", "surrogatepass") if draw(st.integers(0, 9)) else draw(st.binary())
    return endpoint, f"{path}?{query}", raw


@pytest.fixture
async def furnished(server: Running, tmp_path: Path) -> dict[str, str]:
    """A server with one of most things: ids and names that lead to them, by path parameter."""
    await server.listener(tmp_path / "home")
    workspace = (await server.workspace("furnished", labels={"a": "b"}))["id"]
    raw = state_bytes(1, outputs={"o": {"value": 1, "type": "number", "sensitive": True}})
    state = (await server.state(workspace, raw, state=base64.b64encode(raw).decode())).json()["data"]
    variable = await server.post(f"/workspaces/{workspace}/vars", {"key": "k", "category": "env"}, "vars")
    configuration = (await server.configuration(workspace))["id"]
    run = (await server.run(workspace, configuration)).json()["data"]
    await server.join_token()
    return {
        "org": "default", "workspace": workspace, "workspace_name": "furnished",
        "configuration_version": configuration, "variable": variable.json()["data"]["id"],
        "state_version": state["id"], "state_version_output": state["relationships"]["outputs"]["data"][0]["id"],
        "run": run["id"], "plan": run["relationships"]["plan"]["data"]["id"],
        "apply": run["relationships"]["apply"]["data"]["id"], "pool": await server.pool_id(),
        "project": "prj-00000000000000000default", "tool": "terraform", "version": "1.15.5",
        "os": "linux", "arch": "amd64", "other": ids.make("ws"),
    }  # fmt: skip


async def test_no_request_gets_a_5xx(server: Running, furnished: dict[str, str]) -> None:
    documented = openapi.document(app.ENDPOINTS)["paths"]
    loop = asyncio.get_running_loop()
    _, session = await sessions.begin(await identity.user(accounts.ADMIN_EMAIL), "local", (), "", "")

    async def send(method: str, path: str, raw: bytes | None) -> httpx.Response:
        cookie = {"Cookie": f"terrapod={session}"}
        return await server.api.request(method, server.url + path, content=raw, headers=cookie)

    @settings(
        max_examples=400, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(request_of(furnished))
    def each(request: tuple[Route, str, bytes | None]) -> None:
        endpoint, path, raw = request
        answer = asyncio.run_coroutine_threadsafe(send(endpoint.method, path, raw), loop).result(30)
        assert answer.status_code < 500 or (answer.status_code == 502 and "binary-cache" in path), (
            request,
            answer.text,
        )
        operation = documented[endpoint.path][endpoint.method.lower()]
        if answer.status_code < 300 and isinstance(endpoint, Endpoint):
            assert str(answer.status_code) in operation["responses"], request
        if answer.status_code >= 400 and endpoint in WAYS_IN:
            assert "<h1>" in answer.text or answer.json().keys() & {"error", "errors"}
        elif answer.status_code >= 400:
            assert answer.json()["errors"][0]["detail"]

    await asyncio.to_thread(each)
