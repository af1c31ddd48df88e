"""A run's environment is in no process that may do more than the run: looked at from outside, and by code that tries."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from terrapod_listener.sandbox import isolation, launching, limits
from terrapod_listener.sandbox.isolation import Cell, Settings
from terrapod_listener.sandbox.process import Process
from terrapod_listener.supervise import processes
from terrapod_shared import wire

CANARY = "canary-of-the-runs-environment"
UID = 90_700
KINDS: list[Literal["bubblewrap", "user", "none"]] = ["bubblewrap", "user", "none"]
#: Loaded by the C library of whoever converts letters in the locale below; says as whom.
MODULE = r"""
#include <fcntl.h>
#include <gconv.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
  char line[32];
  int file = open(MARK, O_WRONLY | O_CREAT | O_APPEND, 0666);
  fchmod(file, 0666);
  if (write(file, line, snprintf(line, sizeof line, "%d\n", (int)geteuid()))) close(file);
}
int gconv_init(struct __gconv_step *step) { return __GCONV_NOCONV; }
int gconv(void) { return __GCONV_ILLEGAL_DESCRIPTOR; }
"""


@pytest.fixture
def home() -> Iterator[Path]:
    folder = (
        Path("/var/lib" if os.geteuid() == 0 else "/var/tmp") / f"terrapod-launch-{os.getpid()}-{time.monotonic_ns()}"
    )
    folder.mkdir(mode=0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=KINDS)
def cell(request: pytest.FixtureRequest, home: Path) -> Iterator[Cell]:
    with made(home, request.param) as found:
        yield found


class made:  # noqa: N801  reads as a word
    """A run's cell of one kind; skips where this host does not offer it."""

    def __init__(self, home: Path, kind: Literal["bubblewrap", "user", "none"], *readable: str) -> None:
        try:
            found = isolation.find(home, Settings(want=kind, first_uid=UID, readable=readable))
        except isolation.Unavailable as why:
            pytest.skip(f"this host does not offer it: {why}")
        self.cell = found.cell(home / "work" / "run-a")

    def __enter__(self) -> Cell:
        for name in ("home", "tmp", "config"):
            (self.cell.folder / name).mkdir(parents=True, mode=0o700)
        self.cell.hand_over()
        return self.cell

    def __exit__(self, *_: object) -> None:
        self.cell.clear()
        self.cell.isolation.let_go(self.cell)


def ran(start: launching.Start, cell: Cell) -> tuple[int, str]:
    out = bytearray()
    process = Process(is_boxed=cell.is_boxed, clear=cell.clear)
    return asyncio.run(process.run(start, on_output=out.extend, timeout_s=30)), out.decode()


def test_the_program_gets_exactly_the_runs_environment(cell: Cell) -> None:
    env = {"PATH": "/usr/bin:/bin", "A": "", "B": 'x=y "z"\n${q}', "UID": "7", "e\u00e9-1": "\u2028", "LC_ALL": "none"}
    code, out = ran(cell.start(["/bin/cat", "/proc/self/environ"], cell.folder / "config", env), cell)
    assert code == 0, out
    assert dict(each.split("=", 1) for each in out.split("\0") if each) == env
    script = "pwd; cat; readlink /proc/self/fd/0; grep SigIgn /proc/self/status; id -u"
    code, out = ran(cell.start(["/bin/sh", "-c", script], cell.folder / "config", env), cell)
    folder, stdin, ignored, uid = out.splitlines()
    assert (code, folder, stdin) == (0, str(cell.folder / "config"), "/dev/null")
    assert int(ignored.split()[1], 16) & 1 << 12 == 0, "SIGPIPE is not ignored"
    assert int(uid) == (cell.isolation.uid(cell.slot) if cell.isolation.has_users else os.geteuid())


def test_a_program_that_cannot_be_started_says_so(cell: Cell) -> None:
    if cell.isolation.kind == "none":
        return
    code, out = ran(cell.start(["/not/there"], cell.folder, {"A": CANARY}), cell)
    assert code == 126
    assert "cannot start /not/there: No such file" in out
    assert CANARY not in out


