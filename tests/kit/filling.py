"""A server's tables filled through its API and commands, as people, terraform and sign-in leave them."""

import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from kit.browser import Browser
from kit.host import Host
from kit.oidc import CLIENT, real_provider
from kit.programs import Programs
from kit.release_site import release_zip
from kit.remote import DATA, Remote
from kit.serving import state_bytes, tar
from kit.standing import Server

PASSWORD = "a heron stands in shallow water"
ANN, BEA = "ann@example.org", "bea@example.org"
#: Values of sensitive variables; runs use them, and nobody reads them.
SECRETS = {"terraform": "the-secret-of-a-variable", "env": "the-secret-of-an-environment"}
MODULE = tar({"main.tf": b'output "word" { value = "hello" }\n'})
_ORGANIZATION = "organizations/default"
_START = "/api/v2/auth/authorize?provider=own"


@dataclass
class Filled:
    """What was put in, to be looked for again."""

    secret: Remote  #: a workspace whose runs need both secrets
    states: dict[str, bytes] = field(default_factory=dict)  #: by id of the state version
    tokens: dict[str, str] = field(default_factory=dict)  #: texts of tokens: `reader` may not write
    cookies: httpx.Cookies = field(default_factory=httpx.Cookies)  #: of Ann's session
    runs: dict[str, str] = field(default_factory=dict)  #: status by id
    once: tuple[DATA, str] = ({}, "")  #: a request with the Idempotency-Key `once`, and its answer's id
    join_token: str = ""  #: of a pool, not used yet
    bytes_at: dict[str, bytes] = field(default_factory=dict)  #: what is downloaded, by path
    answers: dict[str, Any] = field(default_factory=dict)  #: documents, by path


@contextlib.asynccontextmanager
async def provider(folder: Path, data: Path) -> AsyncIterator[None]:
    """An OpenID Connect provider, and the settings by which the server at `data` knows it."""
    async with real_provider(folder) as issuer:
        data.mkdir(mode=0o700)
        names = {"name": "own", "issuer": issuer, "client_id": CLIENT[0], "client_secret": CLIENT[1]}
        (data / "server.toml").write_text(
            "[[auth.oidc]]\n" + "".join(f'{name} = "{value}"\n' for name, value in names.items())
        )
        async with httpx.AsyncClient(base_url=issuer) as at_provider:
            claims = {"email": BEA, "email_verified": True, "name": "Bea"}
            assert (await at_provider.put("/users/bea", json=claims)).status_code == 204
        yield


async def fill(server: Server, programs: Programs, api: httpx.Client, host: Host, folder: Path) -> Filled:
    """`host` takes the runs; its listener is at work."""
    filled = Filled(_with_secrets(api, host))
    _people(server, programs, api, filled)
    await _sessions(server, filled)
    _states(api, filled)
    _module(api, filled)
    archive = folder / "terraform_1.5.7_linux_amd64.zip"
    archive.write_bytes(release_zip("terraform"))
    server.command(programs, "binaries", "import", "--unsigned", archive)
    _runs(api, host, filled)
    pool = _pool(filled)
    _once(api, filled)
    _written_down(api, filled, pool)
    return filled


def _with_secrets(api: httpx.Client, host: Host) -> Remote:
    made = Remote(api, **{"execution-mode": "agent", "agent-pool-id": host.pool, "labels": {"env": "prod", "team": ""},
                          "description": "holds secrets", "terraform-version": "1.15.5"})  # fmt: skip
    for key, category in (("secret", "terraform"), ("TF_VAR_other", "env")):
        made.post(f"workspaces/{made.id}/vars",
                  {"key": key, "value": SECRETS[category], "category": category, "sensitive": True})  # fmt: skip
    made.post(f"workspaces/{made.id}/vars", {"key": "plain", "value": '["a"]', "category": "terraform", "hcl": True})
    return made


