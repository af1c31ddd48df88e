"""Every route of the table as every kind of caller: the answer is what docs/permissions.md says, and nothing changed.

The table is the declarations' own. A new path parameter makes the sweep fail
until `Things` knows a real thing for it, and a new endpoint is swept by itself.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import httpx
import pytest
from tortoise import connections

from kit.browser import Browser
from kit.serving import DATA, Running, state_bytes, tar
from terrapod_listener.link.client import Server as ListenerClient
from terrapod_server import app
from terrapod_server.agents.model import LateState
from terrapod_server.identity import actions as identity
from terrapod_server.identity import sessions
from terrapod_server.identity.model import Session, User
from terrapod_server.kit.api import permissions
from terrapod_server.kit.api.declare import Page, Route
from terrapod_server.kit.caller import Access, Level
from terrapod_server.kit.db import database
from terrapod_server.kit.db.database import is_postgres
from terrapod_server.runs.model import Phase
from terrapod_shared import clock, errors, ids, wire

ROOT = Path(__file__).parents[2]
LEVELS = {level.name.lower(): level for level in Level if level}
#: Bodies of calls that need less with them than without.
BODIES: dict[str, DATA] = {"/api/v2/workspaces/{workspace}/configuration-versions": {"speculative": True}}
#: Rows of these say who called when; a refused call may write them.
VOLATILE = {
    "audit_checkpoint",
    "audit_entry",
    "brake",
    "listener_nonce",
    "repeat",
    "tortoise_migrations",
    "sqlite_sequence",
}
VOLATILE_COLUMNS = {"last_used_at", "last_seen_at"}


def test_the_page_is_what_the_declarations_say() -> None:
    assert (ROOT / "docs" / "permissions.md").read_text() == permissions.page(app.ENDPOINTS), "run make docs"


@dataclass
class Things:
    """One real thing for each path parameter."""

    server: Running
    labels: DATA
    listener: ListenerClient
    path: dict[str, str] = field(default_factory=dict)

    async def make(self) -> "Things":
        """A workspace with all that hangs on it, and a pool. Made by a platform admin, so owned by none of the callers."""
        server = self.server
        workspace = await server.workspace(labels=self.labels)
        at = f"/workspaces/{workspace['id']}"
        version = await server.configuration(workspace["id"])
        run = (await server.run(workspace["id"], version["id"], **{"plan-only": True})).json()["data"]
        raw = state_bytes(1, outputs={"word": {"value": "x", "type": "string"}})
        state = (await server.state(workspace["id"], raw)).json()["data"]
        put = await server.api.put(state["attributes"]["hosted-state-upload-url"], content=raw)
        assert put.status_code == 200, put.text
        outputs = (await server.api.get(f"/state-versions/{state['id']}/outputs")).json()["data"]
        variable = (await server.post(f"{at}/vars", {"key": "k", "value": "v", "category": "env"})).json()["data"]
        pool = (await server.post("/organizations/default/agent-pools", {"name": workspace["id"], "labels": self.labels})).json()["data"]  # fmt: skip
        join = (await server.post(f"/agent-pools/{pool['id']}/authentication-tokens", {"description": "t"})).json()[
            "data"
        ]
        name = workspace["attributes"]["name"]
        modules = "/organizations/default/registry-modules"
        module = (await server.post(modules, {"name": name, "provider": "local", "labels": self.labels})).json()["data"]
        announced = await server.post(f"{modules}/private/default/{name}/local/versions", {"version": "1.15.5"})
        put = await server.api.put(announced.json()["data"]["links"]["upload"], content=tar({"main.tf": b""}))
        assert put.status_code == 200, put.text
        tail = run["id"].partition("-")[2]
        late = await LateState.create(
            id=ids.make("late"), workspace_id=workspace["id"], run_id=run["id"], lease_number=1,
            listener_id="listener-gone", serial=9, md5="0" * 32, key="nowhere", sha256="0" * 64, size=1,
        )  # fmt: skip
        self.path = {
            "late_state": late.id,
            "org": "default",
            "workspace": workspace["id"],
            "workspace_name": name,
            "run": run["id"],
            "plan": f"plan-{tail}",
            "apply": f"apply-{tail}",
            "configuration_version": version["id"],
            "state_version": state["id"],
            "state_version_output": outputs[0]["id"],
            "variable": variable["id"],
            "pool": pool["id"],
            "listener": self.listener.identity.kept.listener_id,
            "token": join["id"],
            "user": "user-somebodyelse",
            "session": "ses-somebodyelse",
            "role": "swept",
            "module": module["id"],
            "namespace": "default",
            "name": name,
            "provider": "local",
            "email": "nobody@example.org",
            "project": "prj-00000000000000000default",
            "tool": "terraform",
            "version": "1.15.5",
            "os": "linux",
            "arch": "amd64",
            "phase": "plan",
            "artifact": "plan-file",
            "digest": "0" * 12,
            "file": "nothing.css",
        }
        return self

    def url(self, endpoint: Route) -> str:
        if endpoint.needs is Access.CAPABILITY:  # `token` is a secret there
            return re.sub(
                r"\{(\w+)\}", lambda found: "x" if found[1] == "token" else self.path[found[1]], endpoint.path
            )
        return re.sub(r"\{(\w+)\}", lambda found: self.path[found[1]], endpoint.path)


@dataclass(frozen=True)
class Caller:
    """`level` on the things of `Things`; the other members say how the guard sees it. Pages see its session alone."""

    token: str
    session: str = ""
    _: KW_ONLY
    level: Level = Level.NONE
    is_auditor: bool = False
    is_known: bool = True
    is_read_only: bool = False
    is_limited: bool = False
    is_run: bool = False


async def session_of(email: str) -> str:
    return (await sessions.begin(await identity.user(email), "local", (), "", ""))[1]


def expected(endpoint: Route, caller: Caller) -> int | None:
    """The status of a refusal, or None where the guard lets the caller in."""
    needs = endpoint.needs
    if needs in (Access.PUBLIC, Access.CAPABILITY):
        return None
    if isinstance(endpoint, Page):
        return of_a_page(endpoint, caller)
    if not caller.is_known:  # a call to a listener's endpoint that is not even in its protocol is told so first
        return 426 if needs is Access.LISTENER and not caller.token else 401
    if caller.is_run:
        return of_a_run(endpoint)
    is_refused = endpoint.method not in ("GET", "HEAD") and caller.is_read_only
    if isinstance(needs, Level):
        if caller.level is Level.NONE:
            return 404
        return 403 if caller.level < needs or is_refused else None
    is_let_in = {
        Access.USER: True,
        Access.SELF: not caller.is_limited,
        Access.AUDIT: caller.is_auditor,
        Access.PLATFORM: False,
        Access.LISTENER: False,
    }[needs]
    return None if is_let_in and not is_refused else 403


def of_a_page(page: Page, caller: Caller) -> int | None:
    """A session has all rights of its person, whatever the limits of the token that comes beside it."""
    if not caller.session:
        return 303
    if isinstance(page.needs, Level):
        return (404 if caller.level is Level.NONE else 403) if caller.level < page.needs else None
    return 403 if page.needs is Access.PLATFORM or (page.needs is Access.AUDIT and not caller.is_auditor) else None


def of_a_run(endpoint: Route) -> int | None:
    """Another run's token: what it may name at all is not there for it, but for modules, which every run may read."""
    if endpoint.path.startswith("/api/v2/registry/modules/"):
        return None
    if endpoint.run_token:
        return 404 if isinstance(endpoint.needs, Level) else None
    return 404 if isinstance(endpoint.needs, Level) else 403


