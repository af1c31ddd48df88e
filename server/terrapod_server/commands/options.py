"""What the commands share: where the settings are, and whose the data folder is."""

import os
from pathlib import Path
from typing import Any

import click

from terrapod_server.config.load import Mistakes, load, own_file
from terrapod_server.config.settings import Config
from terrapod_shared import services
from terrapod_shared.files import real_path

CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TERRAPOD_CONFIG",
    help="TOML file with settings; TERRAPOD_… variables win over it.",
)
DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, readable=False),
    help="Data folder of `up`, without a file.",
)


def read(file: Path | None, data: Path | None = None) -> Config:
    """The settings; ends the program with exit code 2 and a line for each mistake in them."""
    over: dict[str, Any] = {"data": str(real_path(data))} if data else {}
    if data and file is None:  # as `up` does
        file = own_file(data)
    try:
        return load(os.environ, file, **over)
    except Mistakes as error:
        for line in error.lines:
            click.echo(f"error: {line}", err=True)
        raise SystemExit(2) from None


def read_own(file: Path | None, data: Path | None) -> Config:
    """Settings of `up`, whose file is in its data folder, or those of a file."""
    if data is None:
        return read(file)
    try:
        return load(own_variables(), file or own_file(data), data=str(real_path(data)))
    except Mistakes as error:
        raise click.ClickException(str(error)) from None


def own_variables() -> dict[str, str]:
    """What of the environment is about us."""
    return {name: value for name, value in os.environ.items() if name.startswith("TERRAPOD_")}


def owned(config: Config) -> Config:
    """The settings, once it is sure that whoever calls may write into the data folder.

    What root would write into another user's data folder, that user's server could not read.
    """
    services.check_owner(config.folder)
    return config