def _people(server: Server, programs: Programs, api: httpx.Client, filled: Filled) -> None:
    said = server.command(programs, "users", "create", "--email", ANN, "--password-stdin", stdin=f"{PASSWORD}\n")
    assert "can sign in now" in said
    role = {"name": "developer", "workspace-permission": "write", "allow-labels": {"env": "prod"}}
    assert api.post("roles", json={"data": {"attributes": role}}).status_code == 201
    given = {"provider-name": "local", "email": ANN, "roles": ["developer"]}
    assert api.put("role-assignments", json={"data": {"attributes": given}}).status_code == 200
    me = api.get("account/details").json()["data"]["id"]
    for name, limits in (("writer", {}), ("reader", {"read-only": True})):
        path, attributes = f"users/{me}/authentication-tokens", {"description": name, **limits}
        filled.tokens[name] = filled.secret.post(path, attributes)["attributes"]["token"]


async def _sessions(server: Server, filled: Filled) -> None:
    """Ann comes by her password, after one that was wrong; Bea by the provider; and one who leaves half way."""
    async with browser(server) as ann:
        await ann.sign_in(ANN, "not the password of Ann")
        assert ann.page.status_code in (401, 403, 422), ann.page.status_code
        await sign_in_by_password(ann)
        filled.cookies.update(ann.client.cookies)
    async with browser(server) as bea, browser(server) as nobody:
        await sign_in_by_provider(bea)
        await nobody.open(_START)


async def sign_in_by_password(browser: Browser) -> None:
    page = await browser.sign_in(ANN, PASSWORD)
    assert page.url.path == "/account", page.text


async def sign_in_by_provider(browser: Browser) -> None:
    await browser.open(_START)
    await browser.open(browser.left_to)
    page = await browser.submit(sub="bea")
    assert page.url.path == "/account", page.text


def browser(server: Server, cookies: httpx.Cookies | None = None) -> Browser:
    return Browser(f"https://{server.host}", verify=server.trust(), cookies=cookies)


def _states(api: httpx.Client, filled: Filled) -> None:
    own = f"workspaces/{filled.secret.id}"
    assert api.post(f"{own}/actions/lock", json={"reason": "states come"}).status_code == 200
    for serial in (1, 2, 3):
        outputs = {"word": {"value": f"word-{serial}", "type": "string", "sensitive": serial == 2}}
        raw = state_bytes(serial, "line", outputs, resources=serial)
        announced = {"serial": serial, "lineage": "line", "md5": hashlib.md5(raw).hexdigest()}
        more = {"json-state": base64.b64encode(raw).decode()} if serial == 3 else {}
        made = filled.secret.post(f"{own}/state-versions", announced | more)
        url = made["attributes"]["hosted-state-upload-url"]
        assert api.put(url, content=raw).status_code == 200
        filled.states[made["id"]] = raw
    assert api.post(f"{own}/actions/unlock").status_code == 200
    reader = Remote(api, labels={"reads": "states"})
    assert api.patch(own, json={"data": {"attributes": {"global-remote-state": False}}}).status_code == 200
    linked = {"data": [{"type": "workspaces", "id": reader.id}]}
    assert api.post(f"{own}/relationships/remote-state-consumers", json=linked).status_code == 204
    assert api.post(f"workspaces/{reader.id}/actions/lock", json={"reason": "stays locked"}).status_code == 200


def _module(api: httpx.Client, filled: Filled) -> None:
    modules = f"{_ORGANIZATION}/registry-modules"
    filled.secret.post(modules, {"name": "net", "provider": "aws", "labels": {"team": "net"}})
    version = filled.secret.post(f"{modules}/private/default/net/aws/versions", {"version": "1.0.0"})
    assert api.put(version["links"]["upload"], content=MODULE).status_code == 200


def _pool(filled: Filled) -> str:
    """One that few may use; its id."""
    allowed = {"data": [{"type": "workspaces", "id": filled.secret.id}]}
    attributes = {"name": "few", "organization-scoped": False, "labels": {"env": "dev"}}
    pool: str = filled.secret.post(
        f"{_ORGANIZATION}/agent-pools", attributes, relationships={"allowed-workspaces": allowed}
    )["id"]
    made = filled.secret.post(f"agent-pools/{pool}/authentication-tokens", {"description": "for later"})
    filled.join_token = made["attributes"]["token"]
    return pool


