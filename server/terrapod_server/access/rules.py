"""The pure rule: which level a caller has on a thing, from its roles and the thing's name, labels and owner.

The same for workspaces, pools, modules and providers. The best match wins: a
role that is denied gives nothing, and takes nothing from what other roles give.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from terrapod_server.kit.caller import Level
from terrapod_shared.errors import Conflict

ADMIN, AUDIT, EVERYONE = "admin", "audit", "everyone"
#: Roles that are there without a row; their names cannot be taken.
BUILT_IN = {
    ADMIN: "Platform administrators: admin on everything.",
    AUDIT: "Auditors: read on everything, and the audit log.",
    EVERYONE: "Everybody who is signed in: read on what is labelled access=everyone.",
}
OPEN = ("access", "everyone")  #: the label that opens a thing to everybody who is signed in
LEVELS = {level.name.lower(): level for level in (Level.READ, Level.PLAN, Level.WRITE, Level.ADMIN)}
LABELS_MOST = 50
KEY_LONGEST = 128
VALUE_LONGEST = 254
_NAMES_MOST = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")

Pair = tuple[str, str]


@dataclass(frozen=True)
class Role:
    """`allow` and `deny` are (key, value) pairs of labels; one that matches is enough."""

    name: str
    level: Level
    allow: frozenset[Pair] = frozenset()
    allow_names: frozenset[str] = frozenset()
    deny: frozenset[Pair] = frozenset()
    deny_names: frozenset[str] = frozenset()

    def is_denied(self, name: str, pairs: frozenset[Pair]) -> bool:
        return name in self.deny_names or not self.deny.isdisjoint(pairs)


@dataclass(frozen=True)
class Rights:
    """What a caller may do, worked out once for all its requests.

    `is_reader` gives read on everything. `only_workspace` and `is_read_only` are
    limits of a token: nothing but that workspace, and nothing above read.
    """

    user_id: str = ""
    is_admin: bool = False
    is_reader: bool = False
    roles: tuple[Role, ...] = ()
    is_read_only: bool = False
    only_workspace: str = ""
    _by_pair: dict[Pair, Level] = field(init=False, compare=False, repr=False, default_factory=dict)
    _by_name: dict[str, Level] = field(init=False, compare=False, repr=False, default_factory=dict)
    #: What was worked out of these rights alone, by whoever asks for it again and again.
    remembered: dict[Any, Any] = field(init=False, compare=False, repr=False, default_factory=dict)
    _denying: list[Role] = field(init=False, compare=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        self._by_pair[OPEN] = Level.READ
        for role in self.roles:
            if role.deny or role.deny_names:
                self._denying.append(role)
                continue
            for pair in role.allow:
                self._by_pair[pair] = max(role.level, self._by_pair.get(pair, Level.NONE))
            for name in role.allow_names:
                self._by_name[name] = max(role.level, self._by_name.get(name, Level.NONE))

    def level(self, thing_id: str, name: str, labels: Mapping[str, str], owner_id: str) -> Level:
        """The level on a thing; NONE where the caller may not even know of it."""
        if self.only_workspace and thing_id != self.only_workspace:
            return Level.NONE
        level = self._level(name, labels, owner_id)
        return min(level, Level.READ) if self.is_read_only else level

    def _level(self, name: str, labels: Mapping[str, str], owner_id: str) -> Level:
        if self.is_admin or (owner_id and owner_id == self.user_id):
            return Level.ADMIN
        level = self._by_name.get(name, Level.NONE)
        if self.is_reader:
            level = max(level, Level.READ)
        for pair in labels.items():
            level = max(level, self._by_pair.get(pair, Level.NONE))
        if self._denying:
            pairs = frozenset(labels.items())
            for role in self._denying:
                if role.level > level and (name in role.allow_names or not role.allow.isdisjoint(pairs)):
                    level = level if role.is_denied(name, pairs) else role.level
        return level

    @property
    def sees_all(self) -> bool:
        """Whether lists need no condition."""
        return (self.is_admin or self.is_reader) and not self.only_workspace


def check_lockout(before: Level, after: Level, *, force: bool) -> None:
    """Raises Conflict where a change would take rights from who makes it, and it was not confirmed by `force`."""
    if after < before and not force:
        message = (
            f"this change would lower your own level from {before.name.lower()} to {after.name.lower()}: "
            'send "force": true to do it all the same'
        )
        raise Conflict(message)


def labels(sent: Mapping[str, object]) -> dict[str, str]:
    """Labels as they may be; a null value is an empty one. Raises ValueError."""
    if len(sent) > LABELS_MOST:
        message = f"there may be at most {LABELS_MOST}"
        raise ValueError(message)
    checked = {}
    for key, value in sent.items():
        if not 0 < len(key) <= KEY_LONGEST or "," in key or key != key.strip():
            message = f"a key must have 1 to {KEY_LONGEST} characters and no comma"
            raise ValueError(message)
        if value is not None and (not isinstance(value, str) or len(value) > VALUE_LONGEST):
            message = f"the value of {key} must be a string of at most {VALUE_LONGEST} characters"
            raise ValueError(message)
        checked[key] = value or ""
    return checked


def role_name(text: str) -> str:
    """A custom role's name as it may be. Raises ValueError."""
    if not _NAME.fullmatch(text):
        message = "must be 1 to 63 letters, digits, ., - and _, beginning with a letter or digit"
        raise ValueError(message)
    if text in BUILT_IN:
        message = f"{text} is built in"
        raise ValueError(message)
    return text


def pairs(sent: Mapping[str, Any]) -> dict[str, list[str]]:
    """Label conditions of a role: a value, or a list of which any matches. Raises ValueError."""
    found: dict[str, list[str]] = {}
    for key, value in sent.items():
        values = value if isinstance(value, list) else [value]
        if not values or len(values) > _NAMES_MOST:
            message = f"{key} must have 1 to {_NAMES_MOST} values"
            raise ValueError(message)
        for each in values:
            labels({key: each})
        found[key] = [each or "" for each in values]
    if len(found) > LABELS_MOST or sum(len(values) for values in found.values()) > _NAMES_MOST:
        message = f"there may be at most {LABELS_MOST} keys and {_NAMES_MOST} values"
        raise ValueError(message)
    return found


def names(sent: Iterable[str]) -> list[str]:
    """Names of things that a role is about. Raises ValueError."""
    found = list(dict.fromkeys(sent))
    if len(found) > _NAMES_MOST or not all(0 < len(name) <= VALUE_LONGEST for name in found):
        message = f"there may be at most {_NAMES_MOST} names, of 1 to {VALUE_LONGEST} characters"
        raise ValueError(message)
    return found


def flat(conditions: Mapping[str, Iterable[str]]) -> frozenset[Pair]:
    """(key, value) pairs of what `pairs` checked."""
    return frozenset((key, value) for key, values in conditions.items() for value in values)
