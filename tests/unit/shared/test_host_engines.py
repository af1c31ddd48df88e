"""Engines that a host has already: which files of a PATH are asked, and which of them are no engine."""

import os
import struct
from pathlib import Path

import pytest

from kit import scripted
from terrapod_shared import host_engines, programs
from terrapod_shared.host_engines import HostEngine, Unfit


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted.binary(tmp_path_factory.mktemp("built") / "terraform_1.6.1")


def script(file: Path, text: str = "#!/bin/sh\necho Terraform v1.6.1\n") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


def test_a_link_is_followed_and_the_program_asked(built: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "terraform"
    link.symlink_to(built)
    assert host_engines.ask(link) == HostEngine("terraform", scripted.VERSION, built)
    assert str(host_engines.ask(link)) == f"terraform {scripted.VERSION} ({built})"


def test_tofu_is_known_by_its_words_and_not_by_its_name(tmp_path: Path) -> None:
    file = scripted.binary(tmp_path / "terraform", "OpenTofu v1.12.1\non linux_amd64\n")
    assert host_engines.ask(file) == HostEngine("tofu", "1.12.1", file)


def test_what_is_no_engine_is_left_out_with_the_reason(built: Path, tmp_path: Path) -> None:
    wrong = {}
    wrong["is a script, and not the program itself"] = script(tmp_path / "script")
    wrong["is no program"] = script(tmp_path / "text", "terraform")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    wrong["cannot be read: Too many levels of symbolic links"] = tmp_path / "loop"
    wrong["cannot be read: No such file or directory"] = tmp_path / "nothing"
    wrong["cannot be read: Is a directory"] = tmp_path
    head = bytearray(built.read_bytes())
    head[18:20] = struct.pack("<H", 22)
    foreign = tmp_path / "foreign"
    foreign.write_bytes(head)
    wrong[f"is built for linux/machine 22, and not for {'/'.join(programs.here())}"] = foreign
    plain = tmp_path / "plain"
    plain.write_bytes(built.read_bytes())
    wrong["cannot be started: it is not executable"] = plain
    cut = tmp_path / "cut"
    cut.write_bytes(built.read_bytes()[:64])
    cut.chmod(0o755)
    wrong["cannot be started: Exec format error"] = cut
    for number, says in enumerate(("mise 2026.1.2 linux-x64\n", "Terraform v1.x\n", "Terraform v" + "1" * 99, "\xff")):
        file = scripted.binary(tmp_path / f"says{number}", says)
        with pytest.raises(Unfit, match="does not say that it is terraform or tofu"):
            host_engines.ask(file)
    wrong["answered `version` with exit code 2"] = Path(os.path.realpath("/bin/ls"))
    for why, file in wrong.items():
        with pytest.raises(Unfit) as caught:
            host_engines.ask(file)
        assert str(caught.value) == why


def test_one_that_does_not_answer_is_killed(tmp_path: Path) -> None:
    waits = scripted.binary(tmp_path / "terraform", "", waits=True)
    with pytest.raises(Unfit, match=r"did not answer `version` within 0.2 s"):
        host_engines.ask(waits, 0.2)


def test_the_first_of_each_version_on_the_path(built: Path, tmp_path: Path) -> None:
    """A switcher's script in front hides nothing; a relative folder is not looked into, whatever is in it."""
    script(tmp_path / "switcher" / "terraform")
    for folder in ("one", "two", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "one" / "terraform").symlink_to(built)
    (tmp_path / "two" / "terraform").write_bytes(built.read_bytes())
    (tmp_path / "two" / "terraform").chmod(0o755)
    (tmp_path / "other" / "tofu").symlink_to(scripted.binary(tmp_path / "tofu", "OpenTofu v1.12.1\n"))
    search = f".::{tmp_path}/none:{tmp_path}/switcher:{tmp_path}/one:{tmp_path}/two:{tmp_path}/other:{tmp_path}/one"
    files = host_engines.on_path(search)
    assert [str(file.relative_to(tmp_path)) for file in files] == [
        "switcher/terraform", "one/terraform", "two/terraform", "other/tofu",
    ]  # fmt: skip
    found, left_out = host_engines.choose(files)
    assert found == [
        HostEngine("terraform", scripted.VERSION, built),
        HostEngine("tofu", "1.12.1", tmp_path / "tofu"),
    ]
    assert left_out == [f"{tmp_path}/switcher/terraform: is a script, and not the program itself"]
    assert host_engines.on_path("") == []