def test_no_helper_has_anything_of_the_runs_environment(cell: Cell) -> None:
    """Every program that is executed on the way is looked at by the kernel's eyes."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    scopes = [[], limits.scope(wire.Limits(memory="256Mi"), 200)] if limits.is_offered() else [[]]
    if cell.isolation.kind == "none":
        scopes.remove([])
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": CANARY, "XDG_RUNTIME_DIR": CANARY, "PYTHONPATH": CANARY, "TMPDIR": CANARY}
    for scope in scopes:
        start = cell.start(["/bin/true"], cell.folder, env, scope=scope)
        trace = cell.isolation.home / "trace"
        argv = [
            "strace",
            "-f",
            "-v",
            "-s",
            "100000",
            "-e",
            "trace=execve,setresuid,read",
            "-o",
            str(trace),
            *start.argv,
        ]
        handle = processes.filled(start.given)
        subprocess.run(argv, env=start.env, cwd="/", stdin=handle, check=True, timeout=60, capture_output=True)
        os.close(handle)
        lines = trace.read_text().splitlines()
        executed = [line for line in lines if "execve(" in line and line.endswith("= 0")]
        assert len(executed) >= 2, lines
        assert "/bin/true" in executed[-1]
        assert executed[-1].count(CANARY) == 4
        assert not any(CANARY in line for line in executed[:-1]), executed
        if cell.isolation.has_users:
            dropped = next(at for at, line in enumerate(lines) if f"setresuid({cell.isolation.uid(cell.slot)}" in line)
            assert dropped < lines.index(executed[-1])


@pytest.mark.parametrize("kind", ["bubblewrap", "user"])
def test_code_that_a_variable_names_runs_as_the_run_alone(
    kind: Literal["bubblewrap", "user"], home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where /bin/sh is bash, too: a C library loads what LOCPATH and GCONV_PATH name, as whoever asks it to."""
    if os.geteuid() != 0 or shutil.which("gcc") is None or not Path("/bin/bash").exists():
        pytest.skip("needs root, bash and a C compiler")
    evil = home / "evil"
    shutil.copytree("/usr/lib/locale/C.utf8", evil / "evil")
    charset = evil / "evil" / "LC_CTYPE"
    charset.write_bytes(charset.read_bytes().replace(b"UTF-8\0", b"EVIL8\0"))
    (evil / "gconv-modules").write_text("module EVIL8// INTERNAL EVIL8 1\nmodule INTERNAL EVIL8// EVIL8 1\n")
    (evil / "evil.c").write_text(MODULE)
    mark = evil / "mark"
    compile_ = ["gcc", "-shared", "-fPIC", f'-DMARK="{mark}"', "-o", f"{evil}/EVIL8.so", f"{evil}/evil.c"]
    subprocess.run(compile_, check=True, capture_output=True)
    subprocess.run(["chmod", "-R", "a+rX", str(evil)], check=True)
    mark.touch()
    mark.chmod(0o666)
    script = tmp_path_factory.mktemp("script") / "begin.py"
    script.write_text(
        f"""
import asyncio
from pathlib import Path
from terrapod_listener.sandbox import isolation
from terrapod_listener.sandbox.process import Process
home, evil = Path({str(home)!r}), {str(evil)!r}
wanted = isolation.Settings(want={kind!r}, first_uid={UID}, readable=(evil,), writable=({str(mark)!r},))
found = isolation.find(home, wanted)
cell = found.cell(home / "work" / "run-a")
for name in ("home", "tmp"):
    (cell.folder / name).mkdir(parents=True)
cell.hand_over()
env = {{"PATH": "/usr/bin:/bin", "LC_ALL": "evil", "LOCPATH": evil, "GCONV_PATH": evil, "BASH_ENV": evil + "/env"}}
start = cell.start(["/bin/bash", "-c", "echo h\u00e9 ran"], cell.folder, env)
asyncio.run(Process(is_boxed=cell.is_boxed, clear=cell.clear).run(start, on_output=print, timeout_s=30))
print("as", found.uid(cell.slot))
""",
        encoding="utf-8",
    )
    bash_is_sh = 'mount --bind /bin/bash "$(readlink -f /bin/sh)" && exec "$@"'
    argv = ["unshare", "--mount", "/bin/sh", "-c", bash_is_sh, "sh", sys.executable, str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert "ran" in done.stdout, done.stderr
    user = done.stdout.rpartition("as ")[2].strip()
    assert int(user) >= UID
    assert set(mark.read_text().split()) == {user}, "the module must be tried, by the run alone"
