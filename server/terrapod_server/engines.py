"""`terrapod-server binaries import`."""

from collections.abc import Sequence
from pathlib import Path

import click

from terrapod_server import app
from terrapod_server.config import Config
from terrapod_server.mirror import actions as mirror
from terrapod_shared.errors import TerrapodError


async def import_all(config: Config, files: Sequence[Path]) -> int:
    """Imports each file; exit code 1 where one was refused, and the others are imported all the same."""
    failed = 0
    async with app.opened(config) as built:
        for file in files:
            try:
                engine = await mirror.import_zip(built.services, file)
            except TerrapodError as error:
                click.echo(f"{file.name}: {error.detail}", err=True)
                failed = 1
            else:
                click.echo(
                    f"{file.name}: {engine.tool} {engine.version} {engine.os}/{engine.arch}, sha256 {engine.sha256}"
                )
    return failed
