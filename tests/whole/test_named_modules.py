"""Modules and names that the documents for contributors speak of exist."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from terrapod_server import app

ROOT = Path(__file__).parents[2]
_NAMED = re.compile(r"`([a-z_]+(?:\.[A-Za-z_]+)+)")
_LISTENER = ("daemon", "phase", "engine", "sandbox", "supervise", "link")


def _names(page: str) -> Iterator[str]:
    """Full names of what a page calls by the folder of a program and something in it."""
    rooms = {"kit", "store", "config", "commands", *(each.name for each in app.COMPOSITION.rooms)}
    for name in dict.fromkeys(_NAMED.findall((ROOT / "docs" / page).read_text())):
        first = name.partition(".")[0]
        if first in rooms:
            yield f"terrapod_server.{name}"
        elif first in _LISTENER:
            yield f"terrapod_listener.{name}"


def _is_there(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)  # type: ignore[assignment]  # an object of any kind
        return found is not None
    return False


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "flows.md"])
def test_what_is_named_is_there(page: str) -> None:
    names = list(_names(page))
    assert len(names) > 10
    assert [name for name in names if not _is_there(name)] == []
