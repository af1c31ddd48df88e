"""`terrapod-server up` that is killed: its port is free, its listener ends with it, and the next one goes on with the apply."""

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import terraform_shim

from kit import scripted
from kit.daemon import is_alive
from kit.postgres import Postgres
from kit.remote import Remote, wait_for
from kit.serving import state_bytes
from kit.site import Site

WAITS = "echo begun; until [ -e {go} ]; do sleep 0.05; done"


@pytest.fixture(params=["bubblewrap", "none"])
def up(request: pytest.FixtureRequest, tmp_path: Path, terraform: Path) -> Iterator[Site]:
    with Site(tmp_path, terraform, TERRAPOD_LISTENER_ISOLATION=request.param) as started:
        yield started


@pytest.fixture
def api(up: Site) -> Iterator[httpx.Client]:
    with up.api() as client:
        yield client


def listener(site: Site) -> int:
    return int((site.data / "listener" / "lock").read_text())


def below(pid: int) -> dict[int, str]:
    """Every process that came from this one, and its name."""
    found, parents = {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                stat = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = (
                int(stat.rpartition(")")[2].split()[1]),
                stat.partition("(")[2].rpartition(")")[0],
            )
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for each, (above, name) in parents.items():
            if above == parent:
                found[each] = name
                waiting.append(each)
    return found


def opened(pid: int) -> dict[int, str]:
    """What a process has open, by number; nothing of one that has ended meanwhile."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[int(link.name)] = str(link.readlink())
    return found


def test_an_apply_outlives_a_server_that_is_killed_with_its_listener(up: Site, api: httpx.Client) -> None:
    remote, go = Remote(api), up.shared / "go"
    state = state_bytes(1, "line", {"done": {"value": "here", "type": "string"}}).decode()
    remote.upload(apply_sh=f"{WAITS.format(go=go)}\nmkdir -p $(dirname $STATE); cat > $STATE <<'END'\n{state}\nEND\n")
    run = remote.begin()
    remote.until_logged(run, "apply", "begun")
    old = listener(up)
    record = up.data / "listener" / "journal" / run / "journal.json"
    supervisor = int(re.findall(r'"keeper":(\d+)', record.read_text())[0])
    up.kill()
    wait_for(lambda: not is_alive(old))
    assert is_alive(supervisor), "the apply goes on"
    assert "has ended: it ends too, and 1 runs are left" in up.log
    up.start()
    assert listener(up) != old
    assert is_alive(supervisor)
    go.touch()
    remote.until(run, "applied")
    outputs = api.get(f"workspaces/{remote.id}/current-state-version-outputs").json()["data"]
    assert [each["attributes"]["value"] for each in outputs] == ["here"]


def test_a_plan_ends_with_a_server_that_is_killed_and_is_made_again(up: Site, api: httpx.Client) -> None:
    remote, go = Remote(api), up.shared / "go"
    remote.upload(plan_sh=WAITS.format(go=go))
    run = remote.begin()
    remote.until_logged(run, "plan", "begun")
    engines = [pid for pid, name in below(listener(up)).items() if name in ("sh", "scripted")]
    assert engines
    up.kill()
    for each in engines:
        wait_for(lambda each=each: not is_alive(each))  # type: ignore[misc]
    up.start()
    go.touch()
    remote.until(run, "applied")


def test_no_child_inherits_what_its_parent_holds_open(up: Site, api: httpx.Client) -> None:
    """Sockets, databases, locks and journals of server and listener, in their children while both phases are at work."""
    plans, applies, go = Remote(api), Remote(api), up.shared / "go"
    plans.upload(plan_sh=WAITS.format(go=go))
    applies.upload(apply_sh=WAITS.format(go=go))
    runs = [(plans, plans.begin(), "plan"), (applies, applies.begin(), "apply")]
    for remote, run, phase in runs:
        remote.until_logged(run, phase, "begun")
    of_server, of_listener = opened(up.pid), opened(listener(up))
    private = {link for link in of_server.values() if link.startswith("socket:") or str(up.data) in link}
    assert any(link.endswith("terrapod.sqlite3") for link in private)
    for pid, name in below(up.pid).items():
        found = {number: link for number, link in opened(pid).items() if number > 2}
        assert not private & set(found.values()), (name, found)
        if pid == listener(up):
            continue
        held = {link for number, link in of_listener.items() if number > 2 and not link.startswith("anon_inode:")}
        shared = held & set(found.values())
        # the supervisor of an apply keeps the run's user, and opens the log by itself
        assert all(link.startswith("/run/terrapod-users/") or link.endswith("/log") for link in shared), (name, shared)
        if name in ("sh", "scripted", "sleep"):  # the run's own
            own = {number: link for number, link in found.items() if not link.startswith(str(up.shared))}
            assert set(own) <= {10}, (name, own)  # where a shell keeps its script
    go.touch()
    for remote, run, _ in runs:
        remote.until(run, "applied", "planned_and_finished")


@pytest.mark.parametrize("up", ["none"], indirect=True)
def test_the_port_is_free_at_once(up: Site) -> None:
    """Also where the listener cannot end: it is stopped."""
    pid = listener(up)
    os.kill(pid, 19)
    try:
        up.kill()
        with pytest.raises(httpx.ConnectError), up.api() as client:
            client.get("ping")
    finally:
        os.kill(pid, 18)
    wait_for(lambda: not is_alive(pid))
    up.start()


def test_on_postgres_too(postgres: Postgres, tmp_path: Path, terraform: Path) -> None:
    url = asyncio.run(postgres.fresh("killed"))
    with Site(tmp_path, terraform, TERRAPOD_DATABASE_URL=url) as started, started.api() as client:
        test_an_apply_outlives_a_server_that_is_killed_with_its_listener(started, client)


class Bare(Site):
    """A site whose listener has no engine in its settings."""

    def listener_settings(self) -> str:
        return f'writable = ["{self.shared}"]\n{terraform_shim.settings()}'


@pytest.mark.slow
def test_engines_of_the_path_need_no_internet(tmp_path: Path, terraform: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run is there before the listener: it waits for it. A version switcher's script stands in front."""
    switcher, links = tmp_path / "switcher", tmp_path / "links"
    switcher.mkdir()
    (switcher / "terraform").write_text("#!/bin/sh\nexit 1\n")
    (switcher / "terraform").chmod(0o755)
    links.mkdir()
    (links / "terraform").symlink_to(scripted.binary(tmp_path / "versions" / "terraform_1.6.1"))
    monkeypatch.setenv("PATH", f"{switcher}:{links}:{os.defpath}")
    nowhere = {f"TERRAPOD_ENGINES__{name}_URL": "http://127.0.0.1:9" for name in ("TERRAFORM", "TOFU", "TOFU_INDEX")}
    named = scripted.binary(tmp_path / "named", "OpenTofu v1.12.1\n")
    with Bare(tmp_path, terraform, options=("--engine", str(named)), **nowhere) as site, site.api() as api:
        remote = Remote(api, **{"terraform-version": "latest"})
        remote.upload()
        remote.until(remote.begin(), "applied")
        pool = api.get("organizations/default/agent-pools").json()["data"][0]["id"]
        listener = api.get(f"agent-pools/{pool}/listeners").json()["data"][0]["attributes"]
        offered = {(each["tool"], each["version"]) for each in listener["local-engines"]}
        assert offered == {("terraform", scripted.VERSION), ("tofu", "1.12.1")}
        assert f"  terraform {scripted.VERSION} ({tmp_path}/versions/terraform_1.6.1)\n" in site.log
        assert f"  tofu 1.12.1 ({named})\n" in site.log
        assert f"  not used: {switcher}/terraform: is a script" in site.log
        site.move()
        site.start()
        with site.api() as moved:  # the listener joined at another port
            again = Remote(moved)
            again.upload()
            again.until(again.begin(), "applied")
