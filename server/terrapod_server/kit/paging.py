"""Pages of lists: which one a client asks for, and what it holds. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from terrapod_shared.errors import Invalid

PAGE_SIZE = 20
PAGE_SIZE_MAX = 100


@dataclass(frozen=True)
class Rows:
    """Some rows of a list. `total` counts all that match; None: this is all there is."""

    rows: Sequence[Any]
    total: int | None = None


@dataclass(frozen=True)
class PageRequest:
    """`asked` tells whether the client named a size: some lists answer in full otherwise."""

    number: int
    size: int
    asked: bool

    @property
    def offset(self) -> int:
        return (self.number - 1) * self.size


def page_of(query: Mapping[str, str]) -> PageRequest:
    """Reads `page[number]` and `page[size]`; a size over 100 is clamped."""
    numbers = {}
    for name, least, default in (("page[number]", 1, 1), ("page[size]", 1, PAGE_SIZE)):
        text = query.get(name, "")
        if not text:
            numbers[name] = default
            continue
        if not text.isascii() or not text.isdigit() or int(text[:12]) < least:
            message = f"{name} must be a whole number from {least}, not {text[:40]!r}"
            raise Invalid(message)
        numbers[name] = min(int(text[:12]), 1 << 40)
    size = min(numbers["page[size]"], PAGE_SIZE_MAX)
    return PageRequest(min(numbers["page[number]"], (1 << 50) // size), size, bool(query.get("page[size]")))
