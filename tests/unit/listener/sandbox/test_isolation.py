"""What a run may and may not do to its listener's host, by programs that try; with each kind that this host offers."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from terrapod_listener.sandbox import isolation, launch, launching, limits
from terrapod_listener.sandbox.isolation import Cell, Settings
from terrapod_listener.sandbox.process import Process
from terrapod_listener.supervise import processes
from terrapod_shared import wire

ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
SECRET = "what-only-the-listener-may-read"
#: Of a listener that is no root, where this test is.
NOBODY = 61_234


@pytest.fixture
def home() -> Iterator[Path]:
    """A listener's home with things that runs want; where every user may pass, as below /var/lib."""
    folder = (
        Path("/var/lib" if os.geteuid() == 0 else "/var/tmp") / f"terrapod-test-{os.getpid()}-{time.monotonic_ns()}"
    )
    for name in ("identity.json", "journal/run-b/journal.json", "spool/run-b/state-1", "work/run-b/terraform.tfvars"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / name).write_text(SECRET)
        (folder / name).chmod(0o600)
    (folder / "engines" / "abc").mkdir(parents=True)
    (folder / "engines" / "abc" / "terraform").write_text("the engine")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["bubblewrap", "user"])
def cell(request: pytest.FixtureRequest, home: Path) -> Iterator[Cell]:
    yield from _cell(home, request.param)


@pytest.fixture
def box(home: Path) -> Iterator[Cell]:
    yield from _cell(home, "bubblewrap")


def _cell(home: Path, kind: Literal["bubblewrap", "user"]) -> Iterator[Cell]:
    wanted = Settings(want=kind, first_uid=90_500)
    try:
        found = isolation.find(home, wanted)
    except isolation.Unavailable as why:
        pytest.skip(f"this host does not offer it: {why}")
    made = found.cell(home / "work" / "run-a")
    made.engine = [home / "engines" / "abc"]
    for name in ("home", "tmp", "config"):
        (made.folder / name).mkdir(parents=True, mode=0o700)
    made.hand_over()
    yield made
    made.clear()
    found.let_go(made)


class Ran:
    """What a script printed in a cell, and its exit code."""

    def __init__(self, cell: Cell, script: str, *argv: str) -> None:
        self._out = bytearray()
        process = Process(is_boxed=cell.is_boxed, clear=cell.clear)
        words = ["/bin/sh", "-c", textwrap.dedent(script), "sh", *argv]
        self.code = asyncio.run(
            process.run(cell.start(words, cell.folder, ENV), on_output=self._out.extend, timeout_s=30)
        )

    @property
    def out(self) -> str:
        return self._out.decode()


def test_it_reads_nothing_of_the_listeners_or_of_another_run(cell: Cell, home: Path) -> None:
    ran = Ran(
        cell,
        """
        for each in identity.json journal/run-b/journal.json spool/run-b/state-1 work/run-b/terraform.tfvars; do
          cat "$1/$each" && echo "READ $each"
        done
        ln -s "$1/identity.json" link; cat link && echo READ
        ln "$1/identity.json" hard && cat hard && echo READ
        ls "$1/journal" "$1/spool" "$1/work/run-b" && echo LISTED
        ls "$1" | grep identity && echo LISTED
        cat "$1/engines/abc/terraform"; echo
        echo mine > own && cat own
        """,
        str(home),
    )
    assert SECRET not in ran.out
    assert "READ" not in ran.out
    assert "LISTED" not in ran.out
    assert "mine" in ran.out
    assert "the engine" in ran.out
    with (home / "identity.json").open() as file:  # the guard of the test itself: whoever may, reads it
        assert file.read() == SECRET


def test_it_changes_nothing_on_the_host(cell: Cell, home: Path) -> None:
    mark = f"terrapod-{os.getpid()}"
    ran = Ran(
        cell,
        """
        for each in "/tmp/$2" "/var/tmp/$2" "$HOME/.terraformrc" "$1/engines/abc/terraform" "$1/engines/new" "$1/new" \
          /etc/cron.d/new /usr/local/bin/terraform-new /etc/profile.d/new; do
          echo poison > "$each"
        done 2>/dev/null
        cat "/tmp/$2"
        """,
        str(home),
        mark,
    )
    assert "poison" in ran.out, "its own /tmp is there"
    for path in (Path("/tmp") / mark, Path("/var/tmp") / mark, home / "engines" / "new", home / "new"):
        assert not path.exists(), path
    assert (home / "engines" / "abc" / "terraform").read_text() == "the engine"
    for name in ("/etc/cron.d/new", "/usr/local/bin/terraform-new", "/etc/profile.d/new"):
        assert not Path(name).exists(), name


