"""Offers that are given back leave nothing behind."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from terrapod_listener.config import AcceptSettings, Config
from terrapod_listener.daemon.jobs import Jobs
from terrapod_listener.phase.job import Job
from terrapod_listener.sandbox.isolation import Isolation, Settings
from terrapod_listener.supervise import journal
from terrapod_shared import errors, wire

WORK = wire.Work(
    listener_id="listener-1", run_id="run-1", phase="plan", lease=wire.Lease(number=1, seconds=40, offer_seconds=15),
    workspace_id="ws-1", workspace_name="net", engine=wire.Engine(tool="terraform", version="1.9.8", sha256=""),
)  # fmt: skip
KINDS = ("unwilling", "no engine", "not accepted")


class Ends:
    """Both other ends of a job as it sees them: engines that cannot be had, and a server that takes back or refuses."""

    def __init__(self, kind: str) -> None:
        self.kind, self.reports = kind, list[wire.Report]()

    async def path(self, _work: wire.Work) -> Path:
        if self.kind == "no engine":
            raise errors.NotFound("terraform 1.9.8 is nowhere")
        return Path("/bin/true")

    async def report(self, _run: str, message: wire.Report, _lease: int) -> None:
        self.reports.append(message)
        if message.status != "refused":
            raise errors.LeaseEnded("the offer is over")


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_thousand_offers_given_back_leave_nothing(tmp_path: Path) -> None:
    isolation = Isolation("none", tmp_path, Settings(slots=2))
    jobs = Jobs(lambda: None, lambda: None)
    opened, tasks = _open_files(), len(asyncio.all_tasks())
    for number in range(1000):
        ends: Any = Ends(KINDS[number % 3])
        config = Config(accept=AcceptSettings(phases=["apply"] if ends.kind == "unwilling" else []))
        work = msgspec.structs.replace(
            WORK, run_id=f"run-{number % 50}", lease=wire.Lease(number=number + 1, seconds=40)
        )
        job = Job(tmp_path, ends, ends, config, work, isolation.cell(tmp_path / "work" / work.run_id))
        jobs.start(job, 0.0)
        await job.offer.decided.wait()
        await jobs.all_done(asyncio.Event())
        assert (job.offer.is_accepted, job.offer.is_unwilling) == (False, ends.kind == "unwilling")
        assert [each.status for each in ends.reports] == ["planning" if ends.kind == "not accepted" else "refused"]
    await asyncio.sleep(0)  # what was cancelled last has a turn to end
    assert not isolation._cells
    assert journal.records(tmp_path) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["journal", "taken"]
    assert (_open_files(), len(asyncio.all_tasks())) == (opened, tasks)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_given_back_may_come_again(tmp_path: Path, kind: str) -> None:
    ends: Any = Ends(kind)
    config = Config(accept=AcceptSettings(phases=["apply"] if kind == "unwilling" else []))
    for _ in range(2):
        job = Job(tmp_path, ends, ends, config, WORK, Isolation("none", tmp_path, Settings()).cell(tmp_path))
        await job.run()
        assert not journal.has_taken(tmp_path, WORK)
    assert ends.reports[0] == ends.reports[1]


async def test_an_offer_that_cannot_be_written_down_is_given_back(tmp_path: Path) -> None:
    """An apply that no journal knows could be run twice."""
    ends: Any = Ends("willing")
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "run-1").write_text("in the way of the record")
    job = Job(tmp_path, ends, ends, Config(), WORK, Isolation("none", tmp_path, Settings()).cell(tmp_path))
    await job.run()
    assert [each.status for each in ends.reports] == ["refused"]
    assert ends.reports[0].reason.startswith("the listener's host: ")
    (tmp_path / "journal" / "run-1").unlink()
    (tmp_path / "journal").rmdir()
    (tmp_path / "journal").write_text("in the way of them all")
    await Job(tmp_path, ends, ends, Config(), WORK, Isolation("none", tmp_path, Settings()).cell(tmp_path)).run()
    assert [each.status for each in ends.reports] == ["refused", "refused"]
