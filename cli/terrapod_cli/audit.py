"""`terrapod audit`."""

import click

from terrapod_cli.connected import LIMIT, Session, connected
from terrapod_cli.output import Column, Columns, Keep, Named, flat

COLUMNS: Columns = (
    Column("TIME", "timestamp"),
    Column("ACTOR", "actor-email", Keep.LONG),
    Column("FROM", "actor-ip"),
    Column("ACTION", "action"),
    Column("TYPE", "resource-type"),
    Column("ID", Named("resource-id")),
    Column("STATUS", "status-code"),
    Column("REQUEST", "request-id", Keep.ALL, only_ids=True),
)


@click.group()
def audit() -> None:
    """The audit log."""


@audit.command("list")
@click.option("--actor", metavar="EMAIL", help="Only by this person.")
@click.option("--type", "kind", metavar="TYPE", help="Only on things of this type, such as workspaces.")
@click.option("--action", help="Only by this method: GET, POST, PATCH or DELETE.")
@click.option("--since", metavar="TIME", help="Only after this time of RFC 3339.")
@click.option("--until", metavar="TIME", help="Only before this time of RFC 3339.")
@LIMIT
@connected
async def list_(
    session: Session, actor: str | None, kind: str | None, action: str | None, since: str | None, until: str | None,
    limit: int,
) -> None:  # fmt: skip
    """List what was changed or refused, newest first; for admins and auditors."""
    params = {
        "filter[actor]": actor,
        "filter[resource-type]": kind,
        "filter[action]": action,
        "filter[since]": since,
        "filter[until]": until,
    }
    found = await session.client.listing("admin/audit-log", limit, **params)
    session.out.rows([flat(row) for row in found.rows], COLUMNS, found.total)
