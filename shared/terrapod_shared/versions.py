"""Versions of engines, and what asks for one: exact, partial (`1.11`), a constraint (`~> 1.11.0, != 1.11.2`), `latest`.

Pure. Constraints are terraform's own; a pre-release is taken only by its exact name.
"""

import re
from collections.abc import Iterable

#: Column, and attribute, of a version and of what asks for one.
LENGTH_MOST = 40
_PRE = r"-[0-9A-Za-z.-]+"
_EXACT = re.compile(rf"([0-9]{{1,6}})\.([0-9]{{1,6}})\.([0-9]{{1,6}})({_PRE})?")
_PARTIAL = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,6}|x))?(?:\.x)?")
_TERM = re.compile(rf"(=|!=|>=|<=|>|<|~>)?\s*v?([0-9]{{1,6}}(?:\.[0-9]{{1,6}}){{0,2}})({_PRE})?")

#: Major, minor and patch, and 0 for a pre-release, which comes before the release.
Version = tuple[int, int, int, int]
#: Operator, the numbers that are given, and 0 where they are those of a pre-release.
_Bound = tuple[str, tuple[int, ...], int]


def exact(text: str) -> Version | None:
    """An exact version to compare by; None for anything else."""
    found = _EXACT.fullmatch(text)
    return (int(found[1]), int(found[2]), int(found[3]), 0 if found[4] else 1) if found else None


def is_exact(text: str) -> bool:
    return _EXACT.fullmatch(text) is not None


def named(wanted: str) -> str:
    """The one version that `1.11.4`, `v1.11.4` or `= 1.11.4` names; empty for what may mean several."""
    text = wanted.strip().removeprefix("=").lstrip().removeprefix("v")
    return text if is_exact(text) else ""


def is_sensible(wanted: str) -> bool:
    """Whether it is a version, a part of one, a constraint, or `latest`."""
    return len(wanted) <= LENGTH_MOST and bool(wanted.strip()) and _bounds(wanted) is not None


def checked(wanted: str) -> str:
    """The text without spaces around it. Raises ValueError for what is neither version nor constraint."""
    if not is_sensible(wanted):
        raise ValueError("must be a version (1.11.4), a part of one (1.11), a constraint (~> 1.11.0), or latest")
    return wanted.strip()


def choose(wanted: str, known: Iterable[str]) -> str | None:
    """The newest known version that `wanted` allows; None where there is none."""
    if name := named(wanted):
        return name if name in set(known) else None
    bounds = _bounds(wanted)
    if bounds is None:
        return None
    names = {version: name for name in known if (version := exact(name)) is not None and version[3]}
    fitting = [version for version in names if all(_holds(version, *bound) for bound in bounds)]
    return names[max(fitting)] if fitting else None


def _bounds(wanted: str) -> list[_Bound] | None:
    """What a version has to be; None where the text says nothing that can be understood."""
    wanted = wanted.strip()
    if wanted in ("", "latest"):
        return []
    partial = _PARTIAL.fullmatch(wanted.removeprefix("v"))
    if partial:
        return [("=", tuple(int(part) for part in partial.groups() if part and part != "x"), 1)]
    terms = [_TERM.fullmatch(term.strip()) for term in wanted.split(",")]
    if not all(terms):
        return None
    return [
        (term[1] or "=", tuple(int(part) for part in term[2].split(".")), 0 if term[3] else 1) for term in terms if term
    ]


def _holds(version: Version, operator: str, numbers: tuple[int, ...], release: int) -> bool:
    padded = (*numbers, 0, 0)[:3]
    bound = (padded[0], padded[1], padded[2], release)
    if operator == "=":
        return bool(release) and version[: len(numbers)] == numbers
    if operator == "!=":
        return version != bound
    if operator == "~>":
        return version >= bound and version[: len(numbers) - 1] == numbers[:-1]
    return {">=": version >= bound, "<=": version <= bound, ">": version > bound, "<": version < bound}[operator]
