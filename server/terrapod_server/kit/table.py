"""The base of all models."""

from typing import Any

from tortoise.models import Model, ModelMeta


class _TableMeta(ModelMeta):
    """Spares the ORM the search for comments on fields: it parses the module once for each model, half a second of a start."""

    def __new__(cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any]) -> "_TableMeta":  # noqa: PYI034  mypy has no Self here
        return super().__new__(cls, name, bases, {**attrs, "_no_comments": True})  # type: ignore[return-value]


class Table(Model, metaclass=_TableMeta):
    """A table of the database. What it is for stands in its docstring, which is no part of the schema."""

    class Meta:
        abstract = True
