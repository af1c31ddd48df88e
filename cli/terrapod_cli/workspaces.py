"""`terrapod workspaces`."""

from typing import Any

import click

from terrapod_cli.connected import LIMIT, ORG, YES, Session, agreed, connected, pairs, pool, workspace
from terrapod_cli.output import Column, Columns, Fields, Keep, Named, Row, flat

COLUMNS: Columns = (
    Column("NAME", "name", Keep.LONG),
    Column("ID", "id", Keep.ALL, only_ids=True),
    Column("MODE", "execution-mode"),
    Column("VERSION", "terraform-version"),
    Column("RESOURCES", "resource-count"),
    Column("LOCKED", "locked"),
    Column("LABELS", "labels"),
)
FIELDS: Fields = (
    ("Name", "name"),
    ("Id", "id"),
    ("Description", "description"),
    ("Execution mode", "execution-mode"),
    ("Engine", lambda row: f"{row.get('execution-backend')} {row.get('terraform-version')}"),
    ("Working directory", "working-directory"),
    ("Applies by itself", "auto-apply"),
    ("Pool", Named("agent-pool")),
    ("Owner", "owner-email"),
    ("Labels", "labels"),
    ("Resources", "resource-count"),
    (
        "Locked",
        lambda row: (
            (row.get("lock-reason") or f"by {row.get('locked-by-name') or row.get('locked-by')}")
            if row.get("locked")
            else False
        ),
    ),
    ("Late states", "late-states"),
    ("Current run", "current-run"),
    ("Made", "created-at"),
    ("Changed", "updated-at"),
)


@click.group()
def workspaces() -> None:
    """Workspaces: list, show, create, delete, lock, unlock."""


@workspaces.command("list")
@click.option("--search", metavar="TEXT", help="Only names that hold this text.")
@click.option("--label", metavar="KEY[,KEY]", help="Only those that carry these labels.")
@LIMIT
@connected
async def list_(session: Session, search: str | None, label: str | None, limit: int) -> None:
    """List the workspaces that you may read, by name."""
    params = {"search[name]": search, "search[tags]": label}
    found = await session.client.listing(f"{ORG}/workspaces", limit, **params)
    session.out.rows([flat(row) for row in found.rows], COLUMNS, found.total)


@workspaces.command()
@click.argument("name")
@connected
async def show(session: Session, name: str) -> None:
    """Show a workspace, by name or id."""
    session.out.row(flat(await workspace(session, name, "agent-pool,locked-by")), FIELDS)


@workspaces.command()
@click.argument("name")
@click.option("--description", help="What it is for.")
@click.option("--execution-mode", type=click.Choice(["remote", "agent", "local"]), help="Where runs happen.")
@click.option("--pool", "in_pool", metavar="NAME", help="The pool of execution mode agent, by name or id.")
@click.option("--terraform-version", metavar="VERSION", help="Such as 1.11.4, 1.11 or latest.")
@click.option("--engine", "execution_backend", type=click.Choice(["terraform", "tofu"]), help="Which engine runs.")
@click.option("--working-directory", metavar="FOLDER", help="Folder of the root module.")
@click.option("--auto-apply", is_flag=True, default=None, help="The server approves runs by itself.")
@click.option("--label", "labels", multiple=True, callback=pairs, metavar="KEY=VALUE", help="Repeatable.")
@connected
async def create(session: Session, name: str, in_pool: str | None, labels: dict[str, str], **settings: Any) -> None:
    """Make a workspace; you become its owner."""
    attributes: Row = {key.replace("_", "-"): value for key, value in settings.items() if value is not None}
    attributes |= {"name": name} | ({"labels": labels} if labels else {})
    if in_pool is not None:
        pool_id = (await pool(session, in_pool))["id"]
        attributes |= {"agent-pool-id": pool_id, "execution-mode": settings["execution_mode"] or "agent"}
    made = flat(await session.client.send("POST", f"{ORG}/workspaces", "workspaces", attributes))
    session.out.done(made, f"made workspace {made['name']} ({made['id']})")


@workspaces.command()
@click.argument("name")
@click.option("--with-state", is_flag=True, help="Even if its state still holds resources.")
@click.option("--force", is_flag=True, help="The same.")
@YES
@connected
async def delete(session: Session, name: str, with_state: bool, force: bool, yes: bool) -> None:
    """Delete a workspace; refused while the state holds resources, and while a run applies. Other runs of it end."""
    found = flat(await workspace(session, name))
    agreed(f"Delete workspace {found['name']} with its runs and its state?", yes=yes)
    if force or with_state:
        await session.client.call("DELETE", f"workspaces/{found['id']}")
    else:
        await session.client.call("POST", f"workspaces/{found['id']}/actions/safe-delete")
    session.out.done({"id": found["id"], "deleted": True}, f"deleted workspace {found['name']}")


@workspaces.command()
@click.argument("name")
@click.option("--reason", default="", help="Why, for others.")
@connected
async def lock(session: Session, name: str, reason: str) -> None:
    """Lock a workspace: runs that could apply wait."""
    found = await workspace(session, name)
    answer = await session.client.call("POST", f"workspaces/{found['id']}/actions/lock", {"reason": reason})
    session.out.done(flat(answer["data"]), f"locked workspace {found['attributes']['name']}")


@workspaces.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Somebody else's, or a run's that left the state unknown; needs admin.")
@connected
async def unlock(session: Session, name: str, force: bool) -> None:
    """Free your lock of a workspace."""
    found = await workspace(session, name)
    verb = "force-unlock" if force else "unlock"
    row = flat((await session.client.call("POST", f"workspaces/{found['id']}/actions/{verb}"))["data"])
    left = f"freed a lock of workspace {row['name']}, which is still locked: {row.get('lock-reason') or 'by somebody'}"
    session.out.done(row, left if row["locked"] else f"unlocked workspace {row['name']}")