async def dump() -> str:
    """A digest of all that the database holds, but for who called when."""
    client = connections.get("default")
    listing = (
        "SELECT tablename AS t FROM pg_tables WHERE schemaname = 'public'"
        if is_postgres()
        else "SELECT name AS t FROM sqlite_master WHERE type = 'table'"
    )
    seen = hashlib.sha256()
    for table in sorted(row["t"] for row in await client.execute_query_dict(listing)):
        if table in VOLATILE:
            continue
        rows = await client.execute_query_dict(f'SELECT * FROM "{table}"')
        lines = sorted(
            str({name: value for name, value in row.items() if name not in VOLATILE_COLUMNS}) for row in rows
        )
        seen.update(f"{table} {lines}".encode())
    return seen.hexdigest()


async def request(client: httpx.AsyncClient, endpoint: Route, url: str, caller: Caller) -> httpx.Response:
    """The call, with a body that is well-formed and asks for as little as can be; token and session on each."""
    headers = {"Authorization": f"Bearer {caller.token}" if caller.token else ""}
    headers["Cookie"] = f"terrapod={caller.session or caller.token}"
    content = (
        None
        if endpoint.method in ("GET", "HEAD", "DELETE")
        else json.dumps({"data": {"attributes": BODIES.get(endpoint.path, {})}})
    )
    if content:
        headers["Content-Type"] = "application/vnd.api+json"
    url = str(client.base_url.join(url))
    if "events" in endpoint.path and endpoint.method == "GET":  # a stream: its head is the answer
        async with client.stream(endpoint.method, url, headers=headers) as answer:
            if answer.status_code >= 400:
                await answer.aread()
            return answer
    return await client.request(endpoint.method, url, content=content, headers=headers)


