"""`terrapod states`: states that came too late."""

from pathlib import Path

import click

from terrapod_cli.connected import LIMIT, YES, Session, agreed, connected, part, workspace
from terrapod_cli.output import Columns, flat

COLUMNS: Columns = (
    ("ID", "id"),
    ("STATUS", "status"),
    ("SERIAL", "serial"),
    ("LINEAGE", "lineage"),
    ("SIZE", "size"),
    ("RUN", "run"),
    ("CAME", "created-at"),
)


@click.group()
def states() -> None:
    """States that a listener delivered after its run was given up: late, adopt, drop, pull."""


@states.command()
@click.argument("name", metavar="WORKSPACE")
@click.option("--all", "is_all", is_flag=True, help="Also those that were adopted or dropped.")
@LIMIT
@connected
async def late(session: Session, name: str, is_all: bool, limit: int) -> None:
    """List a workspace's late states that wait for somebody's word."""
    path = f"workspaces/{(await workspace(session, name))['id']}/late-states"
    found = await session.client.listing(path, limit, **{"filter[status]": None if is_all else "waiting"})
    session.out.rows([flat(row) for row in found.rows], COLUMNS, found.total)


@states.command()
@click.argument("late_state", metavar="LATE-STATE")
@click.option("--confirm-serial", is_flag=True, help="Though its serial is not higher than the current one.")
@YES
@connected
async def adopt(session: Session, late_state: str, confirm_serial: bool, yes: bool) -> None:
    """Make a late state the workspace's current one; needs admin, and no run may be active."""
    row = flat(await session.client.get(f"late-states/{part(late_state)}"))
    agreed(f"Make {row['id']} (serial {row['serial']}) the current state of {row['workspace']}?", yes=yes)
    attributes = {"confirm-serial": True} if confirm_serial else {}
    path = f"late-states/{part(late_state)}/actions/adopt"
    done = flat(await session.client.send("POST", path, "late-states", attributes))
    session.out.done(done, f"adopted {done['id']} as {done['state-version']}")


@states.command()
@click.argument("late_state", metavar="LATE-STATE")
@YES
@connected
async def drop(session: Session, late_state: str, yes: bool) -> None:
    """Throw a late state away for good; needs admin."""
    row = flat(await session.client.get(f"late-states/{part(late_state)}"))
    agreed(f"Throw {row['id']} (serial {row['serial']} of {row['workspace']}) away?", yes=yes)
    answer = await session.client.call("POST", f"late-states/{part(late_state)}/actions/drop")
    session.out.done(flat(answer["data"]), f"dropped {row['id']}")


@states.command()
@click.argument("late_state", metavar="LATE-STATE")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@connected
async def pull(session: Session, late_state: str, file: Path) -> None:
    """Write a late state's bytes into FILE, which only you can read."""
    size = await session.client.download(f"late-states/{part(late_state)}/download", file)
    session.out.done({"id": late_state, "file": str(file), "size": size}, f"wrote {size} bytes to {file}")
