"""Applies that end so that nobody knows what they have made, with real processes: who waits, what is said, the way out."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from kit.host import Host, is_alive
from kit.remote import DATA, Remote, wait_for
from kit.serving import state_bytes
from kit.site import BIN, Site, both


@pytest.fixture
def api(site: Site) -> Iterator[httpx.Client]:
    with site.api() as client:
        yield client


@pytest.fixture
def host(site: Site, api: httpx.Client, tmp_path: Path, terraform: Path) -> Iterator[Host]:
    made = Host(site, api, tmp_path, terraform)
    made.start()
    made.until_heard()
    yield made
    made.go.touch()
    if made.process and made.process.poll() is None:
        made.kill()


def scripted(host: Host, script: str) -> tuple[Remote, str]:
    """A run whose apply is this script; `STATE` is the state's file, `$PPID` the engine."""
    remote = Remote(host.remote.api, **{"execution-mode": "agent", "agent-pool-id": host.pool})
    remote.upload(apply_sh=f'mkdir -p "$(dirname "$STATE")"\n{script}')
    return remote, remote.begin()


def locked(remote: Remote, run: str) -> str:
    """Asserts that the run keeps its workspace; the reason."""
    found = remote.api.get(f"workspaces/{remote.id}").json()["data"]
    assert found["attributes"]["locked"]
    assert found["relationships"]["locked-by"]["data"] == {"type": "runs", "id": run}
    reason: str = found["attributes"]["lock-reason"]
    assert run in reason
    return reason


def freed(remote: Remote) -> None:
    answer = remote.api.post(f"workspaces/{remote.id}/actions/force-unlock")
    assert answer.status_code == 200, answer.text


def supervisor(host: Host, run: str) -> None:
    os.kill(host.keeper(run), signal.SIGKILL)


def host_lost(host: Host, run: str) -> None:
    pids = [host.engine(run), host.keeper(run)]
    host.kill()
    for pid in reversed(pids):
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    host.start()


def engine(host: Host, run: str) -> None:
    """As the kernel does it when memory is short."""
    os.kill(host.engine(run), signal.SIGKILL)


@both
@pytest.mark.parametrize("kill", [supervisor, host_lost, engine])
def test_after_a_kill_nothing_is_made_a_second_time(host: Host, kill: Callable[[Host, str], None]) -> None:
    run = host.begin()
    waiting = host.remote.begin()
    kill(host, run)
    shown = host.remote.until(run, "errored")
    assert "The workspace stays locked by this run" in shown["error-message"]
    assert "The state is unknown: " in host.remote.log(run, "apply")
    reason = locked(host.remote, run)
    assert ("killed by SIGKILL" if kill is engine else "cut off") in reason
    next_ = host.remote.run(waiting)
    assert (next_["status"], next_["waits-for"]["kind"]) == ("pending", "unknown-state")
    assert host.made.read_text().split() == ["first", "slow"]
    assert "first" in host.names()
    host.go.touch()
    host.made.chmod(0o666)  # the next run may be another user
    freed(host.remote)
    host.remote.until(waiting, "applied")
    assert host.names() == ["first", "last", "slow"]
    assert host.made.read_text().split().count("first") == 1


def test_an_interrupt_that_is_heeded_leaves_it_known(host: Host) -> None:
    run = host.begin()
    waiting = host.remote.begin()
    assert host.remote.api.post(f"runs/{run}/actions/cancel").status_code == 202
    host.remote.until(run, "canceled")
    host.go.touch()
    host.made.chmod(0o666)
    host.remote.until(waiting, "applied")
    assert host.made.read_text().split().count("first") == 1


def restart(host: Host) -> None:
    """Until the new process has found what the last one left."""
    host.stop()
    said = host.log.read_text().count("keeps its folder")
    host.start()
    wait_for(lambda: host.log.read_text().count("keeps its folder") > said)


def status(host: Host) -> str:
    return host.call("status")


