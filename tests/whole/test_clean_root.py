"""`make clean-root` in a root of a few programs: what is mounted there, and that nothing of a run is left behind."""

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "packaging" / "deb"))

import clean_root

PROGRAM = Path(clean_root.__file__)
INSIDE = ("bash", "cat", "umount", "rmdir", "sleep")
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "unshare", "pivot_root"))),
    reason="only root can enter a root, with setpriv, unshare and pivot_root",
)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A root as an earlier run kept it, with no more than bash and what the tests call."""
    root = tmp_path / "kept" / "root"
    for name in ("bin", "dev", "proc", "run", "sys", "tmp", clean_root.CLONE):
        (root / name).mkdir(parents=True)
    for name in INSIDE:
        program = shutil.which(name)
        assert program
        shutil.copy(program, root / "bin" / name)
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in (word for word in listed.split() if word.startswith("/")):
            place = root / library.removeprefix("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, place)
    return root.parent


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").touch()
    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\nfind-links = {tmp_path / 'wheels'}\n")
    return {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": str(settings), "AWS_SECRET_ACCESS_KEY": "of the host",
    }  # fmt: skip


def argv(kept: Path, script: str) -> list[str]:
    return [sys.executable, str(PROGRAM), "trixie", "--root", str(kept), "--shell", script]


def mounts_below(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


@needs_root
def test_a_root_has_what_isolation_needs_and_the_hosts_way_to_packages(
    kept: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    script = f"cat /proc/self/mountinfo; echo pid=$$ in $PWD; echo secret=$AWS_SECRET_ACCESS_KEY.; echo {tmp_path}/wheels/*; (exit 7)"
    done = subprocess.run(argv(kept, script), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done
    points = {
        line.split()[4]: line.partition(" - ")[2].split()[0] for line in done.stdout.splitlines() if " - " in line
    }
    assert {"/", "/proc", "/sys", "/dev/pts", "/dev/null", "/run"} <= set(points)
    assert str(clean_root.USERS) in points, "no listener outside takes a run's user for its own"
    assert (points["/proc"], points["/sys"], points["/dev/pts"]) == ("proc", "sysfs", "devpts")
    assert not any(point.startswith("/.host") for point in points), "nothing else of the host is in sight"
    assert f"pid=1 in /{clean_root.CLONE}" in done.stdout
    assert "secret=.\n" in done.stdout
    assert f"{tmp_path}/wheels/one.whl" in done.stdout
    assert mounts_below(kept) == []
    assert (tmp_path / "wheels" / "one.whl").exists()
    assert (kept / "root" / "bin" / "bash").exists(), "a kept root stays"


@pytest.fixture
def sleeping(kept: Path, environment: dict[str, str]) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A run that goes on, and a pidfd of a program inside."""
    script = "sleep 600 & echo $!; cat /proc/$!/status; echo ready; wait"
    with subprocess.Popen(argv(kept, script), env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any(line == "ready\n" for line in process.stdout)
        program = os.pidfd_open(inside(process.pid))
        try:
            yield process, program
        finally:
            os.close(program)
            process.kill()


def inside(pid: int) -> int:
    """The last of a chain of only children."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_killed_leaves_neither_program_nor_mount(
    sleeping: tuple["subprocess.Popen[str]", int], kept: Path, number: signal.Signals
) -> None:
    process, program = sleeping
    process.send_signal(number)
    assert process.wait(30) in (-number, 128 + number)
    assert wait_for_end(program)
    assert mounts_below(kept) == []


def wait_for_end(program: int) -> bool:
    """Whether the process behind a pidfd has ended, within half a minute."""
    return bool(select.select([program], [], [], 30)[0])


@needs_root
def test_a_root_with_a_mount_in_it_is_not_removed(tmp_path: Path) -> None:
    """In a mount namespace of its own, so that a test that is killed leaves no mount either."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    code = (
        "import subprocess, sys, pathlib; sys.path.insert(0, sys.argv[1]); import clean_root\n"
        "root = pathlib.Path(sys.argv[2]); inside = root / 'root' / 'opt'; inside.mkdir(parents=True)\n"
        "subprocess.run(['mount', '--bind', sys.argv[3], str(inside)], check=True)\n"
        "try: clean_root.remove(root)\n"
        "except clean_root.Failed as error: print(error)\n"
        "subprocess.run(['umount', str(inside)], check=True); clean_root.remove(root)\n"
    )
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", code, str(PROGRAM.parent), str(tmp_path / "root"), str(precious)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "is not removed, because something is mounted there" in done.stdout, done
    assert (precious / "file").exists()
    assert not (tmp_path / "root").exists()


def test_the_places_that_pip_is_told_of(tmp_path: Path) -> None:
    index, wheels, bundle = tmp_path / "index" / "simple", tmp_path / "wheels", tmp_path / "ca.pem"
    for folder in (index, wheels):
        folder.mkdir(parents=True)
    bundle.touch()
    settings = tmp_path / "pip.conf"
    settings.write_text(
        f"[global]\nextra-index-url =\n  file://{index}\n  https://packages.example.com/simple\n"
        f"find-links = {wheels} /nowhere\n[install]\ncert = {bundle}\n"
    )
    found = clean_root.named_places([settings], {"PIP_CERT": str(bundle), "HOME": "/root"})
    assert found == [bundle, tmp_path / "index", wheels]
    settings.write_text("no section\n")
    with pytest.raises(clean_root.Failed, match="cannot be read"):
        clean_root.named_places([settings], {})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["Trixie"], "no name of a release"),
        pytest.param(["trixie"], "only root", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may")),
    ],
)
def test_what_cannot_begin_says_why(more: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), *more], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
