"""Programs out of checked zips: what is unpacked, what is refused, and what is noticed before a start."""

import asyncio
import hashlib
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from kit import scripted
from kit.release_site import release_zip
from terrapod_listener.config import LocalEngine
from terrapod_listener.engine import install
from terrapod_listener.engine.digests import Digests
from terrapod_listener.link.client import Server
from terrapod_shared import programs, wire
from terrapod_shared.errors import Conflict

GOOD = b"#!/bin/sh\necho good\n"
EVIL = b"#!/bin/sh\necho evil\n"


class FakeServer:
    """Hands out one file, and counts."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.count = raw, 0

    async def download(self, path: str, target: Path, *, lease: int, sha256: str) -> None:
        assert (path, lease, sha256) == ("/engine", 1, hashlib.sha256(self.raw).hexdigest())
        self.count += 1
        target.write_bytes(self.raw)


def work(sha256: str, *, local: bool = False) -> wire.Work:
    return wire.Work(
        listener_id="listener-1", run_id="run-1", phase="plan", lease=wire.Lease(number=1, seconds=40), workspace_id="ws-1",
        workspace_name="w", engine=wire.Engine(tool="terraform", version="1.15.5", sha256=sha256, local=local),
        links={"engine": wire.Link(path="/engine")},
    )  # fmt: skip


def engines(tmp_path: Path, raw: bytes) -> tuple[install.Engines, wire.Work, FakeServer]:
    server = FakeServer(raw)
    return restarted(tmp_path, server), work(hashlib.sha256(raw).hexdigest()), server


def restarted(tmp_path: Path, server: FakeServer) -> install.Engines:
    """As after a start of the process."""
    return install.Engines(tmp_path, cast(Server, server), {}, Digests())


def change(path: Path, content: bytes) -> None:
    """In place, and with its old times: nothing but the time of change tells."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)


async def settle(held: install.Engines, path: Path, limit_s: float = 10) -> None:
    """Until the digest of the file is remembered."""
    async with asyncio.timeout(limit_s):
        while not held._digests.is_remembered(path):
            held._digests.of_file(path)
            await asyncio.sleep(0.05)


async def test_a_program_that_was_changed_between_runs_is_replaced(tmp_path: Path) -> None:
    held, task, server = engines(tmp_path, release_zip("terraform", GOOD))
    binary = await held.path(task)
    assert binary.read_bytes() == GOOD
    held.recheck(task)
    await settle(held, binary)
    held.recheck(task)
    change(binary, EVIL)
    with pytest.raises(Conflict, match="was changed on this host"):
        held.recheck(task)
    assert (await held.path(task)).read_bytes() == GOOD
    held.recheck(task)
    binary.unlink()
    with pytest.raises(Conflict, match="was changed on this host"):
        held.recheck(task)
    assert (await held.path(task)).read_bytes() == GOOD
    assert server.count == 1, "out of the zip that is here"


async def test_a_change_in_the_same_instant_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system's clock may not go on between two changes: what is that young is read each time."""
    file = tmp_path / "file"
    file.write_bytes(GOOD)
    digests = Digests()
    first = digests.of_file(file)
    real = Path.stat
    frozen = file.stat()
    monkeypatch.setattr(Path, "stat", lambda self, **more: frozen if self == file else real(self, **more))
    file.write_bytes(EVIL)
    assert digests.of_file(file) != first


async def test_a_new_process_takes_nothing_that_lies_there_on_trust(tmp_path: Path) -> None:
    held, task, server = engines(tmp_path, release_zip("terraform", GOOD))
    binary = await held.path(task)
    held = restarted(tmp_path, server)
    binary.write_bytes(EVIL)
    with pytest.raises(Conflict):
        held.recheck(task)
    assert (await held.path(task)).read_bytes() == GOOD
    held = restarted(tmp_path, server)
    archive = binary.with_name("release.zip")
    archive.write_bytes(release_zip("terraform", EVIL))
    assert (await held.path(task)).read_bytes() == GOOD
    assert server.count == 2, "the zip was not the one that the server vouches for"
    await settle(held, archive)
    raw = bytearray(archive.read_bytes())
    raw[-1] ^= 1
    change(archive, bytes(raw))
    await held.path(task)
    assert server.count == 3


async def test_a_local_engine_is_looked_at_again_before_each_start(tmp_path: Path) -> None:
    program, library = tmp_path / "terraform", tmp_path / "library.so"
    program.write_bytes(GOOD)
    library.write_bytes(b"one")
    own = LocalEngine(tool="terraform", version="1.15.5", path=str(program), files=[str(program), str(library)])
    digests = Digests()
    local = await install.announced(digests, [own])
    held = install.Engines(tmp_path, cast(Server, None), local, digests)
    task = work(local["terraform", "1.15.5"][0].sha256, local=True)
    assert await held.path(task) == program
    held.recheck(task)
    await settle(held, library)
    change(library, b"two")
    with pytest.raises(Conflict, match="was changed on this host"):
        held.recheck(task)


def elf(system: int = 0, machine: int = 62) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes([system]) + bytes(8) + struct.pack("<HH", 2, machine) + bytes(100)


def packed(tmp_path: Path, fill: Callable[[zipfile.ZipFile], object]) -> bytes:
    path = tmp_path / "made.zip"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # the second entry of a name
        fill(archive)
    return path.read_bytes()