def test_it_reaches_no_process_of_the_host(cell: Cell) -> None:
    environment = {**ENV, "LISTENER_SECRET": SECRET}
    with subprocess.Popen(["sleep", "600"], env=environment) as victim:
        try:
            ran = Ran(
                cell,
                """
                kill -9 "$1" && echo KILLED
                tr '\\0' '\\n' < "/proc/$1/environ"
                cat "/proc/$1/mem" | head -c 1 && echo PEEKED
                kill -9 -1; echo ended
                """,
                str(victim.pid),
            )
            assert victim.poll() is None
        finally:
            victim.kill()
    assert SECRET not in ran.out
    assert "KILLED" not in ran.out


def test_nobody_is_left_behind(cell: Cell) -> None:
    """A daemon by double fork in a session of its own, that ignores what it can."""
    begun = time.monotonic()
    ran = Ran(
        cell,
        """
        (trap '' HUP INT TERM; setsid sh -c 'trap "" HUP INT TERM; (sleep 987654 & sleep 987654) & sleep 987654' &) &
        while [ "$(pgrep -fc '^sleep 98765[4]')" -lt 3 ]; do :; done
        pgrep -fc '^sleep 98765[4]'
        """,
    )
    assert int(ran.out.split()[-1]) >= 3
    assert time.monotonic() - begun < 4, "a daemon that holds the output is not waited for"
    _gone("^sleep 98765[4]")


