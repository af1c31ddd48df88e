"""Precedence, pure: layers from low to high, in each the variables by (category, key)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


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
    """The one variable of each (category, key) that the highest layer holds.

    A run variable cannot be called sensitive: it is so where it takes the place of one that is.
    """
    found: dict[tuple[str, str], Resolved] = {}
    for layer in layers:
        for variable in layer:
            below = found.get((variable.category, variable.key))
            if variable.from_run and below is not None and below.sensitive:
                variable = replace(variable, sensitive=True)  # noqa: PLW2901
            found[variable.category, variable.key] = variable
    return [found[key] for key in sorted(found)]
