"""`terrapod pools`: pools, their join tokens and their listeners."""

from typing import Any

import click

from terrapod_cli.connected import LIMIT, ORG, YES, Session, agreed, connected, part
from terrapod_cli.output import Columns, flat
from terrapod_cli.times import EXPIRES
from terrapod_shared import ids
from terrapod_shared.client import Resource
from terrapod_shared.errors import NotFound

COLUMNS: Columns = (
    ("NAME", "name"),
    ("ID", "id"),
    ("LISTENERS", "agent-count"),
    ("FREE", lambda row: f"{row['free-slots']}/{row['slots']}"),
    ("WAITING", "queue-depth"),
    ("ALL WORKSPACES", "organization-scoped"),
    ("DESCRIPTION", "description"),
)
FIELDS: Columns = (
    ("Name", "name"),
    ("Id", "id"),
    ("Description", "description"),
    ("Listeners", "agent-count"),
    ("Free slots", lambda row: f"{row['free-slots']} of {row['slots']}"),
    ("Waiting", "queue-depth"),
    ("Waiting, plan only", "queue-depth-plan-only"),
    ("Oldest waits", lambda row: f"{row['queue-oldest-seconds']:.0f} s" if row["queue-depth"] else None),
    ("Running", "running"),
    ("Held", "held"),
    ("For all workspaces", "organization-scoped"),
    ("Allowed workspaces", "allowed-workspaces"),
    ("Labels", "labels"),
    ("Made", "created-at"),
)
LISTENERS: Columns = (
    ("NAME", "name"),
    ("ID", "id"),
    ("STATUS", "status"),
    ("FREE", lambda row: f"{row['free-slots']}/{row['capacity']}"),
    ("RUNNING", "running"),
    ("PLATFORM", lambda row: f"{row['os']}/{row['arch']}"),
    ("VERSION", "version"),
    ("LAST SEEN", "last-seen-at"),
)
TOKENS: Columns = (
    ("ID", "id"),
    ("DESCRIPTION", "description"),
    ("USED", lambda row: f"{row['use-count']} of {row['max-uses'] or 'any'}"),
    ("EXPIRES", "expires-at"),
    ("REVOKED", "is-revoked"),
    ("LAST USED", "last-used-at"),
)


async def find(session: Session, named: str) -> Resource:
    """A pool by id or by name."""
    if ids.is_valid(named, "apool"):
        return await session.client.get(f"agent-pools/{named}")
    found = await session.client.listing(f"{ORG}/agent-pools", q=named)
    for pool in found.rows:
        if pool["attributes"]["name"] == named:
            return pool
    raise NotFound(f"there is no pool {named}")


@click.group()
def pools() -> None:
    """Pools of listeners, their join tokens and their listeners."""


@pools.command("list")
@LIMIT
@connected
async def list_(session: Session, limit: int) -> None:
    """List the pools, by name."""
    found = await session.client.listing(f"{ORG}/agent-pools", limit)
    session.out.rows([flat(row) for row in found.rows], COLUMNS, found.total)


@pools.command()
@click.argument("pool")
@connected
async def show(session: Session, pool: str) -> None:
    """Show a pool, by name or id."""
    session.out.row(flat(await find(session, pool)), FIELDS)


@pools.command()
@click.argument("name")
@click.option("--description", help="What it is for.")
@click.option("--only-allowed", is_flag=True, help="For allowed workspaces only.")
@connected
async def create(session: Session, name: str, description: str | None, only_allowed: bool) -> None:
    """Make a pool."""
    attributes = {"name": name, "organization-scoped": not only_allowed, "description": description or ""}
    made = flat(await session.client.send("POST", f"{ORG}/agent-pools", "agent-pools", attributes))
    session.out.done(made, f"made pool {made['name']} ({made['id']})")


@pools.command()
@click.argument("pool")
@YES
@connected
async def delete(session: Session, pool: str, yes: bool) -> None:
    """Delete a pool that no workspace uses."""
    found = flat(await find(session, pool))
    agreed(f"Delete pool {found['name']}?", yes=yes)
    await session.client.call("DELETE", f"agent-pools/{found['id']}")
    session.out.done({"id": found["id"], "deleted": True}, f"deleted pool {found['name']}")


@pools.command()
@click.argument("pool")
@LIMIT
@connected
async def listeners(session: Session, pool: str, limit: int) -> None:
    """List a pool's listeners."""
    found = await session.client.listing(f"agent-pools/{(await find(session, pool))['id']}/listeners", limit)
    session.out.rows([flat(row) for row in found.rows], LISTENERS, found.total)


@pools.command()
@click.argument("pool")
@click.argument("listener")
@click.option("--undo", is_flag=True, help="Let it take work again.")
@connected
async def drain(session: Session, pool: str, listener: str, undo: bool) -> None:
    """Ask a pool's listener, by name or id, to take no more work."""
    found = await session.client.listing(f"agent-pools/{(await find(session, pool))['id']}/listeners")
    row = next((row for row in found.rows if listener in (row["id"], row["attributes"]["name"])), None)
    if row is None:
        raise NotFound(f"pool {pool} has no listener {listener}")
    answer = await session.client.call("POST", f"listeners/{row['id']}/actions/{'undrain' if undo else 'drain'}")
    name = row["attributes"]["name"]
    session.out.done(flat(answer["data"]), f"{name} takes work again" if undo else f"{name} takes no more work")


@pools.group()
def tokens() -> None:
    """Join tokens of a pool."""


@tokens.command("list")
@click.argument("pool")
@LIMIT
@connected
async def list_tokens(session: Session, pool: str, limit: int) -> None:
    """List a pool's join tokens; what a token is can be read at its creation only."""
    found = await session.client.listing(
        f"agent-pools/{(await find(session, pool))['id']}/authentication-tokens", limit
    )
    session.out.rows([flat(row) for row in found.rows], TOKENS, found.total)


@tokens.command("create")
@click.argument("pool")
@click.option("--description", default="made by terrapod pools tokens create", help="What it is for.")
@click.option("--max-uses", type=click.IntRange(min=1), help="How many listeners may join with it; default: one.")
@EXPIRES
@connected
async def create_token(session: Session, pool: str, expires: str | None, **given: Any) -> None:
    """Make a join token and print it, once."""
    found = await find(session, pool)
    attributes = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
    if expires:
        attributes["expires-at"] = expires
    path = f"agent-pools/{found['id']}/authentication-tokens"
    made = flat(await session.client.send("POST", path, "authentication-tokens", attributes), reveal=True)
    if not session.out.as_json:
        session.out.say(f"token {made['id']}, until {made['expires-at'] or 'it is revoked'}; it is shown this once:")
    session.out.done(made, made["token"])


@tokens.command()
@click.argument("token_id", metavar="TOKEN-ID")
@connected
async def revoke(session: Session, token_id: str) -> None:
    """Revoke a join token: nobody can join with it any more."""
    await session.client.call("DELETE", f"authentication-tokens/{part(token_id)}")
    session.out.done({"id": token_id, "deleted": True}, f"revoked token {token_id}")
