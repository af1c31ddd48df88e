"""The listener's process against a real server: what is refused, killed, given back, and what a run may see."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kit import scripted
from kit.release_site import ReleaseSite, release_site, release_zip
from kit.remote import Remote, wait_for
from kit.serving import state_bytes
from kit.site import BIN, Site

GRACE_S = 2
STATE_MOST = 200_000


@pytest.fixture(scope="module")
def releases() -> Iterator[ReleaseSite]:
    with release_site() as started:
        started.index("1.12.1", "1.12.2", "1.12.3")
        yield started


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, terraform: Path, releases: ReleaseSite) -> Iterator[Site]:
    """A site with small limits, and a release site of its own."""
    settings = {f"TERRAPOD_ENGINES__{name.upper()}": url for name, url in releases.engines.items()}
    settings |= {"TERRAPOD_RUNS__CANCEL_GRACE_S": str(GRACE_S), "TERRAPOD_LIMITS__STATE_BYTES": str(STATE_MOST)}
    with Site(tmp_path_factory.mktemp("strict"), terraform, **settings) as started:
        yield started


@pytest.fixture
def api(strict: Site) -> Iterator[httpx.Client]:
    with strict.api() as client:
        yield client


def writes(raw: bytes) -> str:
    """A script that leaves a state."""
    return f"""mkdir -p "$(dirname "$STATE")"; cat > "$STATE" <<'END'\n{raw.decode()}\nEND\n"""


def status(site: Site) -> str:
    argv = [str(BIN / "terrapod-listener"), "status", "--home", str(site.data / "listener")]
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("left", "why"),
    [
        (state_bytes(2, "another"), "lineage"),
        (state_bytes(2, "line")[:-2], "not JSON"),
        (state_bytes(2, "line", {"a": {"value": "x" * STATE_MOST, "type": "string"}}), str(STATE_MOST)),
    ],
    ids=["conflict", "invalid", "too large"],
)
def test_a_state_that_the_server_refuses_stays_and_is_shown(
    strict: Site, api: httpx.Client, left: bytes, why: str
) -> None:
    remote = Remote(api)
    remote.upload(apply_sh=writes(state_bytes(1, "line")))
    remote.until(remote.begin(), "applied")
    remote.upload(apply_sh=writes(left))
    run = remote.begin()
    shown = remote.until(run, "errored")
    assert "the server did not take the state" in shown["error-message"]
    assert why in shown["error-message"]
    log = remote.log(run, "apply")
    spooled = Path(re.findall(r"kept on the listener at (\S+)", log)[0])
    assert spooled.read_bytes().strip() == left
    assert spooled.stat().st_mode & 0o777 == 0o600
    told = status(strict)
    assert f"{run}: serial 2, lineage " in told
    assert f"put aside, `terrapod-listener rescue {run} --push`" in told
    current = api.get(f"workspaces/{remote.id}/current-state-version").json()["data"]["attributes"]
    assert current["serial"] == 1, "nothing half written"
    again = Remote(api)
    again.upload()
    again.until(again.begin(), "applied")
    pool = api.get("organizations/default/agent-pools").json()["data"][0]["id"]

    def is_told() -> bool:
        listener = api.get(f"agent-pools/{pool}/listeners").json()["data"][0]["attributes"]
        return run in [entry["run_id"] for entry in listener["spooled-states"]]

    wait_for(is_told)  # though the listener is idle


def test_a_state_of_any_content_is_delivered(strict: Site, api: httpx.Client) -> None:
    """What would have ended the server, and the next one at each start of the listener."""
    remote = Remote(api)
    left = state_bytes(1, "line", {"n": {"value": 7, "type": "number"}}).replace(
        b'"value": 7', b'"value": ' + b"1" * 5000
    )
    remote.upload(apply_sh=writes(left))
    run = remote.begin()
    remote.until(run, "applied")
    current = api.get(f"workspaces/{remote.id}/current-state-version").json()["data"]["attributes"]
    assert (current["serial"], current["resources-processed"]) == (1, False)
    assert "number" in current["resources-error"]
    assert run not in status(strict)


HANGS = """
trap '' INT TERM
(trap '' INT TERM; sleep 60{mark}) &
echo "child=$!"
wait
sleep 60{mark}
"""


def runs_still(mark: int) -> bool:
    """Asked by its words: in a box it knows its pid by another number."""
    found = subprocess.run(["pgrep", "-f", "-r", "R,S,D", f"^sleep 60{mark}$"], capture_output=True, check=False)
    return found.returncode == 0


def test_a_force_cancel_kills_what_an_interrupt_does_not_end(api: httpx.Client) -> None:
    remote = Remote(api)
    remote.upload(apply_sh=writes(state_bytes(1, "line")) + HANGS.format(mark=(mark := 71_001)))
    run = remote.begin()
    remote.until(run, "applying")
    remote.until_logged(run, "apply", "child=")
    wait_for(lambda: runs_still(mark))
    force = f"runs/{run}/actions/force-cancel"
    assert api.post(force).status_code == 409
    assert api.post(f"runs/{run}/actions/cancel").status_code == 202
    assert api.post(force).status_code == 409, "its grace is not over"
    wait_for(lambda: remote.run(run)["actions"]["is-force-cancelable"])
    assert (remote.run(run)["status"], remote.workspace()["locked"]) == ("applying", True)
    assert runs_still(mark), "a cancel alone never kills an apply"
    remote.upload()
    following = remote.begin()
    assert remote.run(following)["status"] == "pending"
    assert api.post(force).status_code == 202
    remote.until(run, "canceled")
    assert not runs_still(mark), "the run is over when they are gone, not before"
    assert remote.run(run)["force-canceled-at"]
    state = api.get(f"workspaces/{remote.id}/current-state-version").json()["data"]["attributes"]
    assert state["serial"] == 1, "what the engine had saved is here"
    assert remote.run(following)["status"] == "pending", "what it made after that, nobody knows"
    assert "killed" in remote.workspace()["lock-reason"]
    assert api.post(f"workspaces/{remote.id}/actions/force-unlock").status_code == 200
    remote.until(following, "applied")


def test_a_canceled_plan_is_killed_after_its_grace(api: httpx.Client) -> None:
    remote = Remote(api)
    remote.upload(plan_sh=HANGS.format(mark=(mark := 71_002)))
    run = remote.begin()
    remote.until_logged(run, "plan", "child=")
    wait_for(lambda: runs_still(mark))
    assert api.post(f"runs/{run}/actions/cancel").status_code == 202
    remote.until(run, "canceled")
    assert not runs_still(mark)
    assert not remote.run(run)["force-canceled-at"]


def test_an_apply_is_of_its_plan_in_its_folder_with_its_lock_file(api: httpx.Client) -> None:
    remote = Remote(api)
    remote.upload(
        init_sh="[ -e .terraform.lock.hcl ] || cat /proc/sys/kernel/random/uuid > .terraform.lock.hcl",
        plan_sh="echo lock=$(cat .terraform.lock.hcl); echo leftover > left-by-the-plan",
        apply_sh="echo lock=$(cat .terraform.lock.hcl); ls",
    )
    run = remote.begin()
    remote.until(run, "applied")
    logs = {phase: remote.log(run, phase) for phase in ("plan", "apply")}
    calls = {phase: [json.loads(call) for call in re.findall(r"called (\[.*\])", log)] for phase, log in logs.items()}
    assert [call[0] for call in calls["plan"]] == ["init", "plan"]
    assert [call[0] for call in calls["apply"]] == ["init", "apply"]
    assert len({call[-1] for each in calls.values() for call in each}) == 1, "one absolute path"
    assert "-lockfile=readonly" not in calls["plan"][0]
    assert "-lockfile=readonly" in calls["apply"][0]
    locks = {re.findall(r"lock=(\S+)", log)[0] for log in logs.values()}
    assert len(locks) == 1
    assert "left-by-the-plan" not in logs["apply"], "unpacked anew"


def test_a_server_that_does_not_answer_never_slows_the_engine(strict: Site, api: httpx.Client) -> None:
    go, done = strict.shared / "go", strict.shared / "done"
    remote = Remote(api)
    remote.upload(
        plan_sh=f"echo waits; until [ -e {go} ]; do sleep 0.02; done; seq -f 'line %010g' 1 400000; touch {done}"
    )
    run = remote.begin()
    remote.until_logged(run, "plan", "waits")
    strict.signal_server(signal.SIGSTOP)
    try:
        go.touch()
        wait_for(done.exists)
    finally:
        strict.signal_server(signal.SIGCONT)
    remote.until(run, "applied")
    url = api.get(f"runs/{run}/plan").json()["data"]["attributes"]["log-read-url"]
    log = b""
    while part := api.get(url, params={"limit": "4000000", "offset": str(len(log))}).content:
        log += part
    assert re.findall(rb"line (\d+)", log) == [b"%010d" % number for number in range(1, 400_001)]


def test_runs_are_side_by_side_in_folders_of_their_own(strict: Site, api: httpx.Client) -> None:
    script = "touch {own}; i=0; until [ -e {other} ]; do sleep 0.05; i=$((i+1)); [ $i -lt 600 ] || exit 1; done"
    runs = []
    for own, other in (("a", "b"), ("b", "a")):
        remote = Remote(api)
        remote.upload(
            plan_sh=script.format(own=strict.shared / own, other=strict.shared / other) + "; echo $HOME $TMPDIR $PWD"
        )
        runs.append((remote, remote.begin()))
    seen = set()
    for remote, run in runs:
        remote.until(run, "applied")
        seen |= set(re.findall(r"called .*\n(\S+) (\S+) (\S+)\n", remote.log(run, "plan")))
    assert len({folder for folders in seen for folder in folders}) == 6


def test_schemas_are_asked_for_once(api: httpx.Client) -> None:
    asked = []
    one, other = Remote(api), Remote(api)
    for remote, lock in ((one, "a"), (one, "a"), (one, "b"), (other, "a")):
        remote.upload(init_sh=f"echo {lock} > .terraform.lock.hcl", providers_sh="echo schemas are asked for >&2")
        run = remote.begin()
        remote.until(run, "applied")
        asked.append("schemas are asked for" in remote.log(run, "plan"))
    assert asked == [True, False, True, True], "by workspace and lock file"


def test_an_engine_that_is_not_what_was_announced_is_refused(strict: Site, api: httpx.Client) -> None:
    program = strict.folder / "bin" / "scripted"
    good = program.read_bytes()
    remote = Remote(api)
    remote.upload()
    program.write_bytes(good + b"# changed\n")
    try:
        run = remote.begin()
        shown = remote.until(run, "errored")
    finally:
        program.write_bytes(good)
    assert "the plan was offered 4 times and no listener could take it" in shown["error-message"]
    assert f"terraform {scripted.VERSION} cannot be had" in shown["error-message"]
    assert "cannot be had" in remote.log(run, "plan")
    events = [event["attributes"] for event in api.get(f"runs/{run}/run-events").json()["data"]]
    assert [event["action"] for event in events].count("refused") == 4
    remote.until(remote.begin(), "applied")


def test_tofu_comes_from_its_release_site(strict: Site, api: httpx.Client, releases: ReleaseSite) -> None:
    """No real tofu is on this machine: the release holds a script. What is shown is how a run comes to it."""
    raw = releases.release("tofu", "1.12.1", release_zip("tofu", scripted.program(strict.folder / "tofu").read_bytes()))
    tofu = {"User-Agent": "OpenTofu/1.12.1 (+https://opentofu.org)"}
    by_client = Remote(api, **{"terraform-version": "1.12.1"})
    assert by_client.workspace()["execution-backend"] == "terraform"
    by_setting = Remote(api, **{"terraform-version": "1.12.1", "execution-backend": "tofu"})
    for remote, headers in ((by_client, tofu), (by_setting, None)):
        remote.upload()
        run = remote.begin(headers=headers)
        shown = remote.until(run, "applied")
        assert (shown["execution-backend"], shown["terraform-version"]) == ("tofu", "1.12.1")
        assert "OpenTofu v1.12.1 (sha256 " in remote.log(run, "apply")
    assert sum(path.endswith(".zip") for path in releases.asked) == 1, "fetched once, by the server"
    kept = list((strict.data / "listener" / "engines").glob("*/release.zip"))
    assert [path.read_bytes() for path in kept] == [raw]

    with strict.api() as client:
        client.headers.update(tofu)
        assert Remote(client).workspace()["execution-backend"] == "tofu"
    missing = Remote(api, **{"terraform-version": "1.12.2", "execution-backend": "tofu"})
    missing.upload()
    shown = missing.until(missing.begin(), "errored")
    assert "4 times" in shown["error-message"]
    assert "1.12.2" in shown["error-message"]


def test_a_damaged_engine_is_not_run(strict: Site, api: httpx.Client, releases: ReleaseSite) -> None:
    """What lies on the listener's disk is looked at again before it is run."""
    program = scripted.program(strict.folder / "tofu-2").read_bytes() + b"# of 1.12.3\n"
    releases.release("tofu", "1.12.3", release_zip("tofu", program))
    remote = Remote(api, **{"terraform-version": "1.12.3", "execution-backend": "tofu"})
    remote.upload()
    remote.until(remote.begin(), "applied")
    binary = next(
        path for path in (strict.data / "listener" / "engines").glob("*/tofu") if path.read_bytes() == program
    )
    binary.write_bytes(b"#!/bin/sh\necho evil\n")
    run = remote.begin()
    remote.until(run, "applied")
    assert "evil" not in remote.log(run, "plan") + remote.log(run, "apply")
    assert binary.read_bytes() == program
