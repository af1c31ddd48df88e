"""A new release takes over what an earlier one has left: its home, its database, its runs under way. Nothing is lost.

The earlier programs are a commit of this repository, and run as they were, by the packages of this environment: what
they import stays in requirements-dev.lock as long as this test has them.
Servers are upgraded first and listeners after them, so there is a time when
listeners of the earlier release speak to the new server.
"""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from kit import filling, rows
from kit.filling import Filled
from kit.host import Host, is_alive
from kit.postgres import Postgres
from kit.programs import PRESENT, Programs, of_commit
from kit.remote import Remote, wait_for
from kit.schema import structure
from kit.serving import state_bytes
from kit.standing import Server
from terrapod_server import app
from terrapod_server.kit.db import database

#: The last commit before the changes of listener protocol, state rules, key ids and names.
EARLIER = "978b23cfbdccfc700fe1afcdf32904b9e00e6a07"
#: Says that both secrets arrived, without saying them.
DIGEST = """
variable "secret" { sensitive = true }
variable "other" { sensitive = true }
variable "plain" {}
output "digest" { value = nonsensitive(sha256("${var.secret}/${var.other}")) }
output "plain" { value = var.plain }
"""


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return of_commit(EARLIER, tmp_path_factory.mktemp("earlier"))


@dataclass
class Plan:
    """A plan at work, which ends when `go` is there; then the run waits for a person."""

    remote: Remote
    run: str
    go: Path

    @classmethod
    def begin(cls, host: Host) -> "Plan":
        go, remote = host.go.with_name("go-plan"), _workspace(host, **{"auto-apply": False})
        remote.upload(plan_sh=f"echo begins; until [ -e {go} ]; do sleep 0.05; done")
        made = cls(remote, remote.begin(), go)
        remote.until_logged(made.run, "plan", "begins")
        return made

    def check_planned(self) -> None:
        self.go.touch()
        self.remote.until(self.run, "planned")

    def end(self) -> None:
        """As above; or its lease was over before the new server was there, and it waits for a new listener."""
        self.go.touch()
        self.remote.until(self.run, "planned", "plan_queued")


@dataclass
class Apply:
    """An apply at work, which ends when `go` is there, and the state that it writes then."""

    host: Host
    remote: Remote
    run: str
    go: Path
    state: bytes

    @classmethod
    def begin(cls, host: Host, name: str) -> "Apply":
        go, state = host.go.with_name(f"go-{name}"), state_bytes(1, f"lineage-of-{name}", resources=2)
        remote = _workspace(host)
        remote.upload(
            apply_sh=f"""echo begins; until [ -e {go} ]; do sleep 0.05; done
mkdir -p "$(dirname "$STATE")"; cat > "$STATE" <<'END'
{state.decode()}
END
echo ends"""
        )
        made = cls(host, remote, remote.begin(), go, state + b"\n")
        remote.until_logged(made.run, "apply", "begins")
        return made

    @property
    def is_held(self) -> bool:
        waits = self.remote.run(self.run)["waits-for"]
        return waits is not None and waits["kind"] == "held"

    def check_applied(self) -> None:
        """It ran once, its state is current, and its listener keeps nothing of it."""
        self.go.touch()
        self.remote.until(self.run, "applied")
        assert _current(self.remote) == self.state
        log = self.remote.log(self.run, "apply")
        assert (log.count("begins"), log.count("ends")) == (1, 1), log
        wait_for(lambda: not (self.host.home / "journal" / self.run).exists())
        wait_for(lambda: not list((self.host.home / "spool").glob(f"*{self.run}*")))


def _workspace(host: Host, **attributes: Any) -> Remote:
    return Remote(host.remote.api, **{"execution-mode": "agent", "agent-pool-id": host.pool, **attributes})


def _current(remote: Remote) -> bytes:
    shown = remote.api.get(f"workspaces/{remote.id}/current-state-version").raise_for_status().json()["data"]
    raw = remote.api.get(shown["attributes"]["hosted-state-download-url"], follow_redirects=True)
    return raw.raise_for_status().content


class Site:
    """The server, hosts of listeners by name, and whatever was begun."""

    def __init__(self, folder: Path, database_url: str, terraform: Path, earlier: Programs) -> None:
        self.folder, self.terraform, self.earlier = folder, terraform, earlier
        self.server = Server(folder, database_url)
        self.hosts: dict[str, Host] = {}

    def open(self) -> httpx.Client:
        self.api = self.server.client()
        return self.api

    def host(self, name: str) -> Host:
        """A host whose listener, of the earlier release, is at work."""
        folder = self.folder / name
        folder.mkdir()
        made = self.hosts[name] = Host(self.server, self.api, folder, self.terraform, programs=self.earlier)
        file = made.home / "listener.toml"
        file.write_text(f"capacity = 4\n{file.read_text()}")
        made.start()
        made.until_heard()
        return made

    def end(self) -> None:
        for host in self.hosts.values():
            for name in ("go", "go-plan", "go-finishing", "go-spooled", *(f"go-{each}" for each in self.hosts)):
                host.go.with_name(name).touch()
            if host.process and host.process.poll() is None:
                host.kill()
        self.server.kill()


