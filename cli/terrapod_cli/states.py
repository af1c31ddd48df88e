"""`terrapod states`: states that came too late."""

from pathlib import Path

import click

from terrapod_cli.connected import (
    LIMIT,
    YES,
    Session,
    agreed,
    connected,
    finding,
    included_in,
    part,
    with_names,
    workspace,
)
from terrapod_cli.output import Column, Columns, Keep, Named, Row, flat

COLUMNS: Columns = (
    Column("LATE STATE", "id", Keep.ALL),
    Column("STATUS", "status"),
    Column("SERIAL", "serial"),
    Column("LINEAGE", "lineage"),
    Column("SIZE", "size"),
    Column("RUN", Named("run"), Keep.LONG),
    Column("CAME", "created-at"),
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


async def _find(session: Session, late_state: str) -> Row:
    """A late state by id. Raises NotFound."""
    with finding(session, "late state", late_state):
        document = await session.client.call("GET", f"late-states/{part(late_state)}", params={"include": "workspace"})
    return with_names(document["data"], included_in(document))


@states.command()
@click.argument("late_state", metavar="LATE-STATE")
@click.option("--confirm-serial", is_flag=True, help="Though its serial is not higher than the current one.")
@YES
@connected
async def adopt(session: Session, late_state: str, confirm_serial: bool, yes: bool) -> None:
    """Make a late state the workspace's current one; needs admin, and no run may be active."""
    row = await _find(session, late_state)
    agreed(
        f"Make {row['id']} (serial {row['serial']}) the current state of {row.get('workspace-name') or row['workspace']}?",
        yes=yes,
    )
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
    row = await _find(session, late_state)
    agreed(
        f"Throw {row['id']} (serial {row['serial']} of {row.get('workspace-name') or row['workspace']}) away?", yes=yes
    )
    answer = await session.client.call("POST", f"late-states/{part(late_state)}/actions/drop")
    session.out.done(flat(answer["data"]), f"dropped {row['id']}")


@states.command()
@click.argument("late_state", metavar="LATE-STATE")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@connected
async def pull(session: Session, late_state: str, file: Path) -> None:
    """Write a late state's bytes into FILE, which only you can read."""
    with finding(session, "late state", late_state):
        size = await session.client.download(f"late-states/{part(late_state)}/download", file)
    session.out.done({"id": late_state, "file": str(file), "size": size}, f"wrote {size} bytes to {file}")
