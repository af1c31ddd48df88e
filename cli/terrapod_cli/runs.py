"""`terrapod runs`."""

from pathlib import Path

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
    pairs,
    part,
    with_names,
    workspace,
)
from terrapod_cli.exits import Exit
from terrapod_cli.following import Follower, outcome
from terrapod_cli.output import Column, Columns, Fields, Keep, Named, Row, Time, flat
from terrapod_cli.start import Wanted, start


def kind(row: Row) -> str:
    """In a word, what the run is for."""
    words = {
        "is-destroy": "destroy",
        "refresh-only": "refresh only",
        "plan-only": "plan only",
        "save-plan": "saved plan",
    }
    return ", ".join(word for name, word in words.items() if row.get(name)) or "plan and apply"


def changes(row: Row) -> str:
    """The plan's figures."""
    names = {"resource-additions": "to add", "resource-changes": "to change", "resource-destructions": "to destroy"}
    return ", ".join(f"{row[name]} {words}" for name, words in names.items() if row.get(name) is not None)


def _waits_since(row: Row) -> Time | None:
    since = (row.get("waits-for") or {}).get("since")
    return Time(since) if since else None


COLUMNS: Columns = (
    Column("RUN", "id", Keep.ALL),
    Column("WORKSPACE", Named("workspace"), Keep.LONG),
    Column("STATUS", "status"),
    Column("WAITS FOR", lambda row: (row.get("waits-for") or {}).get("kind"), Keep.EXTRA),
    Column("KIND", kind, Keep.EXTRA),
    Column("CHANGES", "has-changes", Keep.EXTRA),
    Column("MESSAGE", "message"),
    Column("MADE", "created-at"),
)
FIELDS: Fields = (
    ("Id", "id"),
    ("Workspace", Named("workspace")),
    ("Status", "status"),
    ("Why it waits", lambda row: (row.get("waits-for") or {}).get("text")),
    ("Waits since", _waits_since),
    ("Listeners said", "status-message"),
    ("Before it", "position-in-queue"),
    ("Error", "error-message"),
    ("Kind", kind),
    ("Message", "message"),
    ("Engine", lambda row: f"{row.get('execution-backend')} {row.get('terraform-version')}"),
    ("Changes", changes),
    ("Applies by itself", "auto-apply"),
    ("Targets", "target-addrs"),
    ("May be", lambda row: [name.removeprefix("is-") for name, is_so in row.get("actions", {}).items() if is_so]),
    ("Begun by", Named("created-by")),
    ("Approved by", Named("confirmed-by")),
    ("Made", "created-at"),
)


async def _find(session: Session, run: str) -> Row:
    """A run as it is now. Raises NotFound."""
    with finding(session, "run", run):
        return flat(await session.client.get(f"runs/{part(run)}"))


@click.group()
def runs() -> None:
    """Runs: list, show, logs, approve, discard, cancel, start."""


@runs.command("list")
@click.option("--workspace", "-w", "named", metavar="NAME", help="Only of this workspace, by name or id.")
@click.option("--status", metavar="STATUS[,STATUS]", help="Only in these statuses, such as planned,applying.")
@LIMIT
@connected
async def list_(session: Session, named: str | None, status: str | None, limit: int) -> None:
    """List runs, newest first."""
    path = f"workspaces/{(await workspace(session, named))['id']}/runs" if named is not None else f"{ORG}/runs"
    found = await session.client.listing(path, limit, include="workspace", **{"filter[status]": status})
    session.out.rows([with_names(row, found.included) for row in found.rows], COLUMNS, found.total)


@runs.command()
@click.argument("run")
@connected
async def show(session: Session, run: str) -> None:
    """Show a run."""
    with finding(session, "run", run):
        params = {"include": "workspace,plan,created-by,confirmed-by"}
        document = await session.client.call("GET", f"runs/{part(run)}", params=params)
    included = included_in(document)
    row = with_names(document["data"], included)
    plan = flat(included.get(("plans", str(row.get("plan"))), {"id": ""}))
    row |= {name: value for name, value in plan.items() if name.startswith("resource-")}
    session.out.row(row, FIELDS)


@runs.command()
@click.argument("run")
@click.option("--follow", "-f", is_flag=True, help="Until the run is over, also while it waits for approval.")
@click.option("--plan", "only", flag_value="plan", help="Only the plan's log.")
@click.option("--apply", "only", flag_value="apply", help="Only the apply's log.")
@click.option("--raw", is_flag=True, help="Leave structured (JSON) lines as they are.")
@connected
async def logs(session: Session, run: str, follow: bool, only: str | None, raw: bool) -> int:
    """Show the logs of a run: what there is, or with --follow as it comes.

    With --follow the exit code is the run's outcome. Escapes other than colours do not reach the terminal.
    """
    follower = Follower(session, run, raw=raw)
    row = await follower.run()
    if not follow:
        for phase in (only,) if only else ("plan", "apply"):
            if phase == "plan" or only or row["status-timestamps"].get("applying-at"):
                await follower.log(phase, follow=False)
        return Exit.DONE
    if only != "apply":
        row = await follower.plan()
    if only != "plan":
        row = await follower.answered(row)
        row = await follower.apply()
    if not session.out.as_json:
        follower.conclude(row)
    return outcome(row) if only != "plan" or row["status"] not in ("planned", "planned_and_saved") else Exit.DONE