def test_a_box_ends_with_whoever_started_it(box: Cell) -> None:
    """A listener that is killed leaves no plan behind."""
    start = box.start(["/bin/sh", "-c", "sleep 976543 & wait"], box.folder, ENV)
    starter = (
        f"import subprocess, sys; box = subprocess.Popen({start.argv!r}, env={start.env!r}, stdin=subprocess.PIPE, text=True);"
        f" box.stdin.write({start.given!r}); box.stdin.close(); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.PIPE) as parent:
        _there("^sleep 97654[3]")
        parent.kill()
    _gone("^sleep 97654[3]")


def test_a_start_ends_what_an_earlier_life_left(cell: Cell) -> None:
    """Of a box too: one whose starter dies before it has asked to be told lives on; so does one that is to outlive it."""
    start = cell.start(["/bin/sh", "-c", "exec sleep 965432"], cell.folder, ENV, outlives=True)
    with (
        os.fdopen(processes.filled(start.given), "rb") as given,
        subprocess.Popen(start.argv, env=start.env, stdin=given, start_new_session=True) as left,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(left.kill)
        _there("^sleep 96543[2]")
        cell.isolation.clear()  # its slot is in use: it goes on
        assert left.poll() is None
        cell.isolation.let_go(cell)
        cell.isolation.clear()
        assert left.wait(10) in (-signal.SIGKILL, 128 + signal.SIGKILL)
    _gone("^sleep 96543[2]")


def test_one_interrupt_reaches_the_program_and_lets_it_end_well(cell: Cell) -> None:
    seen = bytearray()
    script = 'trap "echo saved; exit 3" INT; echo ready; while :; do sleep 0.02; done'

    async def interrupted() -> int:
        process = Process(is_boxed=cell.is_boxed, clear=cell.clear)

        def output(chunk: bytes) -> None:
            seen.extend(chunk)
            if b"ready" in chunk:
                process.interrupt(20.0)

        start = cell.start(["/bin/sh", "-c", script], cell.folder, ENV)
        return await process.run(start, on_output=output, timeout_s=30)

    assert asyncio.run(interrupted()) == 3
    assert b"saved" in seen


def test_an_interrupt_that_comes_before_the_program_ends_it(cell: Cell) -> None:
    async def early() -> int:
        process = Process(is_boxed=cell.is_boxed, clear=cell.clear)
        process.interrupt(None)
        start = cell.start(["/bin/sleep", "600"], cell.folder, ENV)
        return await process.run(start, on_output=lambda _: None, timeout_s=30)

    assert asyncio.run(early()) != 0


def test_two_runs_are_two_users(home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only a root listener has users to give")
    try:
        found = isolation.find(home, Settings(want="user", first_uid=90_500, slots=2))
    except isolation.Unavailable as why:
        pytest.skip(f"this host does not offer it: {why}")
    one, two = (found.cell(home / "work" / name) for name in ("run-1", "run-2"))
    for cell in (one, two):
        for name in ("home", "tmp"):
            (cell.folder / name).mkdir(parents=True, mode=0o700)
        cell.hand_over()
    users = [int(Ran(cell, "id -u").out) for cell in (one, two)]
    assert users == [found.uid(cell.slot) for cell in (one, two)]
    assert len({0, *users}) == 3
    (one.folder / "mine").write_text(SECRET)
    assert SECRET not in Ran(two, f"cat {one.folder}/mine; ls {one.folder}").out
    found.let_go(one)
    third = found.cell(home / "work" / "run-3")
    assert third.lock is not None
    assert third.slot != two.slot


def test_two_listeners_of_a_host_never_share_a_user(home: Path) -> None:
    """Each kills all of a user's processes when its run is over."""
    if os.geteuid() != 0:
        pytest.skip("only a root listener has users to give")
    settings = Settings(want="user", first_uid=90_700)
    one, two = (isolation.Isolation("user", home, settings) for _ in range(2))
    first = one.cell(home / "work" / "run-1")
    second = two.cell(home / "work" / "run-2")
    assert (first.slot, second.slot) == (0, 1)
    keeper = os.dup(first.lock or -1)
    one.let_go(first)  # its listener was killed; its keeper goes on
    assert two.cell(home / "work" / "run-3").slot == 2
    adopted = isolation.Isolation("user", home, settings).cell(home / "work" / "run-1", slot=0)
    assert adopted.lock is None
    os.close(keeper)
    adopted.clear()
    assert adopted.lock is not None
    assert two.cell(home / "work" / "run-4").slot == 3


def test_a_listener_that_is_no_root_has_its_box(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0 or shutil.which("bwrap") is None or shutil.which("setpriv") is None:
        pytest.skip("needs root, bwrap and setpriv to become somebody else")
    if not (python := Path("/usr/bin/python3")).exists():
        pytest.skip("needs an interpreter that every user may read")
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: NOBODY)
        patched.setattr(launching, "interpreter", lambda: str(python.resolve()))
        patched.setattr(launching, "PROGRAM", home / "launch.py")
        patched.setattr(launching, "interpreters_files", tuple)
        shutil.copyfile(launch.__file__, home / "launch.py")
        cell = isolation.Isolation("bubblewrap", home, Settings()).cell(home / "work" / "run-a")
        for name in ("home", "tmp"):
            (cell.folder / name).mkdir(parents=True, mode=0o700)
        cell.hand_over()
        script = f"id -u; cat {home}/identity.json; echo kept > {cell.folder}/kept; ls {home}; echo $$"
        start = cell.start(["/bin/sh", "-c", script], cell.folder, ENV)
    for place, folders, files in os.walk(home):
        for each in (place, *(f"{place}/{name}" for name in (*folders, *files))):
            os.chown(each, NOBODY, NOBODY)
    become = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    done = subprocess.run(
        [*become, *start.argv], env=start.env, input=start.given, capture_output=True, text=True, check=False
    )
    if "namespace" in done.stderr:
        pytest.skip(f"this host's kernel gives users no namespaces: {done.stderr}")
    assert done.stdout.split() == [str(NOBODY), "work", "2"], done.stderr
    assert SECRET not in done.stdout
    assert (cell.folder / "kept").read_text() == "kept\n"


def test_a_program_that_no_run_may_start_is_told(home: Path) -> None:
    """A box opens the folders that it hides; a user of a run has but the rights of the host's files."""
    if os.geteuid() != 0:
        pytest.skip("only a root listener gives runs users")
    program = home / "work" / "private" / "terraform"
    program.parent.mkdir(mode=0o700)
    program.write_bytes(b"")
    program.chmod(0o755)
    (home / "work").chmod(0o711)
    home.chmod(0o711)
    box, user = (isolation.Isolation(kind, home, Settings()) for kind in ("bubblewrap", "user"))
    assert (box.can_start(program), user.can_start(program)) == (True, False)
    program.parent.chmod(0o711)
    assert user.can_start(program)
    program.chmod(0o700)
    assert (box.can_start(program), user.can_start(program)) == (False, False)


def test_what_is_asked_for_and_not_there_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(isolation.Unavailable, match="bwrap is not installed"):
        isolation.find(home, Settings(want="bubblewrap"))
    if os.geteuid() == 0:
        assert isolation.find(home, Settings()).name == "user", "a user of its own needs nothing that is installed"
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    found = isolation.find(home, Settings())
    assert found.name == "none"
    assert "bwrap is not installed" in found.why
    start = found.cell(home / "work" / "run-a").start(["terraform", "plan"], home, {"A": "a"})
    assert (start.argv, start.cwd, start.env, start.given) == (["terraform", "plan"], home, {"A": "a"}, "")


def test_what_an_owner_opens_and_hides(home: Path, tmp_path: Path) -> None:
    (tmp_path / "open").write_text("to be read")
    (tmp_path / "hidden").write_text(SECRET)
    (tmp_path / "out").mkdir(mode=0o777)
    (tmp_path / "out").chmod(0o777)
    for kind, word in (("readable", "open"), ("writable", "out")):
        assert (tmp_path / word).exists(), kind
    wanted = Settings(
        want="bubblewrap",
        first_uid=90_500,
        readable=(str(tmp_path / "open"),),
        writable=(str(tmp_path / "out"),),
        hide=(str(tmp_path), "/etc/hostname"),
    )
    try:
        cell = isolation.find(home, wanted).cell(home / "work" / "run-a")
    except isolation.Unavailable as why:
        pytest.skip(f"this host does not offer it: {why}")
    for name in ("home", "tmp"):
        (cell.folder / name).mkdir(parents=True, mode=0o700)
    cell.hand_over()
    ran = Ran(
        cell,
        f"cat {tmp_path}/open {tmp_path}/hidden; echo written > {tmp_path}/out/file; echo x > {tmp_path}/open;"
        " grep . /etc/hostname && echo SEEN",
    )
    assert "to be read" in ran.out
    assert SECRET not in ran.out
    assert Path("/etc/hostname").read_text().strip()
    assert "SEEN" not in ran.out
    assert (tmp_path / "out" / "file").read_text() == "written\n"
    assert (tmp_path / "open").read_text() == "to be read"


def test_a_control_group_holds_memory_and_processes(cell: Cell) -> None:
    if not limits.is_offered():
        pytest.skip("systemd-run --scope does not work on this host")
    scope = limits.scope(wire.Limits(memory="128Mi", cpu="1"), 100)
    eats = "head -c 400000000 /dev/zero | tail -c 400000000 > /dev/null; echo ate; seq 200 | xargs -P 200 -n 1 sleep 1"
    start = cell.start(["/bin/sh", "-c", eats], cell.folder, ENV, scope=scope)
    done = subprocess.run(
        start.argv, env=start.env, cwd="/", input=start.given, capture_output=True, text=True, check=False, timeout=60
    )
    assert "Killed" in done.stderr or done.returncode != 0
    assert "Resource temporarily unavailable" in done.stderr or done.returncode != 0


def test_a_process_inside_is_told_from_its_init() -> None:
    """A box's init must not be taken for the program: it ignores an interrupt."""
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed")
    argv = [
        "bwrap",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--unshare-pid",
        "--die-with-parent",
        "--",
        "sleep",
        "600",
    ]
    with subprocess.Popen(argv, start_new_session=True, stdin=subprocess.DEVNULL) as box:
        while not (inside := [pid for pid in processes.session(box.pid) if _name(pid) == "sleep"]):
            assert box.poll() is None
        assert [pid for pid in processes.session(box.pid) if processes._is_init(pid)] not in ([], inside)
        assert processes.interrupt(box.pid, is_boxed=True)
        assert box.wait(10) == 128 + signal.SIGINT


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _until(question: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not question():
        assert time.monotonic() < end
        time.sleep(0.01)


def _there(pattern: str) -> None:
    _until(lambda: subprocess.run(["pgrep", "-f", pattern], capture_output=True, check=False).returncode == 0)


def _gone(pattern: str) -> None:
    """A zombie that its parent has not yet taken in counts as gone."""

    def is_gone() -> bool:
        found = subprocess.run(["pgrep", "-f", "-r", "R,S,D", pattern], capture_output=True, check=False)
        return found.returncode != 0

    _until(is_gone)
