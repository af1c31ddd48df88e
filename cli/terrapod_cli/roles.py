"""`terrapod roles`: roles, and who has which."""

from typing import Any

import click

from terrapod_cli.connected import LIMIT, YES, Session, agreed, connected, finding, part
from terrapod_cli.output import Column, Columns, Fields, Keep, Row, flat
from terrapod_cli.users import FORCE
from terrapod_shared.client import Resource

COLUMNS: Columns = (
    Column("NAME", "name", Keep.LONG),
    Column("LEVEL", "workspace-permission"),
    Column("ALLOWS", lambda row: allows(row, "allow")),
    Column("DENIES", lambda row: allows(row, "deny")),
    Column("DESCRIPTION", "description"),
)
FIELDS: Fields = (
    ("Name", "name"),
    ("Description", "description"),
    ("Level", "workspace-permission"),
    ("Allows labels", "allow-labels"),
    ("Allows names", "allow-names"),
    ("Denies labels", "deny-labels"),
    ("Denies names", "deny-names"),
    ("Built in", "built-in"),
    ("Made", "created-at"),
    ("Changed", "updated-at"),
)
ASSIGNMENTS: Columns = (
    Column("EMAIL", "email", Keep.LONG),
    Column("PROVIDER", "provider-name"),
    Column("ROLE", "role-name", Keep.LONG),
    Column("SINCE", "created-at"),
)
_PATH = "role-assignments"


def allows(row: Row, word: str) -> list[str]:
    """Labels and names of one side of a role."""
    labels: dict[str, Any] = row.get(f"{word}-labels") or {}
    return [f"{key}={'|'.join(values) if isinstance(values, list) else values}" for key, values in labels.items()] + [
        str(name) for name in row.get(f"{word}-names") or ()
    ]


def _labels(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, list[str]] | None:
    """KEY=VALUE, of which a key may come more than once."""
    found: dict[str, list[str]] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE")
        found.setdefault(key, []).append(value)
    return found or None


def _conditions(do: Any) -> Any:
    for side, words in (("deny", "Where the role gives nothing"), ("allow", "Where the role counts; one is enough")):
        do = click.option(f"--{side}-name", f"{side}_names", multiple=True, metavar="NAME", help=f"{words}.")(do)
        do = click.option(
            f"--{side}-label", f"{side}_labels", multiple=True, callback=_labels, metavar="KEY=VALUE", help=f"{words}."
        )(do)
    return do


LEVEL = click.Choice(["read", "plan", "write", "admin"])


def _attributes(given: dict[str, Any]) -> Row:
    """What was given, as the API names it."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    row = {name.replace("_", "-"): value for name, value in values.items() if value not in (None, [])}
    if "level" in row:
        row["workspace-permission"] = row.pop("level")
    return row


@click.group()
def roles() -> None:
    """Roles: list, show, create, update, delete; assign, unassign, assignments."""


@roles.command("list")
@LIMIT
@connected
async def list_(session: Session, limit: int) -> None:
    """List roles: the built-in ones, then yours."""
    found = await session.client.listing("roles", limit)
    session.out.rows([flat(row) for row in found.rows], COLUMNS, found.total)


@roles.command()
@click.argument("name")
@connected
async def show(session: Session, name: str) -> None:
    """Show a role."""
    with finding(session, "role", name):
        row = flat(await session.client.get(f"roles/{part(name)}"))
    session.out.row(row, FIELDS)


@roles.command()
@click.argument("name")
@click.option("--level", type=LEVEL, required=True, help="What it gives on what matches.")
@click.option("--description", help="What it is for.")
@_conditions
@connected
async def create(session: Session, name: str, **given: Any) -> None:
    """Make a role that gives a level on workspaces, pools, modules and providers by label or name."""
    made = flat(await session.client.send("POST", "roles", "roles", {"name": name, **_attributes(given)}))
    session.out.done(made, f"made role {made['name']}")


@roles.command()
@click.argument("name")
@click.option("--level", type=LEVEL, help="What it gives on what matches.")
@click.option("--description", help="What it is for.")
@click.option(
    "--clear", multiple=True, type=click.Choice(["allow-labels", "allow-names", "deny-labels", "deny-names"]),
    help="Take all of these away; repeatable.",
)  # fmt: skip
@_conditions
@connected
async def update(session: Session, name: str, clear: tuple[str, ...], **given: Any) -> None:
    """Change a role for everybody who has it; a condition that is given replaces all of its kind."""
    attributes: Row = {word: {} if word.endswith("labels") else [] for word in clear} | _attributes(given)
    if not attributes:
        raise click.UsageError("nothing to change was given")
    with finding(session, "role", name):
        row = flat(await session.client.send("PATCH", f"roles/{part(name)}", "roles", attributes))
    session.out.done(row, f"changed role {row['name']}")


@roles.command()
@click.argument("name")
@YES
@connected
async def delete(session: Session, name: str, yes: bool) -> None:
    """Delete a role and take it from everybody."""
    agreed(f"Delete role {name} and take it from everybody?", yes=yes)
    with finding(session, "role", name):
        await session.client.call("DELETE", f"roles/{part(name)}")
    session.out.done({"id": name, "deleted": True}, f"deleted role {name}")


PROVIDER = click.option(
    "--provider", default="local", show_default=True, help="Who vouches for the address: local, or a sign-in provider."
)


async def _of(session: Session, email: str, provider: str) -> list[Resource]:
    params = {"filter[email]": email, "filter[provider-name]": provider}
    return (await session.client.listing(_PATH, 0, **params)).rows


@roles.command()
@click.argument("email")
@click.argument("names", nargs=-1, required=True, metavar="ROLE...")
@click.option("--only", is_flag=True, help="Exactly these: others are taken away.")
@PROVIDER
@FORCE
@connected
async def assign(session: Session, email: str, names: tuple[str, ...], only: bool, provider: str, force: bool) -> None:
    """Give a person roles, besides those that the person has."""
    had = [] if only else [row["attributes"]["role-name"] for row in await _of(session, email, provider)]
    attributes: Row = {"provider-name": provider, "email": email, "roles": list(dict.fromkeys([*had, *names]))}
    if force:
        attributes["force"] = True
    await session.client.call("PUT", _PATH, {"data": {"type": "role-assignments", "attributes": attributes}})
    rows = [flat(row) for row in await _of(session, email, provider)]
    if session.out.as_json:
        session.out.rows(rows, ASSIGNMENTS)
    else:
        session.out.done({}, f"{email} has {', '.join(row['role-name'] for row in rows)}")


@roles.command()
@click.argument("email")
@click.argument("name", metavar="ROLE")
@PROVIDER
@FORCE
@connected
async def unassign(session: Session, email: str, name: str, provider: str, force: bool) -> None:
    """Take a role from a person."""
    with finding(session, f"role assignment of {email}", name):
        path = f"{_PATH}/{part(provider)}/{part(email)}/{part(name)}"
        await session.client.call("DELETE", path, params={"force": "true" if force else None})
    session.out.done({"id": f"{provider}:{email}:{name}", "deleted": True}, f"took {name} from {email}")


@roles.command()
@click.option("--email", metavar="EMAIL", help="Only of this person.")
@LIMIT
@connected
async def assignments(session: Session, email: str | None, limit: int) -> None:
    """List who has which role."""
    found = await session.client.listing(_PATH, limit, **{"filter[email]": email})
    session.out.rows([flat(row) for row in found.rows], ASSIGNMENTS, found.total)