def twice(*names: str) -> Callable[[zipfile.ZipFile], object]:
    def fill(archive: zipfile.ZipFile) -> None:
        for name, content in zip(names, (GOOD, EVIL), strict=True):
            archive.writestr(name, content)

    return fill


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("terraform")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/bin/sh")


def foreign(archive: zipfile.ZipFile) -> None:
    there = 183 if programs.here()[1] != "arm64" else 62
    archive.writestr("terraform", elf(machine=there))


def many(archive: zipfile.ZipFile) -> None:
    twice("terraform", "other")(archive)
    for number in range(1000):
        archive.writestr(f"{number}", b"")


HOSTILE: list[tuple[str, Callable[[zipfile.ZipFile], Any], str]] = [
    ("two of the name", twice("terraform", "terraform"), "must hold one file terraform"),
    ("two ways to write it", twice("terraform", "./terraform"), "must hold one file terraform"),
    ("two spellings", twice("terraform", "TERRAFORM"), "must hold one file terraform"),
    ("a link", link, "no plain file"),
    ("a bomb", lambda archive: archive.writestr("terraform", bytes(64 << 20)), "the most that are believed"),
    ("many", many, "more than 1000 files"),
    ("none", lambda archive: archive.writestr("tofu", GOOD), "must hold one file terraform"),
    ("elsewhere", lambda archive: archive.writestr("../terraform", GOOD), "must hold one file terraform"),
    ("another architecture", foreign, "is built for linux/"),
    ("another system", lambda archive: archive.writestr("terraform", elf(system=9)), "is built for freebsd/"),
]  # fmt: skip


@pytest.mark.parametrize(("fill", "why"), [each[1:] for each in HOSTILE], ids=[each[0] for each in HOSTILE])
async def test_hostile_zips_are_refused(tmp_path: Path, fill: Callable[[zipfile.ZipFile], Any], why: str) -> None:
    held, task, _ = engines(tmp_path / "engines", packed(tmp_path, fill))
    with pytest.raises(Conflict, match=why):
        await held.path(task)
    assert [path.name for path in (tmp_path / "engines").rglob("*") if path.is_file()] == ["release.zip"]


async def test_an_encrypted_or_damaged_zip_is_refused(tmp_path: Path) -> None:
    raw = bytearray(packed(tmp_path, lambda archive: archive.writestr("terraform", GOOD * 100)))
    encrypted = bytearray(raw)
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[raw.index(magic) + at] |= 1
    damaged = bytearray(raw)
    damaged[60] ^= 0xFF
    for bad in (encrypted, damaged, bytearray(b"no zip"), raw[: len(raw) // 2]):
        held, task, _ = engines(tmp_path / hashlib.sha256(bad).hexdigest()[:8], bytes(bad))
        with pytest.raises(Conflict, match="the release's archive is not used"):
            await held.path(task)


async def test_a_program_of_this_platform_is_taken(tmp_path: Path) -> None:
    machines = {name: number for number, name in programs._ELF_MACHINES.items()}
    raw = packed(tmp_path, lambda archive: archive.writestr("terraform", elf(machine=machines[programs.here()[1]])))
    held, task, _ = engines(tmp_path / "engines", raw)
    binary = await held.path(task)
    assert binary.stat().st_mode & 0o777 == 0o755, "a run may be another user; the home keeps all others out"
    assert programs.platform_of(Path("/bin/sh").read_bytes()[: programs.HEAD]) == programs.here()


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"#!/bin/sh\n", None),
        (b"", None),
        (b"MZ\x90" + bytes(20), ("windows", "?")),
        (b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01" + bytes(20), ("darwin", "arm64")),
        (elf(), ("linux", "amd64")),
        (elf(system=9, machine=183), ("freebsd", "arm64")),
        (elf(machine=243), ("linux", "machine 243")),
    ],
)
def test_platforms_are_told_by_the_first_bytes(head: bytes, found: tuple[str, str] | None) -> None:
    assert programs.platform_of(head[: programs.HEAD]) == found


async def test_what_a_program_says_of_itself_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An engine of the settings that its program contradicts is left out; of a script the settings are believed."""
    real, other = scripted.binary(tmp_path / "real"), scripted.binary(tmp_path / "other", "Terraform v1.7.0\n")
    script = scripted.program(tmp_path)
    listed = [
        LocalEngine(tool="terraform", version="1.9.9", path=str(real)),
        LocalEngine(tool="terraform", version="1.5.7", path=str(script)),
        LocalEngine(tool="terraform", version="1.7.0", path=str(other)),
    ]
    again = tmp_path / "again"
    again.symlink_to(other)
    found = await install.announced(Digests(), listed, [real, again, script])
    assert {version: engine.path for (_, version), (_, engine) in found.items()} == {
        "1.5.7": str(script),
        "1.7.0": str(other),
        scripted.VERSION: str(real),
    }
    assert found["terraform", "1.7.0"][0].sha256 == Digests().of_engine(listed[2])
    assert f"{real} is not offered: the settings say terraform 1.9.9, and it says terraform 1.6.1" in caplog.text
    assert f"{script} is not offered: it is a script" in caplog.text


async def test_an_engine_that_no_run_may_start_is_not_announced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await install.announced(Digests(), [], [scripted.binary(tmp_path / "real")], lambda _: False) == {}
    assert "real is not offered: the users of runs may not start it" in caplog.text
