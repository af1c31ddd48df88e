"""`terrapod-listener install-service`: a pip install becomes a service of systemd."""

from pathlib import Path

import click

from terrapod_shared import services

SERVICE = services.Service(
    program="terrapod-listener",
    module="terrapod_listener",
    units=Path(__file__).parents[1] / "units",
    home="/var/lib/terrapod-listener",
    drop_ins=("bubblewrap", "no-metadata"),
)
_NEXT = """
Next:
  systemd-sysusers && systemd-tmpfiles --create
  systemctl daemon-reload
  runuser -u terrapod-listener -- {program} join --server https://SERVER --token-stdin --home {home}
  systemctl enable --now terrapod-listener
"""


@click.command(name="install-service")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TERRAPOD_LISTENER_HOME",
    default=Path(SERVICE.home),
    show_default=True,
    help="Folder of keys, settings, engines and runs.",
)
@click.option("--bubblewrap", is_flag=True, help="Add the drop-in that lets runs be put into sandboxes.")
@click.option(
    "--block-metadata", is_flag=True, help="Add the drop-in that keeps it, and runs, from the cloud's metadata address."
)
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path("/"), help="Write below this folder, as for an image."
)
@click.option("--dry-run", is_flag=True, help="Show the files, and write nothing.")
def install_service(home: Path, bubblewrap: bool, block_metadata: bool, root: Path, dry_run: bool) -> None:
    """Make this a service of systemd.

    Writes its unit, user and folders for this interpreter; calling it again changes nothing, or brings them up to date.
    """
    asked = dict(zip(SERVICE.drop_ins, (bubblewrap, block_metadata), strict=True))
    chosen = tuple(name for name, is_wanted in asked.items() if is_wanted)
    try:
        services.install(SERVICE, services.Wish(home, root, dry_run, drop_ins=chosen))
    except services.Refused as error:
        raise click.ClickException(str(error)) from None
    if not dry_run:
        own, _ = services.interpreter()
        click.echo(_NEXT.format(program=own.with_name(SERVICE.program), home=home))
