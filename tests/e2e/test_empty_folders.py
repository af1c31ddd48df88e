"""A run says of every kind of folder what plain terraform says of it: above all, nothing is destroyed for want of files."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import terraform_shim

from kit.cli import of_site
from kit.remote import DATA, Remote
from kit.serving import tar
from kit.site import Site, both

ONE = b'resource "terraform_data" "a" { input = "one" }\n'
NOTHING = "No configuration files"
DESTROYS = "1 to destroy"
SAME = "No changes"
#: What is in the folder, by a word for it. `None` is a folder, text a link's target.
FOLDERS: dict[str, dict[str, bytes | str | None]] = {
    "empty": {},
    "a wrapper": {"app-1.2/main.tf": ONE},
    "no configuration": {"README.md": b"", "terraform.tfvars": b"a = 1\n", "main.tftest.hcl": b"", "tf": b""},
    "hidden and saved names": {".main.tf": ONE, "main.tf~": ONE, "#main.tf#": ONE, ".tf": b"", "MAIN.TF": ONE},
    "hidden override": {"main.tf": ONE, ".z_override.tf": b'terraform { backend "http" {} }\n'},
    "only tofu's": {"main.tofu": ONE},
    "folders and links": {"main.tf": None, "x.txt": "README.md"},
    "an empty file": {"main.tf": b""},
    "json": {"main.tf.json": b"{}"},
    "only an override": {"override.tf": b""},
    "half an editor's name": {"#main.tf": b""},
    "an override of nothing": {"override.tf": ONE},
    "a link to a file": {"main.tf": "main.txt", "main.txt": ONE},
    "a link to nothing": {"main.tf": "nowhere"},
    "named as a state": {"main.tfstate.tf": ONE},
    "a line break": {"a\nb.tf": ONE},
    "as it is": {"main.tf": ONE},
}
PLAN_ONLY: DATA = {"plan-only": True}
DESTROY: DATA = {"is-destroy": True}
VERDICTS = (NOTHING, DESTROYS, SAME, "Missing resource", "Failed to read")


@pytest.fixture
def api(site: Site) -> Iterator[httpx.Client]:
    with site.api() as client:
        yield client


def write(folder: Path, files: dict[str, bytes | str | None]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def packed(files: dict[str, bytes | str | None]) -> bytes:
    """The same as an archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            raw = content if isinstance(content, bytes) else b""
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return buffer.getvalue()


def verdict(text: str) -> str:
    """Which of terraform's answers this output holds."""
    return next((word for word in VERDICTS if word in text), text)


def upload(workspace: Remote, archive: bytes) -> None:
    made = workspace.post(f"workspaces/{workspace.id}/configuration-versions", {"auto-queue-runs": False})
    assert workspace.api.put(made["attributes"]["upload-url"], content=archive).status_code == 200


def filled(api: httpx.Client, **attributes: object) -> Remote:
    """A workspace whose state holds a resource."""
    workspace = Remote(api, **{"terraform-version": terraform_shim.VERSION, **attributes})
    upload(workspace, tar({"main.tf": ONE, "sub/main.tf": ONE}))
    workspace.until(workspace.begin(), "applied")
    return workspace


def uploads(workspace: Remote) -> int:
    """How many configurations the workspace was sent."""
    return len(workspace.api.get(f"workspaces/{workspace.id}/configuration-versions").json()["data"])


def held(workspace: Remote) -> int:
    """How many resources the state holds."""
    answer = workspace.api.get(f"workspaces/{workspace.id}/current-state-version").json()["data"]
    state = workspace.api.get(answer["attributes"]["hosted-state-download-url"], follow_redirects=True)
    return len(json.loads(state.content)["resources"])


