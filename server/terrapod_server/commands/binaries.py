"""`terrapod-server binaries import`."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from terrapod_server import app
from terrapod_server.commands import options
from terrapod_server.config.settings import Config
from terrapod_server.engines import actions as engine_cache
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
                engine = await engine_cache.import_zip(
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


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group(name="binaries")
def command() -> None:
    """The cache of terraform and tofu binaries."""


@command.command(name="import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--sums", type=_FILE, help="The release's SHA256SUMS; default: the one beside each archive.")
@click.option("--signature", type=_FILE, help="Its OpenPGP signature; default: the one beside each archive.")
@click.option("--unsigned", is_flag=True, help="Vouch for the archives yourself: no signature is checked.")
@options.CONFIG
@options.DATA
def import_(
    files: tuple[Path, ...],
    sums: Path | None,
    signature: Path | None,
    unsigned: bool,
    file: Path | None,
    data: Path | None,
) -> None:
    """Import release archives.

    For hosts without internet. A file is named as its release is, such as terraform_1.15.5_linux_amd64.zip, and its
    publisher's signed checksums are needed beside it. What comes in unsigned is listed as such.
    """
    if unsigned and (sums or signature):
        message = "--unsigned goes with neither --sums nor --signature"
        raise click.UsageError(message)
    importing = import_all(
        options.owned(options.read(file, data)), files, sums=sums, signature=signature, unsigned=unsigned
    )
    sys.exit(asyncio.run(importing))
