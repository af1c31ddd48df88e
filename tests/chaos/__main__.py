"""`make chaos`: faults at random while real runs are applied, and whether anything was lost.

Prints its seed; `--seed` plays the same faults again. Exit code 1 where something did not hold.
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chaos.play import Game, Outcome, play


def _show(console: Console, outcome: Outcome) -> None:
    for title, counted in (("fault", outcome.faults), ("run", outcome.statuses), ("errored because", outcome.reasons)):
        table = Table(title, "times")
        for name, times in counted.most_common():
            table.add_row(name, str(times))
        console.print(table)
    for kind, why in outcome.left_out.items():
        console.print(f"left out: {kind}: {why}")
    console.print(f"{outcome.resources} resources are in the states, each made as often as they say")
    console.print(f"settled in {outcome.settled_s:.0f} s; longest wait afterwards {outcome.longest_wait_s:.0f} s")
    for line in outcome.wrong:
        console.print(f"[red]WRONG[/] {line}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31))
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--applies", type=int, default=100)
    parser.add_argument(
        "--keep", action="store_true", help="leave the folder with all logs also where nothing was wrong"
    )
    options = parser.parse_args()
    console = Console()
    console.print(f"seed {options.seed}: {options.faults} faults over at least {options.applies} applies")
    folder = Path(tempfile.mkdtemp(prefix="terrapod-chaos-"))
    begun = time.monotonic()
    game = Game(options.seed, options.faults, options.applies)
    outcome = asyncio.run(play(game, folder, lambda line: console.print(line, highlight=False)))
    _show(console, outcome)
    console.print(f"{time.monotonic() - begun:.0f} s; seed {options.seed}")
    if options.keep or outcome.wrong:
        console.print(f"logs in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(1 if outcome.wrong else 0)


if __name__ == "__main__":
    main()
