"""What of a folder is sent."""

import os
import tarfile
from pathlib import Path

import pytest

from terrapod_cli import ignore
from terrapod_cli.pack import check_configuration, packed, root_of
from terrapod_server.store.archive import Checker
from terrapod_shared.errors import Invalid


def names(root: Path) -> dict[str, tarfile.TarInfo]:
    with packed(root) as made, tarfile.open(made.file) as archive:
        found = {entry.name: entry for entry in archive}
        assert made.entries == len(found)
    assert not made.file.exists()
    return found


def tree(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


@pytest.mark.parametrize(
    ("lines", "path", "is_out"),
    [
        ([], ".git/config", True),
        ([], "modules/a/.git/HEAD", True),
        ([], ".gitignore", False),
        ([], ".terraform/providers/x", True),
        ([], ".terraform/modules/modules.json", False),
        ([], "a/.terraform/modules/x/main.tf", False),
        (["*.tf"], "a/b/main.tf", True),
        (["/*.tf"], "a/main.tf", False),
        (["/*.tf"], "main.tf", True),
        (["secret/"], "a/secret/b/c", True),
        (["secret"], "secret/b", False),
        (["a/b"], "x/a/b", True),
        (["**/x.txt"], "x.txt", True),
        (["docs/**/x"], "docs/a/b/x", True),
        (["?.txt"], "ab.txt", False),
        (["[ab].txt"], "b.txt", True),
        (["[!ab].txt"], "b.txt", False),
        (["[^ab].txt"], "c.txt", True),
        (["*.log", "!keep.log"], "keep.log", False),
        (["!keep.log", "*.log"], "keep.log", True),
        (["# *.tf", "", "  *.txt  "], "a.txt", True),
        (["# *.tf"], "a.tf", False),
        (["a.b"], "axb", False),
        (["\\*.tf"], "x.tf", False),
        (["\\*.tf"], "*.tf", True),
        (["(a|b)+$"], "(a|b)+$", True),
        (["cafe\u0301.txt"], "caf\u00e9.txt", True),
    ],
)
def test_rules(lines: list[str], path: str, is_out: bool) -> None:
    assert ignore.excludes(ignore.rules(lines), path) is is_out


def test_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    tree(
        root, "main.tf", "sub/a.tf", ".git/config", ".terraform/providers/p", ".terraform/modules/m/x.tf",
        "terraform.tfstate", "terraform.tfstate.backup", "errored.tfstate", "sub/old.tfstate.1", "skip/x", "skip/keep.tf",
        "my.tfstates.tf",
    )  # fmt: skip
    (root / ".terraformignore").write_text("skip/\n!keep.tf\n")
    os.mkfifo(root / "pipe")
    (root / "run.sh").write_text("x")
    (root / "run.sh").chmod(0o755)
    found = names(root)
    assert set(found) == {
        ".terraformignore", ".terraform/modules/m", ".terraform/modules/m/x.tf", "main.tf", "run.sh",
        "skip/keep.tf", "sub", "sub/a.tf", "my.tfstates.tf",
    }  # fmt: skip
    assert found["run.sh"].mode == 0o755


def test_configuration_that_is_named_as_a_state_is_sent(tmp_path: Path) -> None:
    tree(tmp_path / "root", "main.tfstate.tf", "x.tfstate.tf.json", "x.tfstate.json", "x.tfstate.tf~", ".x.tfstate.tf")
    assert set(names(tmp_path / "root")) == {"main.tfstate.tf", "x.tfstate.tf.json"}


@pytest.mark.parametrize(
    ("files", "folder", "tool", "is_taken"),
    [
        (["main.tf"], "", "terraform", True),
        (["main.tofu"], "", "tofu", True),
        (["main.tofu"], "", "terraform", False),
        (["sub/main.tf"], "", "terraform", False),
        (["sub/main.tf"], "sub", "terraform", True),
        (["main.tf", "sub/README.md"], "sub", "terraform", False),
        (["real/main.tf"], "link", "terraform", True),
        (["x"], "out", "terraform", True),
        (["x"], "out/deep", "terraform", True),
        (["skipped/main.tf"], "skipped", "terraform", False),
        (["x.tf~", ".x.tf", "#x.tf#", "x.tftest.hcl"], "", "terraform", False),
    ],
)
def test_a_folder_without_configuration_is_not_sent(
    tmp_path: Path, files: list[str], folder: str, tool: str, is_taken: bool
) -> None:
    root = tmp_path / "root"
    tree(root, *files)
    tree(tmp_path / "other", "x.txt", "deep/x.tf")
    (tmp_path / "other" / "main.tf").symlink_to("x.txt")
    (root / "out").symlink_to("../other")
    (root / "link").symlink_to("real")
    (root / ".terraformignore").write_text("skipped/\n")
    with packed(root) as made:
        if is_taken:
            check_configuration(root, folder, tool, made)
            return
        with pytest.raises(Invalid, match="No configuration files"):
            check_configuration(root, folder, tool, made)


def test_links(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    tree(root, "modules/m/main.tf")
    tree(other, "shared.tf", "deep/x.tf")
    (other / "deep" / "up").symlink_to("../shared.tf")
    (root / "in").symlink_to("modules/m/main.tf")
    (root / "absolute").symlink_to(root / "modules")
    (root / "out.tf").symlink_to("../other/shared.tf")
    (root / "outside").symlink_to(other)
    (root / "dangling").symlink_to("modules/nothing")
    found = names(root)
    assert (found["in"].linkname, found["absolute"].linkname) == ("modules/m/main.tf", "modules")
    assert found["dangling"].issym()
    assert found["out.tf"].isreg()
    assert found["outside/deep/x.tf"].isreg()
    assert found["outside/deep/up"].isreg(), "a link outside does not stay one: it would lead elsewhere"
    assert all(not entry.linkname.startswith(("/", "..")) for entry in found.values())


def test_any_name_that_a_file_can_have(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    odd = [b"\xff\xfe.tf", "é漢\U0001f40d.tf".encode(), b"new\nline", b" space ", b"x" * 200, b"-rf", b"\xe9" * 120]
    for name in odd:
        (root / os.fsdecode(name)).write_bytes(b"x")
    (root / "deep").mkdir()
    (root / "deep" / "link").symlink_to(os.fsdecode(b"../\xff\xfe.tf"))
    with packed(root) as made:
        checker = Checker()
        checker.feed(made.file.read_bytes())
        checker.end()
    found = names(root)
    assert {os.fsencode(name) for name in found} == {*odd, b"deep", b"deep/link"}
    assert os.fsencode(found["deep/link"].linkname) == b"../\xff\xfe.tf"


def test_what_cannot_be_sent(tmp_path: Path) -> None:
    root = tmp_path / "root"
    tree(root, "main.tf")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "again").symlink_to(tmp_path / "back")
    (root / "loop").symlink_to(tmp_path / "back")
    with pytest.raises(Invalid, match="has no end"):
        names(root)
    (root / "loop").unlink()
    (root / "self").symlink_to("self")
    with pytest.raises(Invalid, match="self is a link that leads to itself"):
        names(root)
    (root / "self").unlink()
    (root / "gone").symlink_to("/nowhere/at/all")
    with pytest.raises(Invalid, match="cannot be read"):
        names(root)


def test_the_folder_that_a_working_directory_names(tmp_path: Path) -> None:
    folder = tmp_path / "repo" / "infra" / "prod"
    folder.mkdir(parents=True)
    assert root_of(folder, "infra/prod") == tmp_path / "repo"
    assert root_of(folder, "/infra/prod/") == tmp_path / "repo"
    assert root_of(folder, "infra") == folder
    assert root_of(folder, "") == folder
