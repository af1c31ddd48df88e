"""No state is lost: what a killed listener left, one listener per home."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from terrapod_listener.daemon.jobs import Jobs
from terrapod_listener.engine import argv, schemas
from terrapod_listener.phase.apply import SupervisedProgram
from terrapod_listener.phase.job import Job
from terrapod_listener.phase.outcomes import Failed
from terrapod_listener.sandbox import launching
from terrapod_listener.sandbox.isolation import Isolation, Settings
from terrapod_listener.sandbox.process import Process
from terrapod_listener.supervise import spool, statefile, supervisor
from terrapod_listener.supervise.journal import Facts, Record
from terrapod_shared import wire

WORK = wire.Work(
    listener_id="listener-a",
    run_id="run-a",
    phase="apply",
    lease=wire.Lease(number=3, seconds=40),
    workspace_id="ws-a",
    workspace_name="net",
    engine=wire.Engine(tool="terraform", version="1.9.8", sha256=""),
)


def left(home: Path) -> Path:
    folder = home / "work" / "run-a"
    (folder / "states" / "net").mkdir(parents=True)
    (folder / "states" / "net" / "terraform.tfstate").write_text(json.dumps({"serial": 2, "lineage": "line"}))
    return folder


def test_a_state_is_copied_and_known_by_its_bytes(tmp_path: Path) -> None:
    folder = left(tmp_path)
    target = spool.place(tmp_path, "run-a", 3)
    statefile.keep(folder, folder / "states" / "net" / "terraform.tfstate", target)
    assert json.loads(target.read_text())["serial"] == 2
    assert target.stat().st_mode & 0o777 == 0o600
    [facts] = spool.spooled(tmp_path)
    assert (facts["run_id"], facts["number"], facts["serial"], facts["reason"]) == ("run-a", 3, 2, "")
    spool.blame(target, "no room")
    assert spool.spooled(tmp_path)[0]["reason"] == "no room"
    assert not spool.spooled(tmp_path)[0]["is_final"]
    spool.blame(target, "not JSON", is_final=True)
    assert spool.spooled(tmp_path)[0]["is_final"]
    spool.drop(target)
    assert not target.parent.exists()


def test_a_state_that_is_torn_or_a_link_is_not_taken(tmp_path: Path) -> None:
    """What the run can write is not followed, and half a state is none."""
    folder = left(tmp_path)
    state, target = folder / "states" / "net" / "terraform.tfstate", spool.place(tmp_path, "run-a", 3)
    errored = folder / "errored.tfstate"
    errored.write_text('{\n  "serial": 9,\n  "lineage": "line",\n  "outputs": {')
    found = statefile.newest(folder, [errored, state])
    assert found is not None
    assert found[0] == state, "the other one is torn"
    errored.write_text(json.dumps({"serial": 3, "lineage": "line"}))
    found = statefile.newest(folder, [errored, state])
    assert found is not None
    assert found[0] == errored
    other = tmp_path / "other"
    other.write_text(state.read_text())
    state.unlink()
    state.symlink_to(other)
    with pytest.raises(OSError):
        statefile.keep(folder, state, target)
    state.unlink()
    state.parent.rmdir()
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "terraform.tfstate").write_text("{}")
    state.parent.symlink_to(tmp_path / "net")
    with pytest.raises(OSError):
        statefile.keep(folder, state, target)
    assert not target.exists()


def test_a_home_is_for_one_listener(tmp_path: Path) -> None:
    with spool.lock(tmp_path), pytest.raises(BlockingIOError):
        spool.lock(tmp_path)
    spool.lock(tmp_path).close()


def test_hcl_has_no_backspace_escape() -> None:
    assert argv.quoted("a\b\f\\b") == r'"a\u0008\u000c\\b"'


async def test_a_kill_reaches_a_program_that_is_being_started(tmp_path: Path) -> None:
    process = Process()
    process.kill()
    start = launching.directly(["/bin/sleep", "60"], tmp_path, {})
    code = await process.run(start, on_output=lambda _: None, timeout_s=30)
    assert code == -9


async def test_a_full_disk_does_not_stall_the_program(tmp_path: Path) -> None:
    def full(_chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    argv = ["/bin/sh", "-c", "head -c 1000000 /dev/zero"]
    start = launching.directly(argv, tmp_path, {"PATH": "/bin:/usr/bin"})
    code = await Process().run(start, on_output=full, timeout_s=20)
    assert code == 0


class Busy:
    """A job that ends when it is told to, as far as the daemon looks at one."""

    is_spooled = False
    settled = asyncio.Event()

    def __init__(self, home: Path, work: wire.Work, order: list[str]) -> None:
        self.work, self._order = work, order
        self.cell = Isolation("none", home, Settings()).cell(home)
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        self._order.append(f"{self.work.run_id} {self.work.phase} begins")
        self.begun.set()
        await self.may_end.wait()
        self._order.append(f"{self.work.run_id} {self.work.phase} has left")


async def test_an_apply_begins_only_when_its_plan_has_left_their_folder(tmp_path: Path) -> None:
    """Of one run they are started one after the other, of two runs side by side."""
    changes: list[None] = []
    jobs = Jobs(lambda: changes.append(None), lambda: None)
    order: list[str] = []
    plan, apply, other = (
        Busy(tmp_path, msgspec.structs.replace(WORK, run_id=run, phase=phase), order)
        for run, phase in (("run-a", "plan"), ("run-a", "apply"), ("run-b", "apply"))
    )
    for job in (plan, apply, other):
        jobs.start(cast(Job, job), 0.0)
    assert (len(jobs), jobs.run_ids()) == (3, {"run-a", "run-b"})
    await asyncio.gather(plan.begun.wait(), other.begun.wait())
    assert order == ["run-a plan begins", "run-b apply begins"]
    for job in (plan, other, apply):
        job.may_end.set()
    await jobs.all_done(asyncio.Event())
    assert order[2:] == ["run-a plan has left", "run-b apply has left", "run-a apply begins", "run-a apply has left"]
    assert (len(jobs), len(changes)) == (0, 6)


async def test_the_room_of_a_keeper_that_was_killed_is_given_back_before_its_state_is_spooled(tmp_path: Path) -> None:
    """It would never be otherwise, where the state is torn and its run's journal stays."""
    record = Record(tmp_path, Facts(work=WORK, step="apply"))
    record.write("apply")
    (record.folder / supervisor.RESERVE).write_bytes(bytes(4096))
    log: Any = SimpleNamespace(look=lambda: None)
    server: Any = None
    with pytest.raises(Failed, match="cut off"):
        await SupervisedProgram(tmp_path, server, record, log).again()
    assert not (record.folder / supervisor.RESERVE).exists()


