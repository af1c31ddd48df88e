"""The short form of `make chaos`: every kind of fault once, and at every named step of an apply, over real runs."""

import asyncio
from pathlib import Path

import pytest

from chaos import faults
from chaos.play import Game, play

SEED = 7


@pytest.mark.long
def test_faults_of_every_kind_cost_nothing(tmp_path: Path) -> None:
    """`make chaos CHAOS="--seed 7 --faults 24"` plays the same faults, which last longer there."""
    game = Game(SEED, faults=24, applies=8, workspaces=3, longest_s=3.0)
    told: list[str] = []
    outcome = asyncio.run(play(game, tmp_path, told.append))
    assert outcome.wrong == [], "\n".join([*told, *outcome.wrong])
    assert outcome.faults.total() == 24
    assert set(outcome.faults) | set(outcome.left_out) == set(faults.KINDS)
    assert outcome.resources > 0
