"""Resource identifiers as clients send them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Linked:
    """A member of a to-many relationship, or of a list body, as it was sent."""

    type: str
    id: str | None
    attributes: Mapping[str, Any]
