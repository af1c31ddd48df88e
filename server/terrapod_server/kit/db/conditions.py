"""Conditions in SQL, as values that can be combined. Pure."""

import functools
import re
from dataclasses import dataclass
from typing import Any

#: A column in a condition.
_NAMED = re.compile(r't\."(\w+)"')
_MARK = re.compile(r"\$(\d+)")


@dataclass(frozen=True)
class Where:
    """A condition in SQL about the table `t`, with `$1`, `$2` … for its values.

    `tables` are those that its subqueries look into and whose changes raise a
    generation of their own, or come with one of `t`'s. None: not known, so a
    count under such a condition is not remembered.
    """

    sql: str = ""
    values: tuple[Any, ...] = ()
    tables: frozenset[str] | None = None

    @functools.cached_property
    def columns(self) -> frozenset[str]:
        """The columns of `t` that it looks at."""
        return frozenset(_NAMED.findall(self.sql))

    @functools.cached_property
    def depends(self) -> frozenset[str] | None:
        """What a count depends on besides `t` itself."""
        return frozenset() if self.tables is None and "SELECT" not in self.sql else self.tables

    def __and__(self, other: "Where") -> "Where":
        """Both; the other's marks are counted on."""
        if not self.sql or not other.sql:
            return self if self.sql else other
        sql = f"({self.sql}) AND ({shifted(other.sql, len(self.values))})"
        one, two = self.depends, other.depends
        return Where(sql, self.values + other.values, None if one is None or two is None else one | two)


def like(column: str, text: str, *, is_whole: bool = False) -> Where:
    """Rows in whose column the text is found (or is all), whatever the case; `*` in it stands for anything."""
    pattern = re.sub(r"[\\%_]", lambda found: "\\" + found[0], text).replace("*", "%")
    return Where(f"upper({column}) LIKE upper($1) ESCAPE '\\'", (pattern if is_whole else f"%{pattern}%",))


@functools.lru_cache(1024)
def shifted(sql: str, by: int) -> str:
    """The statement with each `$n` counted `by` further, to stand behind another."""
    return _MARK.sub(lambda mark: f"${int(mark[1]) + by}", sql)
