"""What a program loads when it starts: each module costs time at every start, and memory for as long as it runs."""

import subprocess
import sys

import pytest
from tortoise.models import Model

from terrapod_server import app
from terrapod_server.kit.table import Table


@pytest.mark.parametrize(
    ("program", "unused"),
    [
        ("terrapod_cli.main", {"pygments", "rich.syntax"}),
        ("terrapod_listener.__main__", {"pygments", "rich"}),
        ("terrapod_server.__main__", {"pygments", "rich", "asyncpg", "aioboto3"}),
    ],
)
def test_a_program_loads_nothing_that_it_does_not_use(program: str, unused: set[str]) -> None:
    code = f"import sys, {program}; print(*sorted(set(sys.modules) & {unused!r}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []


def test_the_orm_parses_the_source_of_no_model() -> None:
    models = {each for name in app.MODELS for each in vars(sys.modules[name]).values() if isinstance(each, type)}
    tables = {each for each in models if issubclass(each, Model)}
    assert len(tables) > 20
    assert [each.__name__ for each in tables if not issubclass(each, Table)] == []
    assert [each.__name__ for each in tables if any(field.docstring for field in each._meta.fields_map.values())] == []
