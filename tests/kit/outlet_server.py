"""`terrapod-server serve` with one room more, which has an outlet; to be started as a program.

The outlet writes what it gets into the file `taken` of the folder `OUTLET_FOLDER`, a line for each: event, run, word.
While there is a file `hold` it keeps what it gets, and says so in the file `held`.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from terrapod_server import app, serving
from terrapod_server.config.load import load
from terrapod_server.kit.room import Composition, Room
from terrapod_server.kit.work.outbox import Outlet

_FOLDER = Path(os.environ["OUTLET_FOLDER"])


def _write(name: str, event: Any) -> None:
    with (_FOLDER / name).open("a") as file:
        file.write(f"{event.id} {event.run_id} {event.event}\n")


async def _deliver(_services: Any, event: Any) -> None:
    if (_FOLDER / "hold").exists():
        _write("held", event)
    while (_FOLDER / "hold").exists():  # noqa: ASYNC110  what it waits for is in another process
        await asyncio.sleep(0.02)
    _write("taken", event)


_FILE = Outlet(name="file", wants=lambda event: event.event != "engine", deliver=_deliver)

if __name__ == "__main__":
    settings = {name: value for name, value in os.environ.items() if name.startswith("TERRAPOD_")}
    rooms = (*app.COMPOSITION.rooms, Room(name="file", outlets=(_FILE,)))
    serving.run(load(settings, None), Composition(rooms, own=app.COMPOSITION.own))
