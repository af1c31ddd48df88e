"""Writes the migration that brings the last one's schema to what the models ask for."""

import asyncio
import re
import sys
from pathlib import Path

from tortoise import Tortoise
from tortoise.migrations.autodetector import MigrationAutodetector

from terrapod_server.app import MODELS
from terrapod_server.kit import database


async def main() -> None:
    config = database.settings("sqlite://:memory:", MODELS, 1)
    context = await Tortoise.init(config=config)
    for writer in await MigrationAutodetector(context.apps, config["apps"]).changes():
        path = Path(writer.write())
        # a description becomes an SQL comment, and SQLite's editor splits statements at a `;` in it
        text = r"('[^']*'|\"[^\"]*\")"
        path.write_text(re.sub(rf"(, 'table_description': |, description=){text}", "", path.read_text()))
        print(path.name)  # noqa: T201
    await Tortoise.close_connections()


asyncio.run(main())
sys.exit(0)
