"""What the cache of provider packages keeps, gives, and refuses; tests/e2e/test_plugins.py has the real terraform."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.provider_mirror import h1
from terrapod_listener import config
from terrapod_listener.engine import argv, plugins
from terrapod_shared.programs import here

NAME = "terraform-provider-fake_v1.0.0"
FILES = {NAME: b"#!/bin/sh\n", "docs/a": b"text"}
ADDRESS = "registry.example.org/acme/fake"


def lock(*digests: str, address: str = ADDRESS, version: str = "1.0.0") -> str:
    hashes = "".join(f'    "{digest}",\n' for digest in digests)
    return (
        f'# kept by terraform\n\nprovider "{address}" {{\n  version     = "{version}"\n  constraints = "~> 1.0"\n'
        f"  hashes = [\n{hashes}  ]\n}}\n"
    )


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    return folder


class Run:
    """Of a listener whose cache is in `home`."""

    def __init__(self, home: Path, name: str, text: str, most: int = 1 << 20) -> None:
        self.kept, self.own, self.module = home / "providers", home / name / "plugins", home / name / "config"
        for folder in (self.own, self.module):
            folder.mkdir(parents=True)
        (self.module / plugins.LOCK).write_text(text)
        self.shared = plugins.Plugins(self.kept, self.own, most)

    def package(self, version: str = "1.0.0") -> Path:
        return self.own.joinpath(*ADDRESS.split("/"), version, "_".join(here()))

    def take(self) -> int:
        return self.shared.take(self.module)

    def offer(self) -> int:
        return self.shared.offer(self.module)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.kept.iterdir()) if self.kept.exists() else []


def run(home: Path, name: str = "run", files: dict[str, bytes] | None = None, **more: int) -> Run:
    """One that has fetched a package, whose digest is in its lock file."""
    made = Run(home, name, lock(h1(files or FILES)), **more)
    write(made.package(), files or FILES)
    return made


def test_a_lock_file_is_read() -> None:
    text = lock("h1:" + "A" * 43 + "=", "zh:" + "a" * 64) + lock("zh:" + "b" * 64, address="registry.example.org/a/b")
    (found,) = plugins.locked(text)
    assert found.place == ("registry.example.org", "acme", "fake", "1.0.0", "_".join(here()))
    assert found.digests == ("h1:" + "A" * 43 + "=",)
    assert plugins.locked("") == plugins.locked("provider {") == []


@pytest.mark.parametrize(
    ("address", "version"),
    [
        ("../../etc", "1.0.0"),
        ("registry.example.org/../fake", "1.0.0"),
        ("registry.example.org/acme/fake/more", "1.0.0"),
        ("/etc/acme/fake", "1.0.0"),
        (ADDRESS, "../1.0.0"),
        (ADDRESS, "1/../../x"),
        (ADDRESS, ""),
    ],
)
def test_a_lock_file_leads_nowhere_else(address: str, version: str) -> None:
    assert plugins.locked(lock("h1:" + "A" * 43 + "=", address=address, version=version)) == []


def test_what_is_kept_is_given_to_whose_lock_file_has_its_digest(tmp_path: Path) -> None:
    first = run(tmp_path)
    (first.package() / NAME).chmod(0o600)
    assert (first.take(), first.take()) == (1, 0)
    second = Run(tmp_path, "second", lock("h1:" + "A" * 43 + "=", h1(FILES)))
    assert second.offer() == 1
    given = second.package() / NAME
    assert (given.read_bytes(), given.stat().st_mode & 0o777) == (b"#!/bin/sh\n", 0o755), (
        "modes are no part of a digest"
    )
    assert sorted(path.name for path in second.own.iterdir()) == ["registry.example.org"]
    other = Run(tmp_path, "other", lock(h1({NAME: b"#!other"})))
    assert other.offer() == 0
    (second.module / plugins.LOCK).unlink()
    assert (second.offer(), second.take()) == (0, 0)


def test_what_the_runs_own_lock_file_does_not_name_is_not_kept(tmp_path: Path) -> None:
    made = run(tmp_path)
    (made.package() / "docs" / "a").write_bytes(b"another text")
    assert made.take() == 0
    assert made.names() == []


def elf(system: int, machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes([system]) + bytes(8) + struct.pack("<HH", 2, machine) + bytes(99)


@pytest.mark.parametrize(
    "files",
    [
        {"README": b"no program"},
        {"docs/" + NAME: b"#!/bin/sh\n"},
        {NAME: elf(0, 183 if here()[1] != "arm64" else 62)},
        {NAME: elf(9, 62)},
        {NAME: b"MZ\x90"},
        {NAME: b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01"},
        {NAME: b""},
        {NAME: b"#!/bin/sh\n", "a\nb": b""},
        {NAME: b"#!/bin/sh\n", "large": bytes(2 << 20)},
    ],
    ids=["none", "not at the top", "architecture", "system", "windows", "darwin", "empty", "line break", "large"],
)
def test_what_could_fail_other_runs_is_not_kept(tmp_path: Path, files: dict[str, bytes]) -> None:
    """A lock file has the digests of all platforms, and does not say which is whose."""
    made = run(tmp_path, files=files)
    assert made.take() == 0
    assert made.names() == []


def _linked_file(package: Path, outside: Path) -> None:
    (package / "docs" / "a").unlink()
    (package / "docs" / "a").symlink_to(outside / "docs" / "a")


def _linked_folder(package: Path, outside: Path) -> None:
    shutil.rmtree(package / "docs")
    (package / "docs").symlink_to(outside / "docs")


def _linked_package(package: Path, outside: Path) -> None:
    shutil.rmtree(package)
    package.symlink_to(outside)


def _linked_parent(package: Path, outside: Path) -> None:
    parent = package.parent.parent
    shutil.rmtree(parent)
    elsewhere = outside.parent / "elsewhere"
    shutil.copytree(outside, elsewhere / package.parent.name / package.name)
    parent.symlink_to(elsewhere)


def _pipe(package: Path, _: Path) -> None:
    os.mkfifo(package / "pipe")


@pytest.mark.parametrize("spoil", [_linked_file, _linked_folder, _linked_package, _linked_parent, _pipe])
def test_no_link_leads_out_of_a_package(tmp_path: Path, spoil: Callable[[Path, Path], None]) -> None:
    """The content is what the lock file says, wherever it lies: that it is not taken is the links' doing."""
    made = run(tmp_path)
    spoil(made.package(), write(tmp_path / "outside", FILES))
    assert made.take() == 0
    assert made.names() == []


