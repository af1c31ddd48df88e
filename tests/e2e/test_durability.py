"""Nothing is lost: listener, keeper and engine are killed at the steps of an apply, and the state arrives."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import terraform_shim

from kit.host import CONFIG, Host, is_alive
from kit.remote import Remote, wait_for
from kit.serving import state_bytes, tar
from kit.site import Site

#: Far from the five seconds of a poll, whose end nobody waits for; a busy machine starts no thread in less.
AT_ONCE_S = 4.0
MORE = 'resource "terraform_data" "more" {}\n'


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


def test_an_apply_outlives_its_listener_and_ends_as_if_nothing_had_happened(host: Host) -> None:
    run = host.begin()
    keeper = host.keeper(run)
    for _ in range(2):  # the second is killed too, while it goes on with what the first has left
        found = host.log.read_text().count("goes on under its keeper")
        host.kill()
        assert is_alive(keeper)
        host.start()
        wait_for(lambda: host.log.read_text().count("goes on under its keeper") > found)  # noqa: B023
    host.go.touch()
    host.remote.until(run, "applied")
    assert host.made.read_text().split() == ["first", "slow", "last"]
    assert host.names() == ["first", "last", "slow"]
    log = host.remote.log(run, "apply")
    assert log.count("Apply complete!") == 1
    assert log.count("gone on") == 2, "the command, and what it printed"
    wait_for(lambda: not host.journal(run))
    assert not is_alive(keeper)
    assert not list((host.home / "spool").glob("*"))
    assert not (host.home / "work" / run).exists()


def test_an_apply_that_ended_while_no_listener_ran(host: Host) -> None:
    run = host.begin()
    keeper = host.keeper(run)
    host.kill()
    host.go.touch()
    wait_for(lambda: not is_alive(keeper))
    host.start()
    host.remote.until(run, "applied")
    assert host.names() == ["first", "last", "slow"]
    assert host.remote.log(run, "apply").count("Apply complete!") == 1


def test_a_host_that_lost_all_delivers_what_had_been_saved(host: Host) -> None:
    run = host.begin()
    pids = [host.engine(run), host.keeper(run)]
    host.kill()
    for pid in reversed(pids):  # the keeper first: it would tell the tale
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    host.start()
    shown = host.remote.until(run, "errored")
    assert "cut off" in shown["error-message"]
    assert "first" in host.names()
    assert host.made.read_text().split() == ["first", "slow"], "never run again"


def test_a_killed_keeper_takes_terraform_with_it_and_the_state_is_saved(host: Host) -> None:
    run = host.begin()
    engine = host.engine(run)
    os.kill(host.keeper(run), signal.SIGKILL)
    wait_for(lambda: not is_alive(engine))  # interrupted, by the kernel or the listener: what it waits for never comes
    shown = host.remote.until(run, "errored")
    assert "cut off" in shown["error-message"]
    assert "first" in host.names()
    assert "last" not in host.made.read_text()


def test_a_state_is_on_the_server_while_the_apply_goes_on(host: Host) -> None:
    run = host.begin()
    wait_for(
        lambda: (
            "current-state-version" in host.remote.api.get(f"workspaces/{host.remote.id}").text
            and host.remote.api.get(f"workspaces/{host.remote.id}/current-state-version").status_code == 200
        )
    )
    assert "first" in host.names()
    assert host.remote.run(run)["status"] == "applying"
    host.go.touch()
    host.remote.until(run, "applied")
    assert host.names() == ["first", "last", "slow"]


def test_an_idle_listener_leaves_within_a_second(host: Host) -> None:
    assert host.stop() < AT_ONCE_S


def test_the_second_signal_interrupts_and_the_state_arrives(host: Host) -> None:
    run = host.begin()
    assert host.process
    host.process.terminate()
    wait_for(lambda: "takes no more work" in host.log.read_text())
    host.process.terminate()
    shown = host.remote.until(run, "canceled")
    assert shown
    assert "first" in host.names()
    assert host.process.wait(30) == 0
    assert "last" not in host.made.read_text()


def test_an_idle_listener_leaves_within_a_second_of_a_server_that_does_not_answer(host: Host, site: Site) -> None:
    site.signal_server(signal.SIGSTOP)
    try:
        assert host.stop() < AT_ONCE_S
    finally:
        site.signal_server(signal.SIGCONT)


def test_the_third_signal_kills_and_the_state_is_not_lost(host: Host) -> None:
    """An engine that does not heed an interrupt."""
    remote = Remote(host.remote.api, **{"execution-mode": "agent", "agent-pool-id": host.pool})
    hangs = f"""trap 'echo heard' INT; mkdir -p "$(dirname "$STATE")"; cat > "$STATE" <<'END'
{state_bytes(1, "line").decode()}
END
echo hangs; until [ -e {host.go} ]; do sleep 0.05; done"""
    remote.upload(apply_sh=hangs)
    run = remote.begin()
    remote.until_logged(run, "apply", "hangs")
    engine = host.engine(run)
    assert host.process
    host.process.terminate()
    wait_for(lambda: "takes no more work" in host.log.read_text())
    host.process.terminate()
    remote.until_logged(run, "apply", "heard")
    assert is_alive(engine)
    host.process.terminate()
    assert host.process.wait(30) == 0
    assert not is_alive(engine)
    if host.journal(run):  # it left before the server had answered
        host.start()
    remote.until(run, "canceled", "errored")
    assert "killed by SIGKILL" in remote.workspace()["lock-reason"], "it may have made what no state tells"
    current = remote.api.get(f"workspaces/{remote.id}/current-state-version").json()["data"]["attributes"]
    assert current["serial"] == 1
    wait_for(lambda: not list((host.home / "spool").glob("*")))


def test_a_plan_whose_listener_was_killed_runs_again(host: Host) -> None:
    """It is given back at the restart; its lease need not end first."""
    remote = Remote(host.remote.api, **{"execution-mode": "agent", "agent-pool-id": host.pool})
    remote.upload(plan_sh=f"echo begins; until [ -e {host.go} ]; do sleep 0.05; done")
    run = remote.begin()
    remote.until_logged(run, "plan", "begins")
    host.kill()
    host.go.touch()
    host.start()
    asked = time.monotonic()
    remote.until(run, "applied")
    assert time.monotonic() - asked < 20, "a lease has 40 s"


def test_what_could_not_be_saved_in_place_is_delivered(host: Host) -> None:
    """`errored.tfstate` beside an older state; and a torn one beside a whole state."""
    remote = Remote(host.remote.api, **{"execution-mode": "agent", "agent-pool-id": host.pool})
    script = """mkdir -p "$(dirname "$STATE")"; cat > "$STATE" <<'END'
{state}
END
cat > errored.tfstate <<'END'
{errored}
END
exit 1"""
    for errored, serial in ((state_bytes(3, "line"), 3), (state_bytes(9, "line")[:-2], 4)):
        remote.upload(
            apply_sh=script.format(
                state=state_bytes(serial if serial == 4 else 2, "line").decode(), errored=errored.decode()
            )
        )
        run = remote.begin()
        assert "exit code 1" in remote.until(run, "errored")["error-message"]
        current = remote.api.get(f"workspaces/{remote.id}/current-state-version").json()["data"]["attributes"]
        assert current["serial"] == serial
    wait_for(lambda: not list((host.home / "spool").glob("*")))


def test_who_joins_again_keeps_the_work(host: Host, site: Site) -> None:
    """The key is refused when the apply ends; the listener goes on as the one that joined in its place."""
    run = host.begin()
    old = json.loads((host.home / "identity.json").read_bytes())
    token = host.remote.api.post(
        f"agent-pools/{host.pool}/authentication-tokens", json={"data": {"attributes": {"description": "again"}}}
    ).json()["data"]["attributes"]["token"]
    ca = str(site.data / "ca.pem")
    host.call("join", "--server", f"https://{site.host}", "--token", token, "--name", old["name"], "--ca", ca)
    assert json.loads((host.home / "identity.json").read_bytes())["key"] != old["key"]
    host.go.touch()
    host.remote.until(run, "applied")
    assert host.names() == ["first", "last", "slow"]


@pytest.mark.slow
def test_a_state_of_a_released_run_leaves_the_spool_for_the_servers_keeping(host: Host) -> None:
    """The listener comes back when a person has given the run up: it changes nothing, and loses nothing."""
    run = host.begin()
    wait_for(lambda: host.remote.api.get(f"workspaces/{host.remote.id}/current-state-version").status_code == 200)
    before = host.state()
    host.kill()
    release = f"runs/{run}/actions/release"
    wait_for(lambda: host.remote.api.post(release).status_code < 300)  # once its lease is over
    host.start()
    host.go.touch()
    wait_for(lambda: f"{run} is no longer ours" in host.log.read_text())
    wait_for(lambda: not host.journal(run))
    assert not list((host.home / "spool").glob("*"))
    assert host.state() == before
    assert host.made.read_text().split() == ["first", "slow", "last"]


def test_a_drain_lets_the_run_finish(host: Host) -> None:
    run = host.begin()
    told = host.call("status")
    assert host.process
    assert f"process:     {host.process.pid}\n" in told
    assert f"{run}: apply, apply, kept by process {host.keeper(run)}" in told
    host.call("drain")
    host.call("drain")
    assert f"process:     {host.process.pid}, draining\n" in host.call("status")
    assert host.remote.run(run)["status"] == "applying"
    host.go.touch()
    host.call("drain", "--wait")
    assert host.process.wait(10) == 0
    host.remote.until(run, "applied")
    assert "process:     none" in host.call("status")


def test_a_state_is_rescued_from_a_host_whose_listener_is_gone(host: Host) -> None:
    run = host.begin()
    keeper = host.keeper(run)
    host.kill()
    with pytest.raises(AssertionError, match="still applied"):
        host.call("rescue", run, "--push")
    host.go.touch()
    wait_for(lambda: not is_alive(keeper))
    printed = json.loads(host.call("rescue", run))
    assert sorted(each["name"] for each in printed["resources"]) == ["first", "last", "slow"]
    target = host.home.parent / "rescued"
    host.call("rescue", run, "--output", str(target))
    assert json.loads(target.read_text()) == printed
    assert target.stat().st_mode & 0o777 == 0o600
    assert "it is current" in host.call("rescue", run, "--push")
    assert host.state() == printed
    host.start()
    host.remote.until(run, "applied")
    assert host.state() == printed


def test_a_server_that_is_away_for_the_whole_end_of_an_apply(host: Host, site: Site) -> None:
    run = host.begin()
    keeper = host.keeper(run)
    site.signal_server(signal.SIGSTOP)
    try:
        host.go.touch()
        wait_for(lambda: not is_alive(keeper))
        wait_for(lambda: host.journal(run).get("step") == "spooled")
        host.kill()  # and the listener once more on top of it
        host.start()
        wait_for(lambda: "was left at spooled" in host.log.read_text())
    finally:
        site.signal_server(signal.SIGCONT)
    host.remote.until(run, "applied")
    assert host.names() == ["first", "last", "slow"]
    assert host.remote.log(run, "apply").count("Apply complete!") == 1


def test_a_full_spool_costs_no_state(host: Host) -> None:
    """The spool is a file system of its own with no room left; the state stays in the work folder until it is there."""
    spool = host.home / "spool"
    spool.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", spool], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with contextlib.suppress(OSError), (spool / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        run = host.begin()
        host.go.touch()
        host.remote.until(run, "applied")
        assert host.names() == ["first", "last", "slow"]
        assert "could not be copied to the spool" in host.remote.log(run, "apply")
        wait_for(lambda: not host.journal(run))
    finally:
        subprocess.run(["umount", "-l", spool], check=True)


def test_nobody_is_left_behind_by_an_apply(host: Host) -> None:
    """A grandchild in a session of its own, whose parents are gone, too."""
    begun = host.made.parent / "daemon"
    command = f"setsid sh -c 'sleep 600123 & touch {begun}' >/dev/null 2>&1 & until [ -e {begun} ]; do sleep 0.02; done"
    host.remote.upload(
        main_tf=f'resource "terraform_data" "a" {{\n provisioner "local-exec" {{ command = {json.dumps(command)} }}\n}}\n'
    )
    run = host.remote.begin()
    host.remote.until(run, "applied")
    left = subprocess.run(["pgrep", "-f", "-r", "R,S,D", "^sleep 600123"], capture_output=True, check=False)
    assert begun.exists()
    assert left.stdout == b""


@pytest.mark.parametrize("step", ["offered", "accepted", "apply", "ended", "spooled", "acknowledged"])
def test_a_listener_is_killed_at_each_step(host: Host, step: str) -> None:
    """Stopped as soon as its journal says that step, then killed."""
    host.go.touch()
    assert host.process
    host.remote.upload(main_tf=CONFIG.format(made=host.made, go=host.go))
    run = host.remote.begin()
    found: dict[str, Any] = {}

    def is_there() -> bool:
        nonlocal found
        found = host.journal(run)
        return found.get("work", {}).get("phase") == "apply" and (
            found["step"] == step or (step == "ended" and (host.home / "journal" / run / "exit.json").exists())
        )

    end = time.monotonic() + 60
    while not is_there() and time.monotonic() < end:  # in a tight loop: a step is over in milliseconds
        if "work" not in found and (host.home / "journal" / run).exists() is False and host.made.exists():
            break  # it was over before it was seen
    os.kill(host.process.pid, signal.SIGSTOP)
    host.kill()
    host.start()
    shown = host.remote.until(run, "applied", "errored")
    made = host.made.read_text().split() if host.made.exists() else []
    assert len(made) == len(set(made)), "nothing is made twice"
    if shown["status"] == "applied":
        assert made == ["first", "slow", "last"]
    if made:
        assert host.names() == sorted(made)
    if step in ("offered", "accepted"):  # given back and taken again, or ended before anything was made
        assert shown["status"] == "errored" or made
    wait_for(lambda: not host.journal(run))
    assert not list((host.home / "spool").glob("*"))


def test_an_apply_on_another_host_than_its_plan_keeps_its_state(
    site: Site, api: httpx.Client, host: Host, tmp_path: Path, terraform: Path
) -> None:
    """A plan file names where the state is to be; a host whose home lies elsewhere must not write it there."""
    remote = Remote(
        api,
        **{
            "terraform-version": terraform_shim.VERSION, "execution-mode": "agent", "agent-pool-id": host.pool,
            "auto-apply": False,
        },
    )  # fmt: skip
    (tmp_path / "far" / "off").mkdir(parents=True)
    other = Host(site, api, tmp_path / "far" / "off", terraform, beside=host)
    for number, folder in enumerate(("", "deep/er")):
        remote.upload(main_tf=CONFIG.format(made=host.made, go=host.go))
        host.go.touch()
        if number:
            api.patch(f"workspaces/{remote.id}", json={"data": {"attributes": {"working-directory": folder}}})
            files = {f"{folder}/main.tf": (CONFIG.format(made=host.made, go=host.go) + MORE).encode()}
            version = remote.post(f"workspaces/{remote.id}/configuration-versions", {"auto-queue-runs": False})
            assert api.put(version["attributes"]["upload-url"], content=tar(files)).status_code == 200
        run = remote.begin()
        remote.until(run, "planned")
        host.stop()
        other.start()
        assert api.post(f"runs/{run}/actions/apply").status_code == 202
        remote.until(run, "applied")
        assert f"Terraform listener {other.home.parent.name}" not in remote.log(run, "plan")
        shown = api.get(f"workspaces/{remote.id}/current-state-version").json()["data"]["attributes"]
        state = api.get(shown["hosted-state-download-url"], follow_redirects=True).json()
        assert sorted(each["name"] for each in state["resources"]) == ["first", "last", *["more"] * number, "slow"]
        assert not list((host.home / "work").glob("*")), "nothing was written at the plan's host"
        other.stop()
        host.start()
    assert host.made.read_text().split() == ["first", "slow", "last"], "each was made once"
