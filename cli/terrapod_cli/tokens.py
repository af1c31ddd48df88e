"""`terrapod tokens`: a user's own."""

import click

from terrapod_cli.connected import LIMIT, Session, connected, finding, part, workspace
from terrapod_cli.output import Column, Columns, Keep, Named, Row, flat
from terrapod_cli.times import EXPIRES
from terrapod_shared.errors import NotFound

COLUMNS: Columns = (
    Column("TOKEN", "id", Keep.ALL),
    Column("DESCRIPTION", "description"),
    Column("ACCESS", lambda row: "read" if row["read-only"] else "full"),
    Column("WORKSPACE", Named("workspace-id")),
    Column("EXPIRES", "expired-at"),
    Column("LAST USED", "last-used-at"),
    Column("MADE", "created-at", Keep.EXTRA),
)


async def _own_id(session: Session) -> str:
    own: str = (await session.client.get("account/details"))["id"]
    return own


@click.group()
def tokens() -> None:
    """Your tokens, for programs that act for you."""


@tokens.command("list")
@click.option("--user", metavar="EMAIL", help="Somebody else's; for admins and auditors.")
@LIMIT
@connected
async def list_(session: Session, user: str | None, limit: int) -> None:
    """List tokens; what a token is can be read at its creation only."""
    who = await _own_id(session) if user is None else user
    with finding(session, "user", who):
        found = await session.client.listing(f"users/{part(who)}/authentication-tokens", limit)
    rows = [flat(row) for row in found.rows]
    for workspace_id in {row["workspace-id"] for row in rows} - {None, ""}:
        name = await _name(session, workspace_id)
        for row in rows:
            if row["workspace-id"] == workspace_id:
                row["workspace-id-name"] = name
    session.out.rows(rows, COLUMNS, found.total)


async def _name(session: Session, workspace_id: str) -> str | None:
    """A workspace's name; None where it was deleted meanwhile, or may not be read."""
    try:
        return str((await workspace(session, workspace_id))["attributes"]["name"])
    except NotFound:
        return None


@tokens.command()
@click.option("--description", required=True, help="What it is for.")
@EXPIRES
@click.option("--read-only", is_flag=True, help="It may change nothing.")
@click.option("--workspace", "-w", "named", metavar="NAME", help="It is good for this workspace only.")
@connected
async def create(session: Session, description: str, expires: str | None, read_only: bool, named: str | None) -> None:
    """Make a token and print it, once."""
    attributes: Row = {"description": description, "expired-at": expires, "read-only": read_only}
    if named is not None:
        attributes["workspace-id"] = (await workspace(session, named))["id"]
    path = f"users/{await _own_id(session)}/authentication-tokens"
    made = flat(await session.client.send("POST", path, "authentication-tokens", attributes), reveal=True)
    if not session.out.as_json:
        session.out.say(f"token {made['id']}, until {made['expired-at'] or 'it is deleted'}; it is shown this once:")
    session.out.done(made, made["token"])


@tokens.command()
@click.argument("token_id", metavar="TOKEN-ID")
@connected
async def delete(session: Session, token_id: str) -> None:
    """Delete a token: it is no longer good at once."""
    with finding(session, "token", token_id):
        await session.client.call("DELETE", f"authentication-tokens/{part(token_id)}")
    session.out.done({"id": token_id, "deleted": True}, f"deleted token {token_id}")
