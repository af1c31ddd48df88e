"""What a host has begun is remembered beyond its end, whatever became of the file."""

from pathlib import Path

import msgspec

from terrapod_listener.supervise import journal
from terrapod_shared import wire

WORK = wire.Work(
    listener_id="listener-a",
    run_id="run-a",
    phase="plan",
    lease=wire.Lease(number=3, seconds=40),
    workspace_id="ws-a",
    workspace_name="net",
    engine=wire.Engine(tool="terraform", version="1.9.8", sha256=""),
)


def work(number: int, phase: wire.Phase = "plan", run_id: str = "run-a") -> wire.Work:
    return msgspec.structs.replace(WORK, run_id=run_id, phase=phase, lease=wire.Lease(number=number, seconds=40))


def test_a_plan_is_known_by_its_lease_and_an_apply_by_its_run(tmp_path: Path) -> None:
    assert not journal.has_taken(tmp_path, work(3))
    journal.remember(tmp_path, work(3))
    assert [journal.has_taken(tmp_path, work(number)) for number in (2, 3, 4)] == [True, True, False]
    assert not journal.has_taken(tmp_path, work(3, "apply"))
    assert not journal.has_taken(tmp_path, work(3, run_id="run-b"))
    journal.remember(tmp_path, work(1, "apply"))
    assert [journal.has_taken(tmp_path, work(number, "apply")) for number in (1, 2)] == [True, True]
    journal.remember(tmp_path, work(1, "apply"), is_ours=False)
    assert not journal.has_taken(tmp_path, work(1, "apply")), "the server had given it to nobody"
    assert (tmp_path / "journal" / "taken").stat().st_mode & 0o777 == 0o600
    assert journal.records(tmp_path) == []


def test_a_torn_line_costs_no_other(tmp_path: Path) -> None:
    journal.remember(tmp_path, work(1, "apply"))
    with (tmp_path / "journal" / "taken").open("ab") as file:
        file.write(b"run-b app\xff\x00")
    journal.remember(tmp_path, work(1, "apply", "run-c"))
    for run_id, is_known in (("run-a", True), ("run-b", False), ("run-c", True)):
        assert journal.has_taken(tmp_path, work(1, "apply", run_id)) is is_known


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    most = journal._TAKEN_MOST
    (tmp_path / "journal").mkdir()
    lines = "".join(f"run-{number} apply 1\n" for number in range(2 * most))
    (tmp_path / "journal" / "taken").write_text(lines)
    journal.remember(tmp_path, work(1, "apply", "run-new"))
    assert len((tmp_path / "journal" / "taken").read_text().split("\n")) < most + 10
    assert journal.has_taken(tmp_path, work(1, "apply", "run-new"))
    assert journal.has_taken(tmp_path, work(1, "apply", f"run-{2 * most - 1}"))