def _once(api: httpx.Client, filled: Filled) -> None:
    """A request that may be repeated."""
    document = {"data": {"attributes": {"name": "once", "labels": {"made": "once"}}}}
    answer = api.post(f"{_ORGANIZATION}/workspaces", json=document, headers={"Idempotency-Key": "once"})
    assert answer.status_code == 201, answer.text
    filled.once = (document, answer.json()["data"]["id"])


def _runs(api: httpx.Client, host: Host, filled: Filled) -> None:
    """Runs in all states in which a run can rest."""

    def begin(
        options: DATA | None = None, *, plan: str = "echo planned", auto_apply: bool = False
    ) -> tuple[Remote, str]:
        remote = Remote(api, **{"execution-mode": "agent", "agent-pool-id": host.pool, "auto-apply": auto_apply})
        remote.upload(plan_sh=plan, apply_sh="echo applied")
        return remote, remote.begin(**(options or {}))

    rest = {
        "applied": begin(auto_apply=True),
        "errored": begin(plan="echo fails; exit 1"),
        "planned": begin(),
        "discarded": begin(),
        "planned_and_saved": begin({"save-plan": True}),
        "planned_and_finished": begin({"plan-only": True}),
    }
    for status, (remote, run) in rest.items():
        remote.until(run, "planned" if status == "discarded" else status)
        filled.runs[run] = status
    _, run = rest["discarded"]
    assert api.post(f"runs/{run}/actions/discard", json={"comment": "not now"}).status_code == 202
    remote, _ = rest["planned"]  # it holds its workspace's queue
    canceled, pending = remote.begin(), remote.begin()
    assert api.post(f"runs/{canceled}/actions/cancel").status_code == 202
    filled.runs |= {canceled: "canceled", pending: "pending"}
    for run, status in filled.runs.items():
        assert host.remote.run(run)["status"] == status


def _written_down(api: httpx.Client, filled: Filled, pool: str) -> None:
    """What people and programs read, as it is now."""
    own = f"workspaces/{filled.secret.id}"
    filled.answers = {
        path: api.get(path).raise_for_status().json()["data"]
        for path in (
            own, f"{own}/vars", f"{own}/state-versions", f"{own}/relationships/remote-state-consumers",
            f"{own}/current-state-version", f"{own}/current-state-version-outputs",
            "roles", "role-assignments", "admin/binary-cache", f"agent-pools/{pool}", f"{_ORGANIZATION}/registry-modules",
            *(f"runs/{run}" for run in filled.runs), *(f"runs/{run}/run-events" for run in filled.runs),
            "admin/audit-log?filter[resource-type]=roles",
        )
    }  # fmt: skip
    for run, status in filled.runs.items():
        if status in ("applied", "errored", "planned", "planned_and_finished"):
            for phase in ("plan", *["apply"] * (status == "applied")):
                path = filled.secret.api.get(f"runs/{run}/{phase}").json()["data"]["attributes"]["log-read-url"]
                filled.bytes_at[path] = _bytes(api, path)
    for run in (run for run, status in filled.runs.items() if status == "applied"):
        related = api.get(f"runs/{run}").json()["data"]["relationships"]
        paths = (f"configuration-versions/{related['configuration-version']['data']['id']}/download",
                 f"plans/{related['plan']['data']['id']}/json-output")  # fmt: skip
        filled.bytes_at |= {path: _bytes(api, path) for path in paths}


def _bytes(api: httpx.Client, path: str) -> bytes:
    answer = api.get(path, follow_redirects=True)
    assert answer.status_code == 200, (path, answer.text)
    assert answer.content
    return answer.content


def lost(before: Any, after: Any) -> str:
    """What of a document is not in a later one: a sentence, or empty.

    Lists of things are compared by id, and may have grown; URLs with a right in them are new each time.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for name, value in before.items():
            if name not in after:
                return f"{name} is gone"
            if found := lost(value, after[name]):
                return f"{name}: {found}"
        return ""
    if isinstance(before, list) and all(isinstance(each, dict) and "id" in each for each in before):
        later = {each["id"]: each for each in after}
        return next((f"{each['id']}: {found}" for each in before if (found := lost(each, later.get(each["id"])))), "")
    if isinstance(before, str) and before.startswith("https://"):
        return "" if isinstance(after, str) else f"no URL but {after!r}"
    return "" if before == after else f"{before!r} was, and is {after!r}"
