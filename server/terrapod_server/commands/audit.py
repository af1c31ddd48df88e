"""`terrapod-server audit verify`."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from terrapod_server import app
from terrapod_server.audit.chain_heads import Keys
from terrapod_server.audit.verify import Report
from terrapod_server.audit.verify import verify as read_all
from terrapod_server.commands import options
from terrapod_server.config.settings import Config


async def verify(config: Config, checkpoints: Sequence[Path]) -> int:
    """Says what was found; the exit code."""
    if not config.keys.exists():
        click.echo(f"error: {config.keys}: there is no such key file, and without it nothing can be proved", err=True)
        return 2
    try:
        report = await _report(config, checkpoints)
    except app.Unusable as error:
        click.echo(f"error: {error}", err=True)
        return 2
    for problem in report.problems:
        click.echo(problem)
    heads = report.heads
    shown = f"checkpoint {heads.sequence} of {heads.at}" if heads.sequence else "no checkpoint yet"
    click.echo(f"{report.entries} entries, {report.newer} of them after the last checkpoint; {shown}")
    if report.problems:
        click.echo("the audit log is NOT as it was written")
        return 1
    click.echo("the audit log is as it was written")
    return 0


async def _report(config: Config, checkpoints: Sequence[Path]) -> Report:
    async with app.opened(config) as built:
        files = [config.folder / "audit" / "checkpoints", *checkpoints]
        return await read_all(Keys.of(built.services.cipher), files)


@click.group(name="audit")
def command() -> None:
    """The record of who changed what."""


@command.command(name="verify")
@options.CONFIG
@options.DATA
@click.option(
    "--checkpoints",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Checkpoint file of a further server on the same database; may be given again.",
)
def verify_log(file: Path | None, data: Path | None, checkpoints: tuple[Path, ...]) -> None:
    """Say whether the audit log is as it was written.

    Exit code 1 where an entry was altered, moved, put in or removed, 2 where the log cannot be read.
    """
    sys.exit(asyncio.run(verify(options.owned(options.read(file, data)), checkpoints)))
