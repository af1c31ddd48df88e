"""`terrapod-server serve`."""

from pathlib import Path

import click

from terrapod_server import serving
from terrapod_server.commands import options


@click.command(name="serve")
@options.CONFIG
def command(file: Path | None) -> None:
    """Serve the API in production.

    Settings come from a file and from the environment; docs/settings.md lists them. The first start makes the data folder with the keys; the database is brought to this release's schema.
    """
    serving.run(options.owned(options.read(file)))