def refused(host: Host, *argv: str) -> str:
    done = subprocess.run(
        [BIN / "terrapod-listener", argv[0], "--home", host.home, *argv[1:]],
        env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, (argv, done.stdout, done.stderr)
    return done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "said"),
    [
        (': > "$STATE"; kill -9 $PPID', "terraform was killed before it had written a state"),
        ('printf \'{"version": 4,\' > "$STATE"; kill -9 $PPID', "the state that was left is not whole"),
        (': > "$STATE"; exit 1', "terraform could not write its state: the file is empty"),
    ],
)
def test_what_a_killed_terraform_left_stays_until_it_is_dropped(host: Host, script: str, said: str) -> None:
    remote, run = scripted(host, script)
    shown = remote.until(run, "errored")
    assert said in shown["error-message"]
    assert said in locked(remote, run)
    assert said in remote.log(run, "apply")
    wait_for(lambda: host.journal(run).get("left"))
    for _ in range(2):
        told = status(host)
        assert "runs:        0 under way" in told
        assert f"{run}: {said}" in told
        assert f"terrapod-listener rescue --drop {run}" in told
        restart(host)
    assert f"apply {run} was left at" not in host.log.read_text(), "nobody works on it any more"
    assert (host.home / "work" / run).stat().st_mode & 0o777 == 0o700
    assert (host.home / "work" / run).stat().st_uid == os.geteuid()
    assert "is still worked on" not in host.call("rescue", run, "--drop")
    assert not (host.home / "work" / run).exists()
    assert not host.journal(run)
    assert "left:" not in status(host)
    assert f"this host has nothing of {run}" in refused(host, "rescue", run, "--drop")
    freed(remote)


def late_states(remote: Remote) -> list[DATA]:
    found: list[DATA] = remote.api.get(f"workspaces/{remote.id}/late-states").json()["data"]
    return found


@pytest.mark.long
@pytest.mark.parametrize("verb", ["adopt", "drop"])
def test_what_is_left_goes_when_its_late_state_is_settled(host: Host, verb: str) -> None:
    """The supervisor has copied a whole state, and the newer one is empty: the copy comes late."""
    whole = state_bytes(3, "line").decode()
    remote, run = scripted(
        host,
        f"cat > \"$STATE\" <<'END'\n{whole}\nEND\necho written; until [ -e {host.go} ]; do sleep 0.05; done\n"
        ': > "$STATE"; kill -9 $PPID',
    )
    remote.until_logged(run, "apply", "written")
    spool = host.home / "spool" / run
    wait_for(lambda: [path for path in spool.glob("state-*") if path.name[6:].isdecimal()])
    keeper = host.keeper(run)
    host.kill()
    host.go.touch()
    wait_for(lambda: not is_alive(keeper))
    wait_for(lambda: remote.api.post(f"runs/{run}/actions/release").status_code < 300)
    host.start()
    wait_for(lambda: host.journal(run).get("left"))
    assert "an older copy of the state is delivered" in status(host)
    [late] = late_states(remote)
    assert late["attributes"]["serial"] == 3
    restart(host)
    assert host.journal(run), "nobody has settled it yet"
    answer = remote.api.post(f"late-states/{late['id']}/actions/{verb}", json={"data": {"type": "late-states"}})
    assert answer.status_code == 200, answer.text
    assert remote.workspace()["locked"] is (verb == "drop")
    host.stop()  # which may have heard of it before
    host.start()
    wait_for(lambda: not host.journal(run))
    assert not (host.home / "work" / run).exists()


def test_a_whole_state_is_not_dropped_by_the_way(host: Host) -> None:
    run = host.begin()
    assert "is still worked on" in refused(host, "rescue", run, "--drop", "--yes")
    host.go.touch()
    host.remote.until(run, "applied")
    host.stop()
    spooled = host.home / "spool" / run / "state-7"
    spooled.parent.mkdir(parents=True)
    spooled.write_bytes(state_bytes(9, "line"))
    assert "say --drop --yes" in refused(host, "rescue", run, "--drop")
    assert spooled.exists()
    assert "1 states of the spool" in host.call("rescue", run, "--drop", "--yes")
    assert not spooled.exists()


@both
def test_terraform_pushes_a_state_beside_the_run(host: Host, site: Site) -> None:
    """The way out without a late state: the real `terraform state push` takes the lock, writes, and lets go of it."""
    run = host.begin()
    waiting = host.remote.begin()
    engine(host, run)
    host.remote.until(run, "errored")
    locked(host.remote, run)
    folder = site.example(host.remote.name, "")
    site.ok(folder, "init")
    state = folder / "pulled.tfstate"
    state.write_text(site.ok(folder, "state", "pull"))
    document = json.loads(state.read_bytes())
    document["serial"] += 1
    document["resources"] = [each for each in document["resources"] if each["name"] != "slow"]
    state.write_text(json.dumps(document))
    site.ok(folder, "state", "push", state.name)
    assert host.names() == ["first"]
    locked(host.remote, run)
    assert host.remote.run(waiting)["status"] == "pending"
    host.go.touch()
    host.made.chmod(0o666)
    freed(host.remote)
    host.remote.until(waiting, "applied")
    assert host.names() == ["first", "last", "slow"]
    assert host.made.read_text().split().count("first") == 1
