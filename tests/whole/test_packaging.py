"""The units as systemd itself judges them, and the server under the rule of its unit that could break it."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.postgres import free_port

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging" / "systemd"
#: `terrapod-listener.service` with the drop-in for bubblewrap
WITH_BUBBLEWRAP = "with bubblewrap.conf"
PR_SET_MDWE = 65

needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not there")


def unit(folder: Path, name: str) -> Path:
    """A copy of a unit whose program is there, with the drop-in where it is asked for."""
    program = folder / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = folder / ("terrapod-listener.service" if name == WITH_BUBBLEWRAP else name)
    text = (UNITS / file.name).read_text()
    file.write_text(re.sub(r"^ExecStart=/usr/bin/\S+", f"ExecStart={program}", text, flags=re.MULTILINE))
    if name == WITH_BUBBLEWRAP:
        drop_in = folder / f"{file.name}.d" / "bubblewrap.conf"
        drop_in.parent.mkdir()
        shutil.copyfile(UNITS / "bubblewrap.conf", drop_in)
    return file


@needs_analyze
@pytest.mark.parametrize(
    ("name", "most"),
    [("terrapod-listener.service", 2.5), (WITH_BUBBLEWRAP, 3.0), ("terrapod-server.service", 2.5)],
)
def test_a_unit_exposes_little(tmp_path: Path, name: str, most: float) -> None:
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit(tmp_path, name))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    score = re.search(r"Overall exposure level for \S+ (\d+\.\d)", told.stdout)
    assert score, told.stdout + told.stderr
    assert float(score[1]) <= most, told.stdout


@needs_analyze
@pytest.mark.parametrize("name", ["terrapod-listener.service", WITH_BUBBLEWRAP, "terrapod-server.service"])
def test_a_unit_is_good(tmp_path: Path, name: str) -> None:
    told = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit(tmp_path, name))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


def test_an_apply_outlives_its_listener() -> None:
    """`mixed` would kill its keeper, or (with SendSIGKILL=no) keep the next listener from starting: `prove.py --boot`."""
    lines = (UNITS / "terrapod-listener.service").read_text().splitlines()
    wanted = {
        "Type=notify", "KillMode=process", "TimeoutStopSec=infinity", "Restart=always", "OOMPolicy=continue"
    }  # fmt: skip
    assert wanted <= set(lines)
    assert not any(
        line.startswith(("PrivateTmp=", "ProtectProc=", "RuntimeDirectory=", "ProcSubset=")) for line in lines
    )


@pytest.mark.skipif(not shutil.which("systemd-sysusers"), reason="systemd-sysusers is not there")
def test_users_and_folders_are_made(tmp_path: Path) -> None:
    """Both programs' files in one root, twice: what is there already is left as it is."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "var" / "lib").mkdir(parents=True)
    for _ in range(2):
        for tool, folder in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
            if tool == "systemd-tmpfiles" and os.geteuid() != 0:
                continue
            files = [str(path.resolve()) for path in sorted((ROOT / "packaging" / folder).iterdir())]
            argv = [tool, f"--root={tmp_path}", *(["--create"] if tool == "systemd-tmpfiles" else []), *files]
            told = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert told.returncode == 0, told.stderr
    users = dict(line.split(":", 1) for line in (tmp_path / "etc" / "passwd").read_text().splitlines())
    assert users["terrapod"].endswith(":/var/lib/terrapod:/usr/sbin/nologin")
    assert users["terrapod-listener"].endswith(":/var/lib/terrapod-listener:/usr/sbin/nologin")
    if os.geteuid() == 0:
        for name in ("terrapod", "terrapod-listener", "terrapod-listener/tmp"):
            about = (tmp_path / "var" / "lib" / name).stat()
            assert about.st_mode & 0o7777 == 0o700
            assert str(about.st_uid) == users[name.partition("/")[0]].split(":")[1]


def test_a_server_whose_memory_may_not_be_both_written_and_run_works(tmp_path: Path) -> None:
    """MemoryDenyWriteExecute=yes of its unit, by the kernel's own switch for it."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_MDWE + 1, 0, 0, 0, 0) < 0:  # asks only
        pytest.skip("this kernel has no PR_SET_MDWE")
    data = tmp_path / "data"
    deny = f"import ctypes, os, sys; assert ctypes.CDLL(None).prctl({PR_SET_MDWE}, 1, 0, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:])"
    program = Path(sys.executable).parent / "terrapod-server"
    environment = {
        "PATH": os.environ["PATH"], "TERRAPOD_DATA": str(data), "TERRAPOD_PORT": str(free_port()),
        "TERRAPOD_ENGINES__TERRAFORM_URL": "http://127.0.0.1:9/",
    }  # fmt: skip
    argv = ["users", "create", "--email", "ann@example.org", "--password-stdin"]  # database, encryption, Argon2
    made = subprocess.run(
        [sys.executable, "-c", deny, str(program), *argv], env=environment, input="correct horse battery staple 7\n",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "ann@example.org can sign in now" in made.stdout