async def _act(session: Session, run: str, verb: str, comment: str, sentence: str) -> None:
    with finding(session, "run", run):
        await session.client.call("POST", f"runs/{part(run)}/actions/{verb}", {"comment": comment} if comment else {})
    row = await _find(session, run)
    session.out.done(row, f"{sentence} {row['id']}; it is {row['status'].replace('_', ' ')}")


COMMENT = click.option("--comment", default="", help="Why, for others.")


@runs.command()
@click.argument("run")
@COMMENT
@connected
async def approve(session: Session, run: str, comment: str) -> None:
    """Let a planned run be applied."""
    await _act(session, run, "confirm", comment, "approved run")


@runs.command()
@click.argument("run")
@COMMENT
@connected
async def discard(session: Session, run: str, comment: str) -> None:
    """End a run that waits, unapplied."""
    await _act(session, run, "discard", comment, "discarded run")


@runs.command()
@click.argument("run")
@click.option("--force", is_flag=True, help="Kill terraform, after a cancel that did not end it; needs admin.")
@COMMENT
@connected
async def cancel(session: Session, run: str, force: bool, comment: str) -> None:
    """End a run, or interrupt the terraform that works on it."""
    verb, sentence = ("force-cancel", "killing run") if force else ("cancel", "canceling run")
    await _act(session, run, verb, comment, sentence)


@runs.command()
@click.argument("run")
@YES
@connected
async def release(session: Session, run: str, yes: bool) -> None:
    """Give up an apply whose listener is lost: the run fails; needs admin.

    What terraform did is not undone, and the state may not know of it. So the run keeps the workspace locked until
    somebody has looked at the state and says `terrapod workspaces unlock --force`. If the listener comes back, its
    state is kept aside: see `terrapod states late`.
    """
    row = await _find(session, run)
    session.out.say(
        f"The listener of {row['id']} may still be applying, and may hold the only copy of the state. After a release "
        "nothing waits for it: compare the state that is here with what is really there, and then let the next run go "
        "(terrapod workspaces unlock --force).",
        "yellow",
    )
    agreed(f"Give up {row['id']}?", yes=yes)
    await _act(session, run, "release", "", "released run")


@runs.command("start")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path())
@click.option("--workspace", "-w", "named", metavar="NAME", required=True, help="The workspace, by name or id.")
@click.option("--create", is_flag=True, help="Make the workspace if it does not exist.")
@click.option("--plan-only", is_flag=True, help="Plan, and never apply.")
@click.option("--destroy", is_flag=True, help="Destroy everything that the workspace holds.")
@click.option("--refresh-only", is_flag=True, help="Only bring the state up to date.")
@click.option("--auto-approve", is_flag=True, help="Apply without asking.")
@click.option("--message", "-m", help="Why the run is begun.")
@click.option("--target", "targets", multiple=True, metavar="ADDRESS", help="Only this resource; repeatable.")
@click.option("--replace", "replaced", multiple=True, metavar="ADDRESS", help="Replace this resource; repeatable.")
@click.option("--var", "variables", multiple=True, callback=pairs, metavar="NAME=TEXT", help="Repeatable.")
@click.option(
    "--var-hcl", "expressions", multiple=True, callback=pairs, metavar="NAME=EXPRESSION",
    help="The same for lists, maps and other expressions.",
)  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Print the run's id and follow nothing.")
@connected
async def start_(
    session: Session,
    folder: Path,
    named: str,
    create: bool,
    plan_only: bool,
    destroy: bool,
    refresh_only: bool,
    auto_approve: bool,
    message: str | None,
    targets: tuple[str, ...],
    replaced: tuple[str, ...],
    variables: dict[str, str],
    expressions: dict[str, str],
    no_wait: bool,
) -> int:
    """Upload FOLDER (default: the current one), plan it, ask, apply, and follow all of it.

    On a terminal it asks before the apply; elsewhere it stops behind the plan with exit code 10, unless
    --auto-approve is given. Ctrl-C offers to cancel the run; a second one leaves it alone.
    """
    if plan_only and auto_approve:
        raise click.UsageError("--plan-only never applies, so --auto-approve says nothing")
    attributes = {
        "message": message,
        "is-destroy": destroy or None,
        "refresh-only": refresh_only or None,
        "target-addrs": list(targets) or None,
        "replace-addrs": list(replaced) or None,
    }
    wanted = Wanted(
        workspace=named, create=create, plan_only=plan_only, auto_approve=auto_approve, wait=not no_wait, attributes=attributes,
        variables=variables, expressions=expressions,
    )  # fmt: skip
    return await start(session, folder, wanted)