def test_an_answer_that_a_full_disk_has_cut_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"format_version": "1.2", "resource_chan')
    (tmp_path / "answer.json").write_text("{}")
    with pytest.raises(schemas.NotWhole, match="disk may be full"):
        schemas.digest(tmp_path / "plan.json", tmp_path / "answer.json", tmp_path / "cut")


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("number", ["1" * 5_000, "-" + "1" * 5_000, "1." + "0" * 5_000, "1e" + "1" * 5_000])
def test_a_state_with_a_number_that_python_does_not_read_is_whole(
    tmp_path: Path, indent: int | None, number: str
) -> None:
    state = tmp_path / "terraform.tfstate"
    text = json.dumps({"version": 4, "serial": 7, "lineage": "line", "outputs": {"n": {"value": 0}}}, indent=indent)
    state.write_text(text.replace('"value": 0', f'"value": {number}') + "\n")
    found = statefile.newest(tmp_path, [state])
    assert found is not None
    assert (found[1]["serial"], found[1]["lineage"]) == (7, "line")
    target = spool.place(tmp_path, "run-a", 3)
    statefile.keep(tmp_path, state, target)
    assert target.read_bytes() == state.read_bytes()


@pytest.mark.parametrize("text", ['{"serial": ' + "1" * 5_000 + ', "lineage": "l"}', '{"a": ' + "[" * 200_000])
def test_what_cannot_be_a_state_is_torn(tmp_path: Path, text: str) -> None:
    state = tmp_path / "terraform.tfstate"
    state.write_text(text)
    assert statefile.newest(tmp_path, [state]) is None


def test_a_plan_with_a_number_that_python_does_not_read_is_digested(tmp_path: Path) -> None:
    plan, answer, target = (tmp_path / name for name in ("plan", "answer", "target"))
    entry = '{"mode": "managed", "type": "t", "provider_name": "p", "change": {"actions": ["create"], "after": %s}}'
    plan.write_text('{"resource_changes": [%s]}' % (entry % ("1" * 5_000)))
    answer.write_text(
        '{"format_version": "1.0", "provider_schemas": {"p": {"resource_schemas": {"t": {"version": 3}}}}}'
    )
    assert schemas.digest(plan, answer, target).additions == 1
    assert json.loads(target.read_text())["provider_schemas"]["p"]["resource_schemas"] == {"t": {"version": 3}}
    plan.write_text('{"a": ' + "[" * 200_000)
    with pytest.raises(schemas.NotWhole):
        schemas.digest(plan, answer, target)