@pytest.fixture
async def site(empty_url: str, tmp_path: Path, terraform: Path, earlier: Programs) -> AsyncIterator[Site]:
    made = Site(tmp_path, empty_url, terraform, earlier)
    async with filling.provider(tmp_path, made.server.data):
        made.server.start(earlier)
        try:
            with made.open():
                yield made
        finally:
            made.end()


def _upgrade(host: Host) -> None:
    """Starts the new listener in the home of the old one, which is gone."""
    host.programs = PRESENT
    host.start()


@pytest.mark.long
async def test_a_new_release_takes_over_and_nothing_is_lost(
    site: Site, request: pytest.FixtureRequest, empty_url: str
) -> None:
    postgres = request.getfixturevalue("postgres") if empty_url.startswith("postgres") else None
    left = await _leave(site)
    _end_earlier_server(site, left)
    copy = await rows.copy(site.server.database_url, postgres, site.folder)
    site.server.start(PRESENT)
    _check_earlier_listener_finishes(left)
    _check_documents(site.api, left.filled)
    await _check_people(site, left.filled)
    _check_new_listener_goes_on(left)
    _check_lost_leases(left)
    _check_new_work(left)
    assert "the audit log is as it was written" in site.server.command(PRESENT, "audit", "verify")
    await _check_migration(copy, await _new(postgres, site.folder))


@dataclass
class Left:
    """All that the earlier release leaves."""

    filled: Filled
    finishing: Apply  #: at a listener that stays while the server is replaced
    planning: Plan  #: beside it
    busy: Host  #: its listener is killed while no server is there
    supervised: str  #: a run that applies there, by the real terraform
    supervisor: int  #: its supervisor's process
    engine: int  #: its terraform's
    spooled: Apply  #: there, too; its state is in the spool when the listener is killed
    replanned: Plan  #: there, too
    held: Apply  #: its listener is lost, and comes back
    gone: Apply  #: its listener is lost, and does not
    late: Apply  #: a person had given it up when its state came
    late_state: str  #: the id of that one


async def _leave(site: Site) -> Left:
    """Puts the earlier release to work, up to where its server is about to be replaced."""
    held, gone, late = (Apply.begin(site.host(name), name) for name in ("held", "gone", "late"))
    for each in (held, gone, late):
        each.host.kill()
    beside, busy = site.host("beside"), site.host("busy")
    filled = await filling.fill(site.server, site.earlier, site.api, beside, site.folder)
    finishing, planning = Apply.begin(beside, "finishing"), Plan.begin(beside)
    supervised = busy.begin()
    spooled, replanned = Apply.begin(busy, "spooled"), Plan.begin(busy)
    wait_for(lambda: all(each.is_held for each in (held, gone, late)))
    return Left(
        filled, finishing, planning, busy, supervised, busy.keeper(supervised), busy.engine(supervised),
        spooled, replanned, held, gone, late, _deliver_late(late),
    )  # fmt: skip


def _deliver_late(late: Apply) -> str:
    """Gives the run up; then its listener comes back with the state. The id of the late state."""
    assert late.remote.api.post(f"runs/{late.run}/actions/release").status_code == 202
    late.go.touch()
    late.host.start()
    waiting = f"workspaces/{late.remote.id}/late-states?filter[status]=waiting"
    found: str = wait_for(lambda: late.remote.api.get(waiting).json()["data"])[0]["id"]
    late.host.stop()
    return found


def _end_earlier_server(site: Site, left: Left) -> None:
    """Then a state is written that cannot be delivered, and a listener dies; its other apply goes on without it."""
    site.server.stop()
    left.spooled.go.touch()
    wait_for(lambda: left.busy.journal(left.spooled.run).get("step") == "spooled")
    left.busy.kill()
    assert is_alive(left.supervisor)
    assert is_alive(left.engine)


async def _new(postgres: Postgres | None, folder: Path) -> str:
    """The URL of a database with nothing in it."""
    return await postgres.fresh("upgrade-new") if postgres else f"sqlite://{folder / 'new.sqlite3'}"


async def _check_migration(copy: str, new: str) -> None:
    """Of what the earlier release had: every row is still there, with all that it held; and the schema is a new database's."""
    before = await rows.tables(copy)
    may_be_empty = {"listener_nonce"}  # a server that is alone remembers them itself
    assert {table for table, found in before.items() if not found} <= may_be_empty
    upgraded = await _migrated(copy)
    assert rows.missing(before, await rows.tables(copy)) == []
    assert upgraded == await _migrated(new)


async def _migrated(url: str) -> set[tuple[Any, ...]]:
    await database.open_(url, app.MODELS)
    try:
        await database.migrate()
        return await structure()
    finally:
        await database.close()


def _check_earlier_listener_finishes(left: Left) -> None:
    """A listener of the earlier release beside the new server is heard, and ends what it has; it need get no new work."""
    _check_heard(left.finishing.host)
    left.finishing.check_applied()
    left.planning.end()


