"""The rule as a condition in SQL, so that lists are filtered and paged by the database.

It says the same as `rules.Rights.level(…) > NONE`; a test holds the two against each other.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from terrapod_server.access.rules import OPEN, Pair, Rights, Role
from terrapod_server.kit.db.conditions import Where


@dataclass(frozen=True)
class Kind:
    """A table of things with rights, and the table of their labels (`key`, `value`), which is written with it."""

    labels: str
    link: str  #: column of `labels` that has the thing's id
    name: str = "name"
    is_workspace: bool = False


class _Marks:
    """Collects values and gives their marks."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def __call__(self, value: str) -> str:
        self.values.append(value)
        return f"${len(self.values)}"


def where(rights: Rights, kind: Kind, at: str = "t") -> Where:
    """What the caller may at least read; the table stands in the statement as `at`. Made once for the same rights."""
    if (kind, at) not in rights.remembered:
        rights.remembered[kind, at] = _where(rights, kind, at)
    found: Where = rights.remembered[kind, at]
    return found


def _where(rights: Rights, kind: Kind, at: str) -> Where:
    mark = _Marks()
    limit = ""
    if rights.only_workspace:
        if not kind.is_workspace:
            return Where("1 = 0")
        limit = f'{at}."id" = {mark(rights.only_workspace)}'
    if rights.is_admin or rights.is_reader:
        return Where(limit, tuple(mark.values))
    plain = [role for role in rights.roles if not (role.deny or role.deny_names)]
    any_of = [
        *([f'{at}."owner_id" = {mark(rights.user_id)}'] if rights.user_id else []),
        *_matching(kind, at, mark, {OPEN}.union(*(role.allow for role in plain)), _names(plain)),
    ]
    for role in rights.roles:
        if role in plain or not (role.allow or role.allow_names):
            continue
        allowed = _matching(kind, at, mark, role.allow, role.allow_names)
        denied = _matching(kind, at, mark, role.deny, role.deny_names)
        any_of.append(f"(({' OR '.join(allowed)}) AND NOT ({' OR '.join(denied)}))")
    condition = " OR ".join(any_of)
    # labels are written in one transaction with the row's own column of them: that one's generation is enough
    return Where(f"{limit} AND ({condition})" if limit else condition, tuple(mark.values), frozenset())


def _names(roles: Iterable[Role]) -> set[str]:
    return {name for role in roles for name in role.allow_names}


def _matching(kind: Kind, at: str, mark: _Marks, pairs: Iterable[Pair], names: Iterable[str]) -> list[str]:
    """Conditions of which one is enough: a label among `pairs`, a name among `names`."""
    found = []
    if wanted := ", ".join(f"({mark(key)}, {mark(value)})" for key, value in sorted(pairs)):
        found.append(
            f'EXISTS (SELECT 1 FROM "{kind.labels}" l WHERE l."{kind.link}" = {at}."id" '  # noqa: S608  our own names
            f'AND (l."key", l."value") IN (VALUES {wanted}))'
        )
    if listed := ", ".join(mark(name) for name in sorted(names)):
        found.append(f'{at}."{kind.name}" IN ({listed})')
    return found
