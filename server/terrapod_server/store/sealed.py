"""How a room declares what of its tables is encrypted, so that the keys which did it can be found. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SealedColumn:
    """A column of values that `KeyRing.seal` made. `context` is what they are bound to, with `{id}` for the row's."""

    table: str
    column: str
    context: str


@dataclass(frozen=True)
class SealedObjects:
    """Rows that name an object of the store; `key` is a column, or an expression in SQL."""

    table: str
    key: str
