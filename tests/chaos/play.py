"""One game of chaos: workspaces that are applied again and again, faults that fall meanwhile, and the verdict."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import terraform_shim

from chaos import faults, verdict
from chaos.counter import SAY
from chaos.world import World, world
from kit.serving import tar
from terrapod_shared import wire

#: How long a run may wait once everything is well again, beside its own work.
PATIENCE_S = wire.LEASE_S + 30
_WORK_S = 90.0
_EACH = 3  #: resources that each apply adds
_CODE = """
resource "terraform_data" "made" {{
  for_each = toset([for number in range({count}) : tostring(number)])
  provisioner "local-exec" {{
    interpreter = ["/bin/bash", "-c"]
    command     = <<-END
      {say}
      say begin {workspace} $TFC_RUN_ID ${{each.key}}
      sleep {seconds}
      say end {workspace} $TFC_RUN_ID ${{each.key}}
    END
  }}
}}
"""


@dataclass(frozen=True)
class Game:
    """`longest_s` limits how long one fault lasts."""

    seed: int
    faults: int
    applies: int
    workspaces: int = 6
    at_once: int = 2
    longest_s: float = 60.0


@dataclass
class Outcome:
    """`wrong` is empty where everything held."""

    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    resources: int = 0
    settled_s: float = 0.0
    longest_wait_s: float = 0.0


async def play(game: Game, folder: Path, tell: Callable[[str], None]) -> Outcome:
    """Plays it and looks at what is left. `tell` hears each line of progress."""
    outcome = Outcome()
    async with world(folder) as made:
        outcome.left_out = faults.left_out(made)
        plans = faults.draw(game.seed, game.faults, len(made.hosts), set(outcome.left_out), game.longest_s)
        ids = [await _workspace(made, number) for number in range(game.workspaces)]
        runs: list[str] = []
        done = asyncio.Event()
        appliers = [asyncio.create_task(_applier(made, game, number, ids, runs, done)) for number in range(len(ids))]
        try:
            await _fall(made, game, plans, outcome, tell, runs)
            while len(runs) < game.applies:
                _raise(appliers)
                await asyncio.sleep(0.2)
            done.set()
            begun = time.monotonic()
            await _settle(made, runs + made.hostile, outcome, tell)
            await asyncio.gather(*appliers)
            outcome.settled_s = time.monotonic() - begun
        finally:
            for task in appliers:
                task.cancel()
            await asyncio.gather(*appliers, return_exceptions=True)
        await _judge(made, ids, runs + made.hostile, outcome)
    return outcome


def _raise(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and task.exception():
            task.result()


async def _workspace(made: World, number: int) -> str:
    attributes = {"name": f"chaos-{number}", "auto-apply": True, "terraform-version": terraform_shim.VERSION}
    body = {"data": {"type": "workspaces", "attributes": attributes}}
    return str((await made.ask("POST", "organizations/default/workspaces", json=body))["id"])


async def _applier(made: World, game: Game, number: int, ids: list[str], runs: list[str], done: asyncio.Event) -> None:
    """Applies one workspace again and again, each time with more resources."""
    source, workspace, count = random.Random(f"{game.seed}/{number}"), ids[number], 0
    while not done.is_set():
        count += _EACH
        code = _CODE.format(
            count=count, workspace=workspace, seconds=source.choice((0.1, 0.5, 2.0, 5.0)),
            say=SAY.format(port=made.counting.port),
        )  # fmt: skip
        run = await _begin(made, workspace, code, f"{number}-{count}")
        runs.append(run)
        while (found := await made.ask("GET", f"runs/{run}"))["attributes"]["status"] not in verdict.OVER:
            await asyncio.sleep(0.5)
        await _free(made, workspace, run)
        if found["attributes"]["status"] == "errored":  # as on a full disk, where the next would end as fast
            await asyncio.sleep(3)


async def _free(made: World, workspace: str, run: str) -> None:
    """What an admin does about a run that has left the state unknown; the verdict looks at every state at the end."""
    while run in (await made.ask("GET", f"workspaces/{workspace}"))["attributes"]["lock-reason"]:
        with contextlib.suppress(AssertionError):  # the answer to the first was lost
            await made.ask("POST", f"workspaces/{workspace}/actions/force-unlock")


async def _begin(made: World, workspace: str, code: str, key: str) -> str:
    """A run; asked for again, since it is the same within a minute, when the answer is lost."""
    body: dict[str, Any] = {"data": {"type": "configuration-versions", "attributes": {"auto-queue-runs": False}}}
    version = await made.ask("POST", f"workspaces/{workspace}/configuration-versions", json=body)
    await made.ask("PUT", version["attributes"]["upload-url"], content=tar({"main.tf": code.encode()}))
    related = {
        "workspace": {"data": {"type": "workspaces", "id": workspace}},
        "configuration-version": {"data": {"type": "configuration-versions", "id": version["id"]}},
    }
    body = {"data": {"type": "runs", "attributes": {"message": key}, "relationships": related}}
    return str((await made.ask("POST", "runs", json=body))["id"])


async def _fall(
    made: World, game: Game, plans: list[faults.Plan], outcome: Outcome, tell: Callable[[str], None], runs: list[str]
) -> None:
    """Lets the faults fall, a few at once."""
    room = asyncio.Semaphore(game.at_once)

    async def one(plan: faults.Plan) -> None:
        try:
            await faults.KINDS[plan.kind](made, plan)
        finally:
            room.release()
        outcome.faults[plan.kind] += 1

    async with asyncio.TaskGroup() as group:
        for plan in plans:
            await asyncio.sleep(plan.pause_s)
            await room.acquire()
            tell(f"{plan}   ({len(runs)} runs)")
            group.create_task(one(plan))


async def _settle(made: World, runs: list[str], outcome: Outcome, tell: Callable[[str], None]) -> None:
    """Everything is well: waits until nothing waits, and says what waited longest without being worked on."""
    waits: dict[str, float] = {}
    until = time.monotonic() + PATIENCE_S + _WORK_S + 10 * len(runs) ** 0.5
    tell(f"all faults are over; {len(runs)} runs")
    while time.monotonic() < until:
        now, left = time.monotonic(), []
        for run in runs:
            found = (await made.ask("GET", f"runs/{run}"))["attributes"]
            if found["status"] in verdict.OVER:
                waits.pop(run, None)
                continue
            left.append(run)
            is_stuck = found["status"] in ("plan_queued", "apply_queued") or "lost" in (found["status-message"] or "")
            if not is_stuck:
                waits.pop(run, None)
            elif now - waits.setdefault(run, now) > outcome.longest_wait_s:
                outcome.longest_wait_s = now - waits[run]
        if not left:
            break
        await asyncio.sleep(1)
    if outcome.longest_wait_s > PATIENCE_S:
        outcome.wrong.append(f"a run waited {outcome.longest_wait_s:.0f} s though nothing was broken")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while any(_spooled(made)):
                await asyncio.sleep(0.5)
    outcome.wrong += [f"a state was never delivered: {path}" for path in _spooled(made)]


def _spooled(made: World) -> list[str]:
    return [str(path) for host in made.hosts for path in host.home.glob("spool/*/state-*.json")]


async def _judge(made: World, ids: list[str], runs: list[str], outcome: Outcome) -> None:
    ended = []
    for run in runs:
        found = (await made.ask("GET", f"runs/{run}"))["attributes"]
        why = found["error-message"] or found["status-message"] or ""
        ended.append(verdict.Ended(run, found["status"], why))
        outcome.statuses[found["status"]] += 1
        if found["status"] == "errored":
            outcome.reasons[why[:90]] += 1
    outcome.wrong += made.wrong
    outcome.wrong += verdict.of_runs(ended, made.counting.applies, len(runs))
    for number, workspace in enumerate(ids):
        state = await verdict.created(made, workspace)
        outcome.resources += len(state)
        tally = made.counting.tallies[workspace]
        outcome.wrong += verdict.against(f"chaos-{number}", tally, state, made.hit)
    if outcome.wrong:
        await made.keep_rows()
    for each in ended:  # what became of the runs that are named
        if any(each.run in line for line in outcome.wrong):
            outcome.wrong.append(f"{each.run} ended {each.status}: {each.why or 'without a word'}")
