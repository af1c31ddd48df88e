"""Hooks and masking at a real listener."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kit.remote import Remote
from kit.serving import state_bytes
from kit.site import Site

SECRET = "canary-of-a-log-4711"
LOG_MOST = 100_000


def hook(name: str, marks: Path) -> list[str]:
    """Writes down what it was told; does what a file of its name says."""
    script = (
        f'echo "hook {name} [$TERRAPOD_EXIT_CODE]"; echo "$TERRAPOD_RUN_ID {name} $TERRAPOD_EXIT_CODE" >> {marks}/told; '
        f"[ ! -e {marks}/{name} ] || . {marks}/{name}"
    )
    return ["/bin/sh", "-c", script]


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marks")
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory, terraform: Path, marks: Path) -> Iterator[Site]:
    names = [f"{when}_{step}" for step in ("init", "plan", "apply") for when in ("pre", "post")]
    hooks = json.dumps({name: hook(name, marks) for name in names})
    accept = json.dumps({"workspaces": ["w-*"]})
    settings = {
        "TERRAPOD_LISTENER_HOOKS": hooks,
        "TERRAPOD_LISTENER_ACCEPT": accept,
        "TERRAPOD_LISTENER_WRITABLE": json.dumps([str(marks)]),
        "TERRAPOD_RUNS__LOG_BYTES": str(LOG_MOST),
    }
    with Site(tmp_path_factory.mktemp("hooked"), terraform, **settings) as started:
        yield started


@pytest.fixture
def api(hooked: Site) -> Iterator[httpx.Client]:
    with hooked.api() as client:
        yield client


@pytest.fixture(autouse=True)
def clean(marks: Path) -> Iterator[None]:
    yield
    for file in marks.iterdir():
        file.unlink()


def variable(remote: Remote, key: str, value: str, category: str = "env", *, sensitive: bool = True) -> None:
    remote.post(
        f"workspaces/{remote.id}/vars", {"key": key, "value": value, "category": category, "sensitive": sensitive}
    )


def told(marks: Path, run: str) -> list[str]:
    lines = (marks / "told").read_text().splitlines()
    return [line.removeprefix(f"{run} ").strip() for line in lines if line.startswith(run)]


def test_hooks_go_around_each_step_and_are_masked(api: httpx.Client, marks: Path) -> None:
    (marks / "pre_plan").write_text(f"echo of the host: {SECRET}; env | grep -c AWS || true")
    remote = Remote(api)
    variable(remote, "TOKEN", SECRET)
    remote.upload(plan_sh="echo $TOKEN | base64", apply_sh="echo apply $TOKEN")
    run = remote.begin()
    remote.until(run, "applied")
    steps = [
        "pre_init",
        "post_init 0",
        "pre_plan",
        "post_plan 0",
        "pre_init",
        "post_init 0",
        "pre_apply",
        "post_apply 0",
    ]
    assert told(marks, run) == steps
    plan, apply = remote.log(run, "plan"), remote.log(run, "apply")
    assert "of the host: ***\n" in plan
    assert "apply ***\n" in apply
    assert re.findall(r"hook \S+ \[\d*\]", plan) == [f"hook {name} [{code}]" for name, code in (
        ("pre_init", ""), ("post_init", "0"), ("pre_plan", ""), ("post_plan", "0"),
    )]  # fmt: skip


def test_a_hook_that_fails_ends_the_phase_before_its_step_and_not_after(api: httpx.Client, marks: Path) -> None:
    (marks / "pre_apply").write_text("exit 7")
    (marks / "post_plan").write_text("exit 3")
    remote = Remote(api)
    remote.upload(apply_sh="echo it applies")
    run = remote.begin()
    shown = remote.until(run, "errored")
    assert shown["error-message"] == "the host's hook pre_apply failed with exit code 7"
    assert "Warning: the host's hook post_plan failed with exit code 3; the run goes on" in remote.log(run, "plan")
    assert "it applies" not in remote.log(run, "apply")
    assert told(marks, run)[-2:] == ["pre_apply", "post_apply"], "it may have to clean up"


def test_hooks_after_a_step_run_when_it_fails_or_is_canceled(api: httpx.Client, marks: Path) -> None:
    remote = Remote(api)
    remote.upload(plan_sh="exit 9")
    run = remote.begin()
    remote.until(run, "errored")
    assert told(marks, run)[-1] == "post_plan 9"
    remote.upload(plan_sh="echo waits; exec sleep 600")
    run = remote.begin()
    remote.until_logged(run, "plan", "waits")
    assert api.post(f"runs/{run}/actions/cancel").status_code == 202
    remote.until(run, "canceled")
    assert told(marks, run)[-1].startswith("post_plan")


def test_a_cancel_ends_a_hook_before_a_step(api: httpx.Client, marks: Path) -> None:
    (marks / "pre_plan").write_text("echo hook waits; exec sleep 600")
    remote = Remote(api)
    remote.upload(plan_sh="echo it plans")
    run = remote.begin()
    remote.until_logged(run, "plan", "hook waits")
    assert api.post(f"runs/{run}/actions/cancel").status_code == 202
    remote.until(run, "canceled")
    assert "it plans" not in remote.log(run, "plan")
    assert told(marks, run)[-1] == "post_plan"


def test_what_is_not_accepted_waits_untouched(hooked: Site, api: httpx.Client) -> None:
    remote = Remote(api, name="other")
    remote.upload()
    run = remote.begin()
    following = Remote(api)
    following.upload()
    following.until(following.begin(), "applied")
    assert remote.run(run)["status"] == "plan_queued"
    events = api.get(f"runs/{run}/run-events").json()["data"]
    assert "refused" not in [each["attributes"]["action"] for each in events]
    assert run not in hooked.log
    assert api.post(f"runs/{run}/actions/cancel").status_code == 202


def test_secrets_are_masked_across_all_ways_out(api: httpx.Client, marks: Path) -> None:
    remote = Remote(api)
    variable(remote, "TOKEN", SECRET)
    variable(remote, "PIN", "1234")
    variable(remote, "mapped", '{ password = "in-a-map-99" }', "terraform")
    state = state_bytes(1, "line").decode()
    remote.upload(
        plan_sh=f'echo begins; printf "%s" "$TOKEN" | cut -c1-9 | tr -d "\\n"; until [ -e {marks}/go ]; do sleep 0.02; done; '
        'printf "%s\\n" "$TOKEN" | cut -c10-; printf "\\003$TOKEN\\003\\n"',
        apply_sh=f'printf "%s" "$TOKEN" | od -An -tx1 | tr -d " \\n"; echo; echo in-a-map-99 "$PIN"; cat $TF_CLI_CONFIG_FILE\nmkdir -p "$(dirname "$STATE")"; echo \'{state}\' > "$STATE"; printf "%s" "$TOKEN" | cut -c1-12; exit 3',
    )
    run = remote.begin()
    assert SECRET[:9] not in remote.until_logged(run, "plan", "begins")
    (marks / "go").touch()
    remote.until(run, "errored")
    plan, apply = remote.log(run, "plan"), remote.log(run, "apply")
    assert SECRET not in plan + apply
    assert "***\n ***\n" not in plan
    assert plan.count("***") == 2
    assert SECRET.encode().hex() not in apply
    assert "in-a-map-99" not in apply
    assert "*** 1234" in apply
    assert 'token = "***"' in apply, "the run's own"
    for log in (plan, apply):
        assert "Warning: the value of the sensitive variable PIN is not masked in this log" in log
        assert log.count("\x03") == 1, "no forged end"


def test_a_log_ends_at_its_limit_and_the_run_goes_on(api: httpx.Client) -> None:
    remote = Remote(api)
    variable(remote, "TOKEN", SECRET)
    remote.upload(
        plan_sh='i=0; while [ $i -lt 4000 ]; do echo "$i $TOKEN $TOKEN $TOKEN and more of it"; i=$((i+1)); done'
    )
    run = remote.begin()
    remote.until(run, "applied")
    log = remote.log(run, "plan")
    assert LOG_MOST < len(log) < LOG_MOST + 100
    assert log.endswith("\n[the log is at its limit; the run goes on]\n\x03")
    assert SECRET[:9] not in log
    assert "***" in log


@pytest.mark.parametrize("step", ["plan", "apply"])
def test_an_engine_that_is_changed_within_a_run_is_not_started_again(
    hooked: Site, api: httpx.Client, marks: Path, step: str
) -> None:
    """Each start is preceded by a look at the program, not only a phase's first."""
    (program,) = (hooked.folder / "bin").iterdir()
    good = program.read_bytes()
    (marks / f"pre_{step}").write_text(f"echo '# changed' >> {program}")
    remote = Remote(api)
    remote.upload(apply_sh="echo applied")
    try:
        run = remote.begin()
        shown = remote.until(run, "errored")
    finally:
        program.write_bytes(good)
    assert "was changed on this host after it had been checked: it is not run" in shown["error-message"]
    assert "called" in remote.log(run, step), "init had been called"
    assert "applied" not in remote.log(run, step)
    (marks / f"pre_{step}").unlink()
    remote.until(remote.begin(), "applied")