def test_every_kind_of_folder_is_judged_as_terraform_judges_it(site: Site, api: httpx.Client, tmp_path: Path) -> None:
    workspace = filled(api)
    runs = {}
    for kind, files in FOLDERS.items():
        upload(workspace, packed(files))
        runs[kind] = workspace.begin(None, **PLAN_ONLY)
    source = tmp_path / "source"
    write(source, {"main.tf": ONE})
    site.ok(source, "init", TF_CLI_CONFIG_FILE="/dev/null")
    site.ok(source, "apply", "-auto-approve", TF_CLI_CONFIG_FILE="/dev/null")
    state = (source / "terraform.tfstate").read_bytes()
    said, expected = {}, {}
    for number, (kind, files) in enumerate(FOLDERS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, files)
        (folder / "terraform.tfstate").write_bytes(state)
        init = site.run(folder, "init", "-no-color", TF_CLI_CONFIG_FILE="/dev/null")
        expected[kind] = verdict(
            init.out if init.code else site.run(folder, "plan", "-no-color", TF_CLI_CONFIG_FILE="/dev/null").out
        )
        shown = workspace.until(runs[kind], "planned_and_finished", "errored")
        said[kind] = verdict(workspace.log(runs[kind], "plan"))
        assert (shown["status"] == "errored") == (expected[kind] not in (DESTROYS, SAME)), (kind, shown)
        if expected[kind] == NOTHING:
            assert NOTHING in shown["error-message"]
    assert said == expected
    assert (expected["empty"], expected["an empty file"], expected["as it is"]) == (NOTHING, DESTROYS, SAME)


@both
@pytest.mark.usefixtures("site")
def test_nothing_is_destroyed_for_want_of_files(api: httpx.Client) -> None:
    """By a run that applies by itself, and one that only plans, from any folder without configuration."""
    workspace = filled(api)
    for kind in ("empty", "a wrapper", "no configuration", "only tofu's"):
        upload(workspace, packed(FOLDERS[kind]))
        options: tuple[DATA, ...] = ({}, {"plan-only": True}, {"refresh-only": True})
        runs = [workspace.begin(None, **each) for each in options]
        for run in runs:
            shown = workspace.until(run, "errored")
            assert NOTHING in shown["error-message"], kind
            log = workspace.log(run, "plan")
            assert f"Error: {NOTHING}\n\nPlan requires configuration to be present." in log
            assert "init" not in log, "nothing was started"
    assert held(workspace) == 1
    workspace.api.patch(f"workspaces/{workspace.id}", json={"data": {"attributes": {"working-directory": "docs"}}})
    upload(workspace, tar({"main.tf": ONE, "docs/README.md": b""}))
    shown = workspace.until(workspace.begin(), "errored")
    assert "'docs' of the uploaded configuration. There are some in '.'" in shown["error-message"]
    assert held(workspace) == 1


def test_an_empty_folder_can_still_destroy_when_it_is_told_to(api: httpx.Client) -> None:
    workspace = filled(api)
    upload(workspace, packed({}))
    workspace.until(workspace.begin(None, **DESTROY), "applied")
    assert held(workspace) == 0


async def test_the_command_line_looks_before_it_uploads(site: Site, api: httpx.Client, tmp_path: Path) -> None:
    cli = of_site(site, tmp_path)
    workspace = filled(api)
    before = uploads(workspace)
    ignoring: dict[str, bytes | str | None] = {"main.tf": ONE, ".terraformignore": b"*.tf\n"}
    folders = {**{kind: FOLDERS[kind] for kind in ("empty", "a wrapper", "only tofu's")}, "ignored": ignoring}
    for kind, files in folders.items():
        folder = tmp_path / kind
        folder.mkdir()
        write(folder, files)
        for options in (["--auto-approve"], ["--plan-only"]):
            refused = await cli("runs", "start", str(folder), "-w", workspace.name, *options)
            assert refused.code == 2, (kind, refused)
            assert NOTHING in refused.err
            assert ("There are some in 'app-1.2'" in refused.err) == (kind == "a wrapper")
    assert uploads(workspace) == before, "nothing was uploaded"
    assert held(workspace) == 1
    empty = str(tmp_path / "empty")
    assert (await cli("runs", "start", empty, "-w", workspace.name, "--destroy", "--auto-approve")).code == 0
    assert held(workspace) == 0


async def test_the_command_line_looks_into_the_working_directory(site: Site, api: httpx.Client, tmp_path: Path) -> None:
    cli = of_site(site, tmp_path)
    workspace = filled(api, **{"working-directory": "sub"})
    folder = tmp_path / "folder"
    write(folder, {"main.tf": ONE, "real/main.tf": ONE})
    refused = await cli("runs", "start", str(folder), "-w", workspace.name, "--auto-approve")
    assert (refused.code, "working directory 'sub' is not in" in refused.err) == (2, True), refused
    (folder / "sub").mkdir()
    refused = await cli("runs", "start", str(folder), "-w", workspace.name, "--auto-approve")
    assert (refused.code, "none in 'sub'" in refused.err) == (2, True), refused
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to("real")
    said = await cli("runs", "start", str(folder), "-w", workspace.name, "--auto-approve")
    assert (said.code, SAME in said.out) == (0, True), said