def _check_new_listener_goes_on(left: Left) -> None:
    """It delivers what is in the spool, finds the supervisor, and plans again what had not ended."""
    _upgrade(left.busy)
    left.spooled.check_applied()
    assert is_alive(left.supervisor)
    assert is_alive(left.engine), "terraform goes on as if nothing had happened"
    left.busy.go.touch()
    left.busy.remote.until(left.supervised, "applied")
    assert left.busy.names() == ["first", "last", "slow"]
    assert left.busy.made.read_text().split() == ["first", "slow", "last"], "each once"
    assert left.busy.remote.log(left.supervised, "apply").count("Apply complete!") == 1
    wait_for(lambda: not is_alive(left.supervisor))
    left.replanned.check_planned()


def _check_lost_leases(left: Left) -> None:
    """They are held as before: one ends at its listener, one by a person; and the late state can be adopted."""
    assert left.held.is_held
    assert left.gone.is_held
    _upgrade(left.held.host)
    left.held.check_applied()
    api = left.gone.remote.api
    assert api.post(f"runs/{left.gone.run}/actions/release").status_code == 202
    left.gone.remote.until(left.gone.run, "errored")
    answer = api.post(f"late-states/{left.late_state}/actions/adopt", json={"data": {"attributes": {}}})
    assert answer.status_code == 200, answer.text
    assert _current(left.late.remote) == left.late.state


def _check_new_work(left: Left) -> None:
    """A listener that joined the earlier server takes new work: an apply that was planned before, and a new run."""
    host = left.finishing.host
    host.stop()
    _upgrade(host)
    _check_heard(host)
    _check_secrets(left.filled)
    left.planning.check_planned()
    assert host.remote.api.post(f"runs/{left.planning.run}/actions/apply").status_code == 202
    left.planning.remote.until(left.planning.run, "applied")


def _check_heard(host: Host) -> None:
    """The server hears its heartbeats."""

    def seen() -> tuple[str, str]:
        shown = host.remote.api.get(f"agent-pools/{host.pool}/listeners").json()["data"][0]["attributes"]
        return shown["status"], shown["last-seen-at"]

    before = seen()[1]
    wait_for(lambda: seen()[1] > before)
    assert seen()[0] == "online"


def _check_documents(api: httpx.Client, filled: Filled) -> None:
    for identity, raw in filled.states.items():
        answer = api.get(f"state-versions/{identity}/download", follow_redirects=True)
        assert (answer.status_code, answer.content) == (200, raw)
    for path, content in filled.bytes_at.items():
        answer = api.get(path, follow_redirects=True)
        assert (answer.status_code, answer.content) == (200, content), path
    for path, document in filled.answers.items():
        answer = api.get(path)
        assert answer.status_code == 200, (path, answer.text)
        found = filling.lost(document, answer.json()["data"])
        assert not found, f"{path}: {found}"
    root = api.base_url.copy_with(path="/")
    module = api.get(root.join("/api/v2/registry/modules/default/net/aws/1.0.0/download"))
    fetched = api.get(root.join(module.headers["X-Terraform-Get"]))
    assert (fetched.status_code, fetched.content) == (200, filling.MODULE)
    document, identity = filled.once
    again = api.post("organizations/default/workspaces", json=document, headers={"Idempotency-Key": "once"})
    assert (again.status_code, again.json()["data"]["id"]) == (201, identity)


async def _check_people(site: Site, filled: Filled) -> None:
    """Tokens and sessions go on, passwords and an unused join token are good, and rights are as they were."""
    lock = f"workspaces/{filled.secret.id}/actions"
    for name, status in (("writer", 200), ("reader", 403)):
        with site.server.client(filled.tokens[name]) as client:
            assert client.get("account/details").status_code == 200
            assert client.post(f"{lock}/lock").status_code == status
    assert site.api.post(f"{lock}/unlock").status_code == 200
    async with filling.browser(site.server, filled.cookies) as ann:
        assert (await ann.open("/account")).url.path == "/account", "her session goes on"
        assert filling.ANN in ann.page.text
    for sign_in in (filling.sign_in_by_password, filling.sign_in_by_provider):
        async with filling.browser(site.server) as person:
            await sign_in(person)
    argv = ("join", "--home", site.folder / "joins", "--server", f"https://{site.server.host}", "--name", "joins")
    PRESENT.call(PRESENT.listener, *argv, "--token", filled.join_token, "--ca", site.server.data / "ca.pem")


def _check_secrets(filled: Filled) -> None:
    """A new run with the real terraform has the sensitive variables, and follows the states that there were."""
    remote = filled.secret
    remote.upload(main_tf=DIGEST)
    run = remote.begin()
    remote.until(run, "applied")
    state = json.loads(_current(remote))
    expected = hashlib.sha256("/".join(filling.SECRETS.values()).encode()).hexdigest()
    assert state["outputs"]["digest"]["value"] == expected
    assert state["outputs"]["plain"]["value"] == ["a"]
    assert state["lineage"] == "line"
    assert state["serial"] > len(filled.states)