@pytest.fixture
async def callers(server: Running, tmp_path: Path) -> AsyncIterator[tuple[dict[str, Caller], ListenerClient]]:
    found = {"stranger": Caller("", is_known=False), "garbage": Caller("tpod_nonsense", is_known=False)}
    found["nobody"] = Caller(await server.person("nobody@example.org"), await session_of("nobody@example.org"))
    found["nobody's session"] = Caller(found["nobody"].session, found["nobody"].session)
    for name, level in LEVELS.items():
        answer = await server.post(
            "/roles", {"name": f"s-{name}", "workspace-permission": name, "allow-labels": {"swept": "yes"}}
        )
        assert answer.status_code == 201, answer.text
        token = await server.person(f"{name}@example.org", f"s-{name}")
        found[name] = Caller(token, await session_of(f"{name}@example.org"), level=level)
    token = await server.person("audit@example.org", "audit")
    found["auditor"] = Caller(token, await session_of("audit@example.org"), level=Level.READ, is_auditor=True)
    found["read-only admin of the things"] = Caller(
        await server.person("ro@example.org", "s-admin", read_only=True),
        level=Level.READ,
        is_read_only=True,
        is_limited=True,
    )
    found["token for another workspace"] = Caller(
        await server.person("one@example.org", "s-admin", workspace_id="ws-elsewhere"), is_limited=True
    )
    # what is no page looks at no cookie
    await server.person("root@example.org", "admin")
    root = await session_of("root@example.org")
    found["an admin's cookie without a token"] = Caller("", root, level=Level.ADMIN, is_known=False)
    gone = await server.person("gone@example.org", "admin")
    found["deactivated admin's session"] = Caller(await session_of("gone@example.org"), is_known=False)
    await User.filter(email="gone@example.org").update(is_active=False)
    found["deactivated admin"] = Caller(gone, is_known=False)
    await server.person("late@example.org", "admin")
    found["session that is over"] = Caller(await session_of("late@example.org"), is_known=False)
    await Session.filter(user_id=(await identity.user("late@example.org")).id).update(expires_at=clock.now())
    found["session that was signed out"] = Caller(await session_of("late@example.org"), is_known=False)
    await sessions.end_all((await identity.user("late@example.org")).id)
    other = await server.listener(tmp_path / "other", "other")
    workspace = await server.workspace()
    version = await server.configuration(workspace["id"])
    waiting = asyncio.create_task(other.next_work(10))
    await server.run(workspace["id"], version["id"])
    work = await waiting
    assert work is not None
    await other.report(work.run_id, wire.Report(phase="plan", status="planning"), work.lease.number)
    # nobody prolongs it, and the sweep over all routes may take longer than a lease on a busy machine
    await Phase.filter(id=f"plan-{work.run_id.partition('-')[2]}").update(lease_until=await database.clock() + 3600)
    found["another run"] = Caller(work.run_token, is_run=True)
    yield found, other
    await other.close()


async def test_refused_callers_get_their_answer_and_change_nothing(
    server: Running, tmp_path: Path, callers: tuple[dict[str, Caller], ListenerClient]
) -> None:
    by_name, other = callers
    pool = (
        await server.post("/organizations/default/agent-pools", {"name": "swept", "labels": {"swept": "yes"}})
    ).json()
    listener = await server.listener(tmp_path / "swept", "swept", pool_id=pool["data"]["id"])
    things = await Things(server, {"swept": "yes"}, listener).make()
    wrong: list[str] = []
    before = await dump()
    for endpoint in app.ENDPOINTS:
        url = things.url(endpoint)
        for name, caller in by_name.items():
            status = expected(endpoint, caller)
            if status is None:
                continue
            answer = await request(server.api, endpoint, url, caller)
            if answer.status_code != status:
                wrong.append(
                    f"{endpoint.method} {url} as {name}: {answer.status_code} and not {status}: {answer.text[:200]}"
                )
        if endpoint.needs is Access.LISTENER:
            with pytest.raises(errors.NotFound):
                await other.call(endpoint.method, url)
        after = await dump()
        if after != before:
            wrong.append(f"{endpoint.method} {url}: somebody who was refused changed something")
        before = after
    assert wrong == []
    await listener.close()


