"""`terrapod-server binaries import`."""

from collections.abc import Sequence
from pathlib import Path

import click

from terrapod_server import app
from terrapod_server.config.settings import Config
from terrapod_server.engines import actions as mirror
from terrapod_shared.errors import TerrapodError


async def import_all(
    config: Config,
    files: Sequence[Path],
    *,
    sums: Path | None = None,
    signature: Path | None = None,
    unsigned: bool = False,
) -> int:
    """Imports each file; exit code 1 where one was refused, and the others are imported all the same."""
    failed = 0
    async with app.opened(config) as built:
        for file in files:
            try:
                engine = await mirror.import_zip(
                    built.services, file, sums=sums, signature=signature, unsigned=unsigned
                )
            except TerrapodError as error:
                click.echo(f"{file.name}: {error.detail}", err=True)
                failed = 1
            else:
                signed = f"signed by {engine.signed_by}" if engine.signed_by else "not signed"
                what = f"{engine.tool} {engine.version} {engine.os}/{engine.arch}"
                click.echo(f"{file.name}: {what}, sha256 {engine.sha256}, {signed}")
    return failed
