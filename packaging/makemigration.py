"""Writes the migration that brings the last one's schema to what the models ask for."""

import asyncio
import sys
import tempfile
from pathlib import Path

from tortoise import Tortoise
from tortoise.migrations.autodetector import MigrationAutodetector

from terrapod_server.app import MODELS
from terrapod_server.kit.db import database


async def main(folder: Path) -> None:
    url = f"sqlite://{folder / 'empty.sqlite3'}"
    await database.open_(url, MODELS)
    database.drop_descriptions()
    apps = Tortoise._require_context().apps  # noqa: SLF001  the ORM's own command does the same
    assert apps is not None  # noqa: S101
    writers = await MigrationAutodetector(apps, database.settings(url, MODELS, 1)["apps"]).changes()
    for writer in writers:
        print(Path(writer.write()).name)  # noqa: T201
    if not writers:
        print("no migration is needed: the last schema has all that the models ask for", file=sys.stderr)  # noqa: T201
    await database.close()


with tempfile.TemporaryDirectory() as made:
    asyncio.run(main(Path(made)))
