"""`terrapod users`."""

import click

from terrapod_cli.connected import LIMIT, ORG, YES, Session, agreed, connected, finding, part
from terrapod_cli.output import Column, Columns, Fields, Keep, Row, flat
from terrapod_shared.operator_errors import line_of_stdin

COLUMNS: Columns = (
    Column("EMAIL", "email", Keep.LONG),
    Column("ID", "id", Keep.ALL, only_ids=True),
    Column("NAME", "display-name"),
    Column("ACTIVE", "is-active"),
    Column("ADMIN", "is-admin"),
    Column("MADE", "created-at"),
)
FIELDS: Fields = (
    ("Email", "email"),
    ("Id", "id"),
    ("Name", "display-name"),
    ("Active", "is-active"),
    ("Platform admin", "is-admin"),
    ("Has a password", "has-password"),
    ("Last sign-in", "last-login-at"),
    ("Made", "created-at"),
)
FORCE = click.option("--force", is_flag=True, help="Even if you shut yourself out by it.")


@click.group()
def users() -> None:
    """Users: list, show, create, deactivate, activate, delete."""


@users.command("list")
@click.option("--search", metavar="TEXT", help="Only addresses that hold this text.")
@LIMIT
@connected
async def list_(session: Session, search: str | None, limit: int) -> None:
    """List users, newest first."""
    found = await session.client.listing(f"{ORG}/users", limit, **{"filter[email]": search})
    session.out.rows([flat(row) for row in found.rows], COLUMNS, found.total)


async def _find(session: Session, user: str) -> Row:
    """A user, by address or id. Raises NotFound."""
    with finding(session, "user", user):
        return flat(await session.client.get(f"users/{part(user)}"))


@users.command()
@click.argument("user", metavar="EMAIL")
@connected
async def show(session: Session, user: str) -> None:
    """Show a user, by address or id."""
    session.out.row(await _find(session, user), FIELDS)


@users.command()
@click.argument("email")
@click.option("--name", help="How the user wants to be called.")
@click.option("--password-stdin", is_flag=True, help="Read a password from stdin, for signing in with one.")
@connected
async def create(session: Session, email: str, name: str | None, password_stdin: bool) -> None:
    """Make a user, who may do nothing until a role is assigned."""
    attributes: Row = {"email": email, "display-name": name or ""}
    if password_stdin:
        attributes["password"] = line_of_stdin("password")
    made = flat(await session.client.send("POST", f"{ORG}/users", "users", attributes))
    session.out.done(made, f"made user {made['email']} ({made['id']})")


async def _set(session: Session, user: str, *, active: bool, force: bool, sentence: str) -> None:
    attributes: Row = {"is-active": active} | ({"force": True} if force else {})
    with finding(session, "user", user):
        row = flat(await session.client.send("PATCH", f"users/{part(user)}", "users", attributes))
    session.out.done(row, f"{sentence} {row['email']}")


@users.command()
@click.argument("user", metavar="EMAIL")
@FORCE
@connected
async def deactivate(session: Session, user: str, force: bool) -> None:
    """Shut a user out at once, with all sessions and tokens."""
    await _set(session, user, active=False, force=force, sentence="deactivated")


@users.command()
@click.argument("user", metavar="EMAIL")
@connected
async def activate(session: Session, user: str) -> None:
    """Let a user in again."""
    await _set(session, user, active=True, force=False, sentence="activated")


@users.command()
@click.argument("user", metavar="EMAIL")
@FORCE
@YES
@connected
async def delete(session: Session, user: str, force: bool, yes: bool) -> None:
    """Delete a user with all tokens, sessions and roles."""
    found = await _find(session, user)
    agreed(f"Delete user {found['email']}?", yes=yes)
    await session.client.call("DELETE", f"users/{found['id']}", params={"force": "true" if force else None})
    session.out.done({"id": found["id"], "deleted": True}, f"deleted user {found['email']}")
