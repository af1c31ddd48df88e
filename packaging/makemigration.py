"""Writes the migration that brings the last one's schema to what the models ask for."""

import asyncio
from pathlib import Path

from tortoise import Tortoise
from tortoise.migrations.autodetector import MigrationAutodetector

from terrapod_server.app import MODELS
from terrapod_server.kit.db import database


async def main() -> None:
    url = "sqlite://:memory:"
    await database.open_(url, MODELS)
    database.drop_descriptions()
    apps = Tortoise._require_context().apps  # noqa: SLF001  the ORM's own command does the same
    assert apps is not None  # noqa: S101
    for writer in await MigrationAutodetector(apps, database.settings(url, MODELS, 1)["apps"]).changes():
        print(Path(writer.write()).name)  # noqa: T201
    await database.close()


asyncio.run(main())
