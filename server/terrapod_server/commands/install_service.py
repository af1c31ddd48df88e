"""`terrapod-server install-service`: a pip install becomes a service of systemd."""

from pathlib import Path

import click

from terrapod_shared import services

SERVICE = services.Service(
    program="terrapod-server",
    module="terrapod_server",
    units=Path(__file__).parents[1] / "units",
    home="/var/lib/terrapod",
)
_CONFIG = Path("/etc/terrapod/server.toml")
_NEXT = """
Next:
  systemd-sysusers && systemd-tmpfiles --create
  systemctl daemon-reload
  {program} check --config {config}
  systemctl enable --now terrapod-server
"""


@click.command(name="install-service")
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="TERRAPOD_CONFIG",
    default=_CONFIG,
    show_default=True,
    help="TOML file with settings.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(SERVICE.home),
    show_default=True,
    help="Data folder, as the settings say it.",
)
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path("/"), help="Write below this folder, as for an image."
)
@click.option("--dry-run", is_flag=True, help="Show the files, and write nothing.")
def command(file: Path, data: Path, root: Path, dry_run: bool) -> None:
    """Make this a service of systemd.

    Writes its unit, user and folder for this interpreter; calling it again changes nothing, or brings them up to date.
    """
    try:
        services.install(SERVICE, services.Wish(data, root, dry_run, config=file))
    except services.Refused as error:
        raise click.ClickException(str(error)) from None
    if not dry_run:
        own, _ = services.interpreter()
        click.echo(_NEXT.format(program=own.with_name(SERVICE.program), config=file))
