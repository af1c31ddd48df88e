"""`terrapod-server audit verify`."""

from collections.abc import Sequence
from pathlib import Path

import click

from terrapod_server import app
from terrapod_server.audit.verify import Report
from terrapod_server.audit.verify import verify as read_all
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
        return await read_all(app.audit_keys(built.services.cipher), files)