async def test_the_level_that_is_needed_is_enough(
    server: Running, tmp_path: Path, callers: tuple[dict[str, Caller], ListenerClient]
) -> None:
    """Each endpoint lets in exactly the level that it names, on things of its own, since some calls remove them."""
    by_name, _ = callers
    pool = (
        await server.post("/organizations/default/agent-pools", {"name": "swept", "labels": {"swept": "yes"}})
    ).json()
    listener = await server.listener(tmp_path / "swept", "swept", pool_id=pool["data"]["id"])
    things = await Things(server, {"swept": "yes"}, listener).make()
    # what reads comes first; removing the listener comes last
    for endpoint in sorted(app.ENDPOINTS, key=lambda each: (each.method != "GET", "listener" in each.path)):
        if not isinstance(endpoint.needs, Level):
            continue
        if endpoint.method != "GET":
            things = await Things(server, {"swept": "yes"}, listener).make()
        caller = by_name[endpoint.needs.name.lower()]
        if endpoint.path.endswith("/force-unlock"):  # plan is enough for a lock of one's own
            lock = things.url(endpoint).replace("force-unlock", "lock")
            assert (await request(server.api, endpoint, lock, caller)).status_code == 200
        answer = await request(server.api, endpoint, things.url(endpoint), caller)
        said = f"{endpoint.method} {endpoint.path}: {answer.status_code}"
        assert answer.status_code not in (401, 403), said
        # a thing that the run has not made yet is not there for the highest either
        if answer.status_code == 404:
            admin = await request(server.api, endpoint, things.url(endpoint), Caller(server.token, caller.session))
            assert admin.status_code == 404, said
    await listener.close()


async def test_what_everybody_signed_in_may_call(
    server: Running, callers: tuple[dict[str, Caller], ListenerClient]
) -> None:
    by_name, _ = callers
    for endpoint in app.ENDPOINTS:
        if endpoint.method != "GET" or "{" in endpoint.path.replace("{org}", ""):
            continue
        url = endpoint.path.replace("{org}", "default")
        for name in ("nobody", "auditor"):
            caller = by_name[name]
            if endpoint.needs is Access.CAPABILITY or expected(endpoint, caller) is not None:
                continue
            answer = await request(server.api, endpoint, url, caller)
            good = (200, 303, 400) if isinstance(endpoint, Page) else (200, 204, 302, 422)
            if "/saml/" in endpoint.path or endpoint.path.startswith("/static/"):
                continue
            assert answer.status_code in good, (name, endpoint.path, answer.status_code, answer.text)


async def test_a_form_that_is_none_of_ours_changes_nothing(server: Running) -> None:
    """Each form of each page, by somebody who may send it: not from another site, nor without the token of browser and session."""
    token = await server.person("ann@example.org", "admin")
    ann, other = await session_of("ann@example.org"), await session_of("ann@example.org")
    async with Browser(server.url, cookies={"terrapod": other}) as another:
        await another.open("/account")
        theirs = another.read.forms[0].fields["csrf"]
    async with Browser(server.url, cookies={"terrapod": ann}) as browser:
        await browser.open("/account")
        ours = browser.read.forms[0].fields["csrf"]
        posts = [e for e in app.ENDPOINTS if isinstance(e, Page) and e.method == "POST" and not e.is_cross_site]
        assert len(posts) > 5
        wrong: list[tuple[str, dict[str, str]]] = [
            ("", {}), ("x", {}), (theirs, {}), (ours[:-1], {}), ("", {"X-CSRF-Token": theirs}),
            ("", {"Authorization": f"Bearer {token}"}), (ours, {"Sec-Fetch-Site": "cross-site"}),
            (ours, {"Sec-Fetch-Site": "same-site", "Origin": server.url}), (ours, {"Origin": "https://evil.example"}),
            (ours, {"Origin": "null"}),
        ]  # fmt: skip
        for page in posts:
            before = await dump()
            assert "{" not in page.path, "a path with things needs ids that are there"
            for csrf, headers in wrong:
                fields = {**dict.fromkeys(page.form, "others"), "csrf": csrf}
                answer = await browser.client.post(server.url + page.path, data=fields, headers=headers)
                assert (answer.status_code, "<h1>Not allowed</h1>" in answer.text) == (403, True), (
                    page.path,
                    csrf,
                    headers,
                )
            assert await dump() == before, page.path


async def test_a_token_of_somebody_who_is_let_in_again_is_another_one(server: Running) -> None:
    token = await server.person("back@example.org", "audit")
    async with server.as_(token) as back:
        assert (await back.get("/roles")).status_code == 200
        for active in (False, True):
            body = {"data": {"attributes": {"is-active": active}}}
            assert (await server.api.patch("/users/back@example.org", json=body)).status_code == 200
        assert (await back.get("/roles")).status_code == 401
    user = await identity.user("back@example.org")
    again = (await identity.create_token(user.id, "new")).text or ""
    async with server.as_(again) as back:
        assert (await back.get("/roles")).status_code == 200
