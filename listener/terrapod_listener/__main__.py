"""`terrapod-listener`: join, run, status."""

import asyncio
import logging
import os
from pathlib import Path

import click

from terrapod_listener import config as settings
from terrapod_listener import identity, joining, kept, loop
from terrapod_shared.errors import TerrapodError

_HOME = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TERRAPOD_LISTENER_HOME",
    default=Path("/var/lib/terrapod-listener"),
    show_default=True,
    help="Folder of keys, settings, engines and runs; only the listener's user may read it.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="terrapod")
def main() -> None:
    """A Terrapod listener: joins a pool, waits for runs, does the work, streams the logs back."""


@main.command()
@click.option(
    "--server", required=True, envvar="TERRAPOD_LISTENER_SERVER", help="Address, such as https://terrapod.example.com."
)
@click.option("--token", required=True, envvar="TERRAPOD_LISTENER_TOKEN", help="A join token of the pool.")
@click.option("--name", default="", envvar="TERRAPOD_LISTENER_NAME", help="Name of this listener; default: the host's.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="TERRAPOD_LISTENER_CA",
    help="PEM file of the authority that vouches for the server; default: the system's.",
)
@_HOME
def join(server: str, token: str, name: str, ca: Path | None, home: Path) -> None:
    """Join a pool.

    It makes the keys here, spends the token, and keeps the certificate.
    """
    try:
        joined = asyncio.run(joining.join(home.resolve(), server, token, name, ca))
    except TerrapodError as error:
        raise click.ClickException(error.detail) from None
    me = joined.kept
    click.echo(f"joined pool {me.pool_id} as {me.name} ({me.listener_id}); certificate until {joined.expires()}")


def _opened(home: Path) -> identity.Identity:
    found = identity.load(home)
    if found is None:
        message = f"{home} has no identity: join a pool first"
        raise click.ClickException(message)
    return found


@main.command()
@_HOME
def run(home: Path) -> None:
    """Wait for runs and do them, until SIGTERM.

    The first SIGTERM drains: no new work, running work finishes. A second interrupts terraform, a third kills it.
    """
    home = home.resolve()
    try:
        config = settings.load(home, os.environ)
    except settings.Mistakes as error:
        for line in error.lines:
            click.echo(f"error: {line}", err=True)
        raise SystemExit(2) from None
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.umask(0o077)
    asyncio.run(loop.Daemon(home, _opened(home), config).run())


@main.command()
@_HOME
def status(home: Path) -> None:
    """Say who this listener is, and what it could not deliver yet."""
    found = _opened(home.resolve())
    who = found.kept
    click.echo(f"listener:    {who.name} ({who.listener_id})")
    click.echo(f"server:      {who.server}")
    click.echo(f"pool:        {who.pool_id}")
    click.echo(f"certificate: until {found.expires()}{' (over)' if found.is_over() else ''}")
    waiting = kept.spooled(home.resolve())
    click.echo(f"spool:       {len(waiting)} states not delivered")
    for facts in waiting:
        click.echo(
            f"  {facts['run_id']}: serial {facts['serial']}, lineage {facts['lineage']}{': ' * bool(facts['reason'])}{facts['reason']}"
        )


if __name__ == "__main__":
    main()
