"""Which programs may use the database: the number of its schema, and that of the oldest program which may.

Both stand in the database. A program that finds a newer schema uses it as it
is and migrates nothing, unless it is older than the oldest that may.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

from terrapod_server import migrations
from terrapod_server.kit.db.database_errors import DatabaseError
from terrapod_shared.terminal import plain

TABLE = "schema_version"
READ = "SELECT number, oldest, program FROM schema_version WHERE id = 1"
WRITE = """
INSERT INTO schema_version (id, number, oldest, program) VALUES (1, $1, $2, $3)
ON CONFLICT (id) DO UPDATE SET number = excluded.number, oldest = excluded.oldest, program = excluded.program
"""
#: As much of a release's name as a message has.
_PROGRAM_MOST = 40


@dataclass(frozen=True)
class SchemaVersion:
    """What a database says of its schema; `program` is the release that brought it there."""

    number: int
    oldest: int
    program: str

    @property
    def is_newer(self) -> bool:
        """Whether a later release has migrated the database."""
        return self.number > migrations.NUMBER

    def check(self, place: str) -> None:
        """Raises DatabaseError where this program is too old for the database."""
        if self.oldest > migrations.NUMBER:
            raise DatabaseError(
                f"{place} has schema {self.number} of terrapod {self.program}, for programs of schema {self.oldest} and "
                f"newer; this is terrapod {own().program} of schema {migrations.NUMBER}: install terrapod {self.program}, "
                "or restore the copy of the database from before its upgrade"
            )


def of_row(row: Sequence[object], place: str) -> SchemaVersion:
    """What `READ` has found. Raises DatabaseError for what no release writes."""
    match tuple(row):
        case (int(number), int(oldest), str(program)):
            return SchemaVersion(number, oldest, plain(program)[:_PROGRAM_MOST])
    raise DatabaseError(f"{place}: its table {TABLE} is not as a release has written it: restore a copy")


def own() -> SchemaVersion:
    """What this program brings a database to."""
    return SchemaVersion(migrations.NUMBER, migrations.OLDEST, importlib.metadata.version("terrapod"))
