"""`terrapod pools`: pools, their join tokens and their listeners."""

from typing import Any

import click

from terrapod_cli.connected import (
    LIMIT,
    ORG,
    YES,
    Session,
    agreed,
    connected,
    finding,
    included_in,
    missing,
    part,
    with_names,
)
from terrapod_cli.connected import pool as find
from terrapod_cli.output import Column, Columns, Fields, Keep, Named, Row, flat
from terrapod_cli.times import EXPIRES
from terrapod_shared import errors

COLUMNS: Columns = (
    Column("NAME", "name", Keep.LONG),
    Column("ID", "id", Keep.ALL, only_ids=True),
    Column("LISTENERS", "agent-count"),
    Column("FREE", lambda row: f"{row['free-slots']}/{row['slots']}"),
    Column("WAITING", "queue-depth"),
    Column("FOR ALL", "organization-scoped"),
    Column("DESCRIPTION", "description"),
)
FIELDS: Fields = (
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
    ("Allowed workspaces", Named("allowed-workspaces")),
    ("Labels", "labels"),
    ("Made", "created-at"),
)
LISTENERS: Columns = (
    Column("NAME", "name", Keep.LONG),
    Column("ID", "id", Keep.ALL, only_ids=True),
    Column("STATUS", "status"),
    Column("FREE", lambda row: f"{row['free-slots']}/{row['capacity']}"),
    Column("RUNNING", "running"),
    Column("PLATFORM", lambda row: f"{row['os']}/{row['arch']}"),
    Column("VERSION", "version"),
    Column("LAST SEEN", "last-seen-at"),
)
TOKENS: Columns = (
    Column("TOKEN", "id", Keep.ALL),
    Column("DESCRIPTION", "description"),
    Column("USED", lambda row: f"{row['use-count']} of {row['max-uses'] or 'any'}"),
    Column("EXPIRES", "expires-at"),
    Column("REVOKED", "is-revoked"),
    Column("LAST USED", "last-used-at"),
)


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
    path = f"agent-pools/{(await find(session, pool))['id']}"
    document = await session.client.call("GET", path, params={"include": "allowed-workspaces"})
    session.out.row(with_names(document["data"], included_in(document)), FIELDS)


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


class _Listeners(click.Group):
    """`pools listeners POOL` lists, as `pools listeners list POOL` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["list", *args]
        return super().parse_args(ctx, args)


@pools.group(cls=_Listeners)
def listeners() -> None:
    """A pool's listeners: list, remove, allow-rejoin. `pools listeners POOL` lists them."""


@listeners.command("list")
@click.argument("pool")
@LIMIT
@connected
async def list_listeners(session: Session, pool: str, limit: int) -> None:
    """List a pool's listeners."""
    found = await session.client.listing(f"agent-pools/{(await find(session, pool))['id']}/listeners", limit)
    session.out.rows([flat(row) for row in found.rows], LISTENERS, found.total)


async def _listener(session: Session, pool: str, named: str) -> Row:
    """A pool's listener, by name or id. Raises NotFound, and Conflict where one has the other's id as its name."""
    found = await session.client.listing(f"agent-pools/{(await find(session, pool))['id']}/listeners")
    rows = [row for row in found.rows if named in (row["id"], row["attributes"]["name"])]
    if not rows:
        raise missing(session, f'listener "{named}" of pool "{pool}"')
    if len(rows) > 1:
        raise errors.Conflict(
            f'"{named}" is the id of one listener and the name of another: give the other word for it'
        )
    return flat(rows[0])


@listeners.command("remove")
@click.argument("pool")
@click.argument("listener")
@YES
@connected
async def remove_listener(session: Session, pool: str, listener: str, yes: bool) -> None:
    """Remove a listener, by name or id, whose host does not come back: its key is good for nothing from then on.

    A state that only this listener has cannot be delivered any more. To let the host come back under its name, use
    allow-rejoin.
    """
    row = await _listener(session, pool, listener)
    has = [f"{row['running']} runs"] if row["running"] else []
    has += [f"{len(row['spooled-states'])} states that are not delivered"] if row["spooled-states"] else []
    lost = f" It still has {' and '.join(has)}, which it cannot deliver then." if has else ""
    agreed(f"Remove listener {row['name']} from pool {pool}?{lost}", yes=yes)
    await session.client.call("DELETE", f"listeners/{row['id']}")
    session.out.done({"id": row["id"], "deleted": True}, f"removed listener {row['name']}")


@listeners.command()
@click.argument("pool")
@click.argument("listener")
@connected
async def allow_rejoin(session: Session, pool: str, listener: str) -> None:
    """Let a host that has lost its key join once more under the listener's name, with a join token of the pool.

    It stays the same listener: what is held for it is its own again.
    """
    row = await _listener(session, pool, listener)
    answer = await session.client.call("POST", f"listeners/{row['id']}/actions/allow-rejoin")
    session.out.done(flat(answer["data"]), f"the next join to pool {pool} as {row['name']} is let in, once")


@pools.command()
@click.argument("pool")
@click.argument("listener")
@click.option("--undo", is_flag=True, help="Let it take work again.")
@connected
async def drain(session: Session, pool: str, listener: str, undo: bool) -> None:
    """Ask a pool's listener, by name or id, to take no more work."""
    row = await _listener(session, pool, listener)
    answer = await session.client.call("POST", f"listeners/{row['id']}/actions/{'undrain' if undo else 'drain'}")
    name = row["name"]
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
    with finding(session, "join token", token_id):
        await session.client.call("DELETE", f"authentication-tokens/{part(token_id)}")
    session.out.done({"id": token_id, "deleted": True}, f"revoked token {token_id}")
