"""Precedence, pure: layers from low to high, in each the variables by (category, key)."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Resolved:
    """A variable as a run gets it."""

    key: str
    category: str
    value: str
    hcl: bool = False
    sensitive: bool = False
    from_run: bool = False


def resolve(layers: Iterable[Iterable[Resolved]]) -> list[Resolved]:
    """The one variable of each (category, key) that the highest layer holds."""
    found: dict[tuple[str, str], Resolved] = {}
    for layer in layers:
        for variable in layer:
            found[variable.category, variable.key] = variable
    return [found[key] for key in sorted(found)]
