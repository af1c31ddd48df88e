"""What must be true when everything is well again."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import httpx

from chaos.counter import Tally
from chaos.world import World

OVER = ("planned_and_finished", "applied", "errored", "discarded", "canceled")


@dataclass(frozen=True)
class Ended:
    """A run as it was at the end."""

    run: str
    status: str
    why: str


async def created(world: World, workspace: str) -> set[str]:
    """The keys of the resources in the current state."""
    try:
        found = await world.ask("GET", f"workspaces/{workspace}/current-state-version")
    except AssertionError as error:
        if ": 404 " in str(error):
            return set()
        raise
    url = found["attributes"]["hosted-state-download-url"]
    answer: httpx.Response = await world.api.get(url, follow_redirects=True)
    state: dict[str, Any] = answer.raise_for_status().json()
    return {
        instance["index_key"]
        for resource in state["resources"]
        if resource["type"] == "terraform_data"
        for instance in resource["instances"]
    }


def against(name: str, tally: Tally, state: set[str], hit: set[str]) -> list[str]:
    """Where the state of a workspace is not what terraform did. `hit` are runs whose terraform was killed."""
    wrong = []
    for key, made in sorted(tally.made.items()):
        unhit = [each.run for each in made if each.run not in hit]
        if key not in state and unhit:
            wrong.append(f"{name}: {key} was made by {unhit[-1]}, and no state has it")
        if len(unhit) > 1:
            wrong.append(f"{name}: {key} was made {len(made)} times: by {', '.join(unhit)}")
    wrong += [f"{name}: {key} is in the state, and nobody made it" for key in sorted(state - tally.begun.keys())]
    for key, runs in sorted(tally.begun.items()):
        wrong += [f"{name}: {run} began {key} {times} times" for run, times in Counter(runs).items() if times > 1]
    return wrong


def of_runs(ended: list[Ended], applies: Counter[str], created_runs: int) -> list[str]:
    """Where a run is neither over nor held, or its apply ran twice."""
    wrong = [f"{each.run} is {each.status}: {each.why or 'no reason'}" for each in ended if each.status not in OVER]
    wrong += [f"{each.run} is errored without a reason" for each in ended if each.status == "errored" and not each.why]
    wrong += [f"{run} was applied {times} times" for run, times in applies.items() if times > 1]
    if len(ended) != created_runs:
        wrong.append(f"{created_runs} runs were made, and {len(ended)} are there")
    return wrong
