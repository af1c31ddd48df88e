"""A disk that gets full under an apply: the keeper holds room for the state, on a real small disk."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.remote import wait_for
from terrapod_listener.supervise import supervisor

STATE = b'{"serial": 2, "lineage": "line", "outputs": {}, "version": 4}'


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def start(disk: Path, script: str) -> "subprocess.Popen[bytes]":
    """A keeper of a script."""
    for name in ("journal", "work", "spool"):
        (disk / name).mkdir(parents=True)
    job: dict[str, Any] = {
        "argv": ["/bin/sh", "-c", script], "cwd": str(disk / "work"), "env": {"PATH": "/usr/bin:/bin"},
        "root": str(disk / "work"), "states": [str(disk / "work" / "state")], "before": None,
        "spooled": str(disk / "spool" / "state"), "log": str(disk / "journal" / "log"), "log_most": 1 << 20,
        "exit": str(disk / "journal" / "exit.json"), "child": str(disk / "journal" / "child.json"),
        "timeout_s": 60, "secrets": [], "is_isolated": False, "is_boxed": False,
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-I", "-S", supervisor.__file__], stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(json.dumps(job).encode())
    process.stdin.close()
    return process


def outcome(disk: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((disk / "journal" / "exit.json").read_bytes())
    return found


def test_an_apply_whose_state_has_no_room_does_not_begin(disk: Path, tmp_path: Path) -> None:
    with (disk / "half").open("wb") as file:
        file.write(bytes(13 << 20))
    process = start(disk, f"touch {tmp_path}/ran")
    assert process.wait(30) == 0
    assert outcome(disk)["code"] is None
    assert "no room for its state" in outcome(disk)["error"]
    assert not (tmp_path / "ran").exists()
    assert not (disk / "journal" / "reserve").exists()


def test_a_disk_that_gets_full_meanwhile_still_has_room_for_the_state(disk: Path, tmp_path: Path) -> None:
    go, state = tmp_path / "go", tmp_path / "state"
    state.write_bytes(STATE + b" " * (2 << 20))
    process = start(disk, f"until [ -e {go} ]; do sleep 0.02; done; cp {state} state; echo written")
    wait_for((disk / "journal" / "child.json").exists)
    assert (disk / "journal" / "reserve").stat().st_blocks * 512 >= 4 << 20
    fill(disk)
    wait_for(lambda: not (disk / "journal" / "reserve").exists())
    go.touch()
    assert process.wait(30) == 0
    assert outcome(disk)["code"] == 0
    assert (disk / "work" / "state").read_bytes() == state.read_bytes()
    assert b"written" in (disk / "journal" / "log").read_bytes()


def test_the_room_is_given_back_at_the_end(disk: Path) -> None:
    assert start(disk, "true").wait(30) == 0
    assert outcome(disk)["code"] == 0
    assert not (disk / "journal" / "reserve").exists()


def test_a_program_that_ends_at_once_has_an_exit_code(tmp_path: Path) -> None:
    """Many at a time, so that some have ended before their keeper looks at them."""
    folders = [tmp_path / str(number) for number in range(40)]
    keepers = [start(folder, "exit 3") for folder in folders]
    assert [process.wait(60) for process in keepers] == [0] * len(folders)
    assert [outcome(folder)["code"] for folder in folders] == [3] * len(folders)