def test_a_lock_file_may_be_anything(tmp_path: Path) -> None:
    made = run(tmp_path)
    file = made.module / plugins.LOCK
    text = file.read_text()
    for content in ("\0\xff", text * 10_000, "provider " * 100):
        file.write_text(content)
        assert made.take() == 0
    file.unlink()
    os.mkfifo(file)
    assert (made.offer(), made.take()) == (0, 0)
    file.unlink()
    (tmp_path / "lock").write_text(text)
    file.symlink_to(tmp_path / "lock")
    assert (made.offer(), made.take()) == (0, 0)


def _changed(kept: Path) -> None:
    (kept / NAME).chmod(0o755)
    (kept / NAME).write_bytes(b"#!/bin/no\n")


def _replaced(kept: Path) -> None:
    shutil.rmtree(kept)
    kept.symlink_to("/etc")


def _gone(kept: Path) -> None:
    (kept / NAME).unlink()


@pytest.mark.parametrize("spoil", [_changed, _replaced, _gone])
def test_what_was_spoiled_in_the_cache_is_not_given(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    made = run(tmp_path)
    made.take()
    (name,) = made.names()
    spoil(made.kept / name)
    other = Run(tmp_path, "other", lock(h1(FILES)))
    assert other.offer() == 0
    assert list(other.own.iterdir()) == []
    assert made.names() == []
    write(other.package(), FILES)
    assert other.take() == 1, "and is kept anew"
    assert Run(tmp_path, "third", lock(h1(FILES))).offer() == 1


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    def of(version: int) -> dict[str, bytes]:
        return {NAME: b"#!/bin/sh\n" + bytes([version]) * 1000}

    made = [run(tmp_path, f"run-{number}", of(number), most=2500) for number in range(3)]
    assert [each.take() for each in made[:2]] == [1, 1]
    for number, used in ((0, 2_000_000), (1, 1_000_000)):
        os.utime(made[0].kept / plugins._name(h1(of(number))), (used, used))
    (made[0].kept / ".part-left").mkdir()
    os.utime(made[0].kept / ".part-left", (1, 1))
    (made[0].kept / ".part-new").mkdir()
    assert Run(tmp_path, "again", lock(h1(of(1)))).offer() == 1  # used now: the other is older
    assert made[2].take() == 1
    kept = sorted([plugins._name(h1(of(1))), plugins._name(h1(of(2))), ".part-new"])
    assert made[0].names() == kept
    assert run(tmp_path, "large", {NAME: b"#!" + bytes(3000)}, most=2500).take() == 0, "larger than all of the cache"


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    made = run(tmp_path)
    off = plugins.Plugins.of(tmp_path, tmp_path / "run", config.Config(plugin_cache=False))
    assert (off.take(made.module), off.offer(made.module), made.names()) == (0, 0, [])
    on = plugins.Plugins.of(tmp_path, tmp_path / "run", config.Config())
    assert on.take(made.module) == 1


def test_a_full_disk_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(tmp_path)
    made.take()
    other = Run(tmp_path, "other", lock(h1(FILES)))
    real = Path.open

    def full(self: Path, mode: str = "r", **more: object) -> object:
        if "x" in mode:
            raise OSError(28, "No space left on device")
        return real(self, mode, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    assert other.offer() == 0
    assert list(other.own.iterdir()) == []
    assert len(made.names()) == 1, "it was good"


def test_the_cli_configuration() -> None:
    assert argv.installation("", "") == ""
    text = argv.installation('/a "b"', "https://mirror.example/providers")
    assert text.splitlines() == [
        r'plugin_cache_dir = "/a \"b\""',
        "provider_installation {",
        "  network_mirror {",
        '    url = "https://mirror.example/providers/"',
        "  }",
        "}",
    ]


def test_settings_of_providers_are_checked(tmp_path: Path) -> None:
    (tmp_path / config.FILE).write_text(
        'plugin_cache_bytes = 0\nprovider_mirror = "http://mirror.example/"\nca_file = "/nowhere"\n'
    )
    with pytest.raises(config.Mistakes) as found:
        config.load(tmp_path, {})
    assert [line.partition(":")[0] for line in found.value.lines] == [
        "plugin_cache_bytes",
        "provider_mirror",
        "ca_file",
    ]
