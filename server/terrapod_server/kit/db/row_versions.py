"""How often what a list counts has changed: one number a table, raised by the database itself.

A count costs as much as there are rows. Whoever remembers one together with
the number that the same statement read may use it as long as the number stays:
each transaction that adds or removes rows, or sets a column of the model's
`counted`, raises the number before its end. Triggers do that, so no statement
can forget it. On PostgreSQL a transaction holds the numbers from its commit's
beginning to its end, so they rise in the order of the commits, and a snapshot
that shows the same number shows the same rows to each server process.

A row's `revision` is the same for one row: each UPDATE raises it, whatever the
statement itself says of it. So a row whose id and revision were seen before is
as it was.
"""

import hashlib
from collections.abc import Iterable
from typing import Any

from tortoise.models import Model

#: Locks all numbers in one order, whatever was changed first: two transactions never wait for each other.
_FUNCTION = """
CREATE OR REPLACE FUNCTION raise_generation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF coalesce(current_setting('terrapod.raised_' || TG_ARGV[0], true), '') = '' THEN
    PERFORM 1 FROM generation ORDER BY topic FOR UPDATE;
    UPDATE generation SET number = number + 1 WHERE topic = TG_ARGV[0];
    PERFORM set_config('terrapod.raised_' || TG_ARGV[0], 'yes', true);
  END IF;
  RETURN NULL;
END $$
"""
_REVISE = """
CREATE OR REPLACE FUNCTION raise_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.revision := OLD.revision + 1;
  RETURN NEW;
END $$
"""
#: What the names of our triggers begin with.
_KINDS = ("counted_", "revised_")


def counted(model: type[Model]) -> tuple[str, ...]:
    """The columns whose change may move a row into or out of a list. Raises TypeError where none are declared."""
    columns: tuple[str, ...] | None = getattr(model, "counted", None)
    if columns is None:
        message = f"{model.__name__} declares no `counted`, so its rows cannot be listed by count"
        raise TypeError(message)
    return columns


def read(model: type[Model], *tables: str) -> str:
    """The number, as a part of a SELECT; with more tables the sum of theirs, which stays as long as each does."""
    counted(model)
    if not tables:
        return f"(SELECT number FROM generation WHERE topic = '{model._meta.db_table}')"  # noqa: S608, SLF001
    topics = ", ".join(f"'{table}'" for table in sorted({model._meta.db_table, *tables}))  # noqa: SLF001
    return f"(SELECT CAST(sum(number) AS bigint) FROM generation WHERE topic IN ({topics}))"  # noqa: S608


async def install(connection: Any, models: Iterable[type[Model]]) -> None:
    """Makes the numbers and triggers of all models that declare `counted`, where they are not as declared.

    Such a model has a field `revision`, which the triggers raise too. In the
    connection's transaction, so that nobody writes between an old
    trigger and its heir. Each start does it, after migrating: the ORM knows
    no triggers, and loses them where SQLite has to make a table anew.
    """
    is_postgres = connection.capabilities.dialect == "postgres"
    names = (
        "SELECT tgname AS name FROM pg_trigger WHERE tgrelid = $1::text::regclass"
        if is_postgres
        else "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?1"
    )
    for model in models:
        if not hasattr(model, "counted"):
            continue
        table = model._meta.db_table  # noqa: SLF001
        wanted = _triggers(table, counted(model), is_postgres=is_postgres)
        found = {row["name"] for row in await connection.execute_query_dict(names, [table])}
        found = {name for name in found if name.startswith(_KINDS)}
        if found == wanted.keys():
            continue
        statements = [
            *(f"DROP TRIGGER {name}" + (f' ON "{table}"' if is_postgres else "") for name in found - wanted.keys()),
            *([_FUNCTION, _REVISE] if is_postgres else []),
            f"INSERT INTO generation (topic, number) VALUES ('{table}', 0) ON CONFLICT DO NOTHING",  # noqa: S608
            *(wanted[name] for name in wanted.keys() - found),
        ]
        for statement in statements:
            await connection.execute_query(statement)


def _triggers(table: str, columns: tuple[str, ...], *, is_postgres: bool) -> dict[str, str]:
    """The statements that make them, by names that change with what they do."""
    changed = ", ".join(f'"{column}"' for column in columns)
    events = ["INSERT", "DELETE", *([f"UPDATE OF {changed}"] if changed else [])]
    if is_postgres:
        calls = f"DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION raise_generation('{table}')"
        bodies = [f'AFTER {" OR ".join(events)} ON "{table}" {calls}']
        revise = f'BEFORE UPDATE ON "{table}" FOR EACH ROW EXECUTE FUNCTION raise_revision()'
    else:
        raised = f"UPDATE generation SET number = number + 1 WHERE topic = '{table}'"  # noqa: S608
        bodies = [f'AFTER {event} ON "{table}" BEGIN {raised}; END' for event in events]
        # triggers do not call themselves on SQLite, unless a connection asks for it
        revised = f'UPDATE "{table}" SET revision = OLD.revision + 1 WHERE id = NEW.id'  # noqa: S608
        revise = f'AFTER UPDATE ON "{table}" BEGIN {revised}; END'
    kind = "CONSTRAINT TRIGGER" if is_postgres else "TRIGGER"
    made = {f"counted_{table}_{_digest(body + _FUNCTION)}": (kind, body) for body in bodies}
    made[f"revised_{table}_{_digest(revise + _REVISE)}"] = ("TRIGGER", revise)
    return {name: f"CREATE {kind} {name} {body}" for name, (kind, body) in made.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
