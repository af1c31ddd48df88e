"""`terrapod-server`: up, serve, check, binaries."""

import asyncio
import os
import sys
from pathlib import Path

import click

from terrapod_server import config as settings
from terrapod_server import engines, serving, up


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="terrapod")
def main() -> None:
    """The Terrapod control server: remote runs and state for terraform and tofu."""


_CONFIG = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TERRAPOD_CONFIG",
    help="TOML file with settings; TERRAPOD_… variables win over it.",
)


def _load(file: Path | None) -> settings.Config:
    try:
        return settings.load(os.environ, file)
    except settings.Mistakes as error:
        for line in error.lines:
            click.echo(f"error: {line}", err=True)
        raise SystemExit(2) from None


@main.command()
@_CONFIG
def serve(file: Path | None) -> None:
    """Serve the API in production, by the settings of a file and of the environment.

    The first start makes the data folder with the keys; the database is brought to this release's schema.
    """
    serving.run(_load(file))


@main.command()
@_CONFIG
def check(file: Path | None) -> None:
    """Check the settings, and report every mistake at once."""
    config = _load(file)
    click.echo(f"the settings are good: {config.url}, data in {config.data}")


@main.command(name="up")
@click.option("--data", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of everything.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8443, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option("--plain-http", is_flag=True, help="Speak HTTP without TLS; on loopback only.")
@click.option("--no-listener", is_flag=True, help="Start no listener on this host.")
def start_all(data: Path, host: str, port: int, plain_http: bool, no_listener: bool) -> None:
    """Start a server, and one listener, for one host.

    The first start writes an administrator's token (DIR/admin-token), the certificate of an authority of its own
    (DIR/ca.pem), keys and database; later starts keep them. SIGTERM or Ctrl-C stops it cleanly.
    """
    try:
        up.run(up.Options(data.resolve(), host, port, plain_http=plain_http, with_listener=not no_listener))
    except up.Refused as error:
        raise click.ClickException(str(error)) from None


@main.group()
def binaries() -> None:
    """The cache of terraform and tofu binaries."""


@binaries.command(name="import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_CONFIG
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), help="Data folder of `up`, without a file.")
def import_(files: tuple[Path, ...], file: Path | None, data: Path | None) -> None:
    """Import release archives, such as terraform_1.15.5_linux_amd64.zip, on hosts without internet."""
    config = settings.load(os.environ, file, data=str(data)) if data else _load(file)
    sys.exit(asyncio.run(engines.import_all(config, files)))


if __name__ == "__main__":
    main()
