"""The real terraform CLI against an engine that takes no time: whatever ends at once is shown all the same."""

import copy
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from kit import scripted
from kit.cli import of_site
from kit.distance import Distance
from kit.site import Done, Site, both

#: By which all that the CLI hears is late.
DELAY_S = 0.15
#: How a phase ends, as the script of the engine.
FAILS = "echo 'Error: it broke at once'\nexit 1\n"


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def folder_of(site: Site, backend: str, **scripts: str) -> Path:
    """An initialised folder whose runs do what the scripts say."""
    name = f"w-{uuid.uuid4().hex[:8]}"
    folder = site.example(name, "") if backend == "cloud" else site.remote(name, "")
    for script, text in scripts.items():
        (folder / f"{script}.sh").write_text(text)
    site.ok(folder, "init")
    with site.api() as api:
        document = {"data": {"attributes": {"terraform-version": scripted.VERSION}}}
        api.patch(f"organizations/default/workspaces/{name}", json=document).raise_for_status()
    return folder


@pytest.fixture
def far(site: Site) -> Iterator[Site]:
    """The site as the CLI sees it from far away: the engine is much faster than what the CLI hears of it."""
    with Distance(site.port, DELAY_S) as distance:
        seen = copy.copy(site)
        seen.port, seen.host = distance.port, f"localhost:{distance.port}"
        rc = site.folder / f"far-{distance.port}.rc"
        rc.write_text(f'credentials "{seen.host}" {{\n  token = "{site.token}"\n}}\n')
        seen.rc = rc
        yield seen


def workspace_of(folder: Path) -> str:
    return folder.name.removesuffix("-remote")


def shown(done: Done) -> str:
    return f"exit code {done.code}\n{plain(done.out)}"


@both
@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_an_apply_that_fails_at_once_shows_why(far: Site, backend: str) -> None:
    folder = folder_of(far, backend, apply=FAILS)
    text = shown(far.run(folder, "apply", "-auto-approve"))
    assert text.startswith("exit code 1"), text
    assert "it broke at once" in text


@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_a_destroy_that_fails_at_once_shows_why(far: Site, backend: str) -> None:
    folder = folder_of(far, backend, apply=FAILS)
    text = shown(far.run(folder, "destroy", "-auto-approve"))
    assert text.startswith("exit code 1"), text
    assert "it broke at once" in text


@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_an_apply_that_takes_no_time_is_shown(far: Site, backend: str) -> None:
    folder = folder_of(far, backend, apply="echo 'thing.a: Creation complete'\n")
    text = shown(far.run(folder, "apply", "-auto-approve"))
    assert text.startswith("exit code 0"), text
    assert "thing.a: Creation complete" in text


@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_a_workspace_that_applies_by_itself_shows_why_it_failed(far: Site, backend: str) -> None:
    """With `backend "remote"` the CLI neither asks nor confirms there."""
    folder = folder_of(far, backend, apply=FAILS)
    with far.api() as api:
        document = {"data": {"attributes": {"auto-apply": True}}}
        api.patch(f"organizations/default/workspaces/{workspace_of(folder)}", json=document).raise_for_status()
    done = far.run(folder, "apply", *(["-auto-approve"] if backend == "cloud" else []))
    assert (done.code, "it broke at once" in done.out) == (1, True), shown(done)


@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_a_person_who_says_yes_sees_why_it_failed(far: Site, backend: str) -> None:
    folder = folder_of(far, backend, apply=FAILS)
    session = far.interactive(folder, "apply")
    session.expect("Enter a value:")
    session.sendline("yes")
    session.expect("it broke at once")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 1


@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_somebody_else_approves_and_it_fails_at_once(far: Site, backend: str) -> None:
    """The CLI asks for the run every three seconds while it waits for an answer: all is over by then."""
    folder = folder_of(far, backend, apply=FAILS)
    session = far.interactive(folder, "apply")
    session.expect("Enter a value:")
    with far.api() as api:
        workspace = api.get(f"organizations/default/workspaces/{workspace_of(folder)}").json()["data"]["id"]
        run = api.get(f"workspaces/{workspace}/runs").json()["data"][0]["id"]
        api.post(f"runs/{run}/actions/apply", json={}).raise_for_status()
    session.expect("it broke at once")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 1


@pytest.mark.parametrize("backend", ["cloud", "remote"])
@pytest.mark.parametrize("argv", [["plan"], ["apply", "-auto-approve"], ["destroy", "-auto-approve"]])
def test_a_plan_that_fails_at_once_shows_why(far: Site, backend: str, argv: list[str]) -> None:
    folder = folder_of(far, backend, plan=FAILS)
    done = far.run(folder, *argv)
    assert (done.code, "it broke at once" in done.out) == (1, True), shown(done)


@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_an_init_that_fails_at_once_shows_why(far: Site, backend: str) -> None:
    folder = folder_of(far, backend)
    (folder / "init.sh").write_text(FAILS)
    done = far.run(folder, "apply", "-auto-approve")
    assert (done.code, "it broke at once" in done.out) == (1, True), shown(done)


@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_an_apply_without_changes_ends_well(far: Site, backend: str) -> None:
    name = f"w-{uuid.uuid4().hex[:8]}"
    folder = far.example(name, "") if backend == "cloud" else far.remote(name, "")
    far.ok(folder, "init")
    for command in ("apply", "destroy"):
        assert "No changes" in plain(far.ok(folder, command, "-auto-approve"))


def test_a_saved_plan_that_fails_at_once_shows_why(far: Site) -> None:
    folder = folder_of(far, "cloud", apply=FAILS)
    far.ok(folder, "plan", "-out=saved.tfplan")
    done = far.run(folder, "apply", "saved.tfplan")
    assert (done.code, "it broke at once" in done.out) == (1, True), shown(done)


def test_a_refresh_that_fails_at_once_shows_why(far: Site) -> None:
    folder = folder_of(far, "cloud", apply=FAILS)
    done = far.run(folder, "refresh")
    assert (done.code, "it broke at once" in done.out) == (1, True), shown(done)


@pytest.mark.parametrize("backend", ["cloud", "remote"])
def test_json_output_shows_why(far: Site, backend: str) -> None:
    folder = folder_of(far, backend, apply=FAILS)
    done = far.run(folder, "apply", "-auto-approve", "-json")
    assert (done.code, "it broke at once" in done.out) == (1, True), shown(done)


async def test_the_command_line_shows_why(far: Site, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "main.tf").write_text("")
    (folder / "apply.sh").write_text(FAILS)
    name = f"w-{uuid.uuid4().hex[:8]}"
    cli = of_site(far, tmp_path)
    await cli.ok("workspaces", "create", name, "--terraform-version", scripted.VERSION)
    for _ in range(3):
        said = await cli("runs", "start", str(folder), "-w", name, "--auto-approve")
        assert (said.code, "it broke at once" in said.out + said.err) == (1, True), said


def test_the_plan_of_a_quick_apply_is_shown(far: Site) -> None:
    """Structured output: the CLI draws the plan from its JSON, and only of a run that has not failed."""
    name = f"w-{uuid.uuid4().hex[:8]}"
    body = 'resource "terraform_data" "a" {\n  provisioner "local-exec" { command = "exit 3" }\n}\n'
    folder = far.example(name, body)
    far.ok(folder, "init")
    text = shown(far.run(folder, "apply", "-auto-approve"))
    assert text.startswith("exit code 1"), text
    assert "Plan: 1 to add" in text
    assert "local-exec provisioner error" in text
