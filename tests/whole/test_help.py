"""What server and listener say of their commands; in this process, since each start of a program takes half a second."""

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from terrapod_listener.__main__ import main as listener
from terrapod_server.__main__ import main as server


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    """The command and all below it."""
    yield path
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below is not None
            yield from commands(below, *path, name)


@pytest.mark.parametrize("program", [server, listener], ids=["terrapod-server", "terrapod-listener"])
def test_help_is_complete(program: click.Command) -> None:
    found = list(commands(program))
    assert len(found) > 6
    for path in found:
        said = CliRunner().invoke(program, [*path, "--help"])
        assert (said.exit_code, "--help" in said.stdout) == (0, True)
        lines = said.stdout.splitlines()
        assert [line for line in lines if line.startswith("  --") and len(line.split("  ")) < 3] == [], path
        whole = said.stdout.replace("[OPTIONS] COMMAND [ARGS]...", "").replace("FILES...", "")
        assert "..." not in whole, f"{path}: cut off"
