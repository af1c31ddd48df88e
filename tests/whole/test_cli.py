"""All commands at once: documented, with --json and --help, and every error has its exit code."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from terrapod_cli.exits import EXITS, Exit, code_of
from terrapod_cli.main import main
from terrapod_shared import errors

DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
EVERYWHERE = {"--host", "--ca", "--json", "--no-color"}
#: Said once in the docs, for all commands that show rows.
IDS = {"--ids"}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = list(commands(main))


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_is_documented(path: tuple[str, ...], command: click.Command) -> None:
    assert f"| `terrapod {' '.join(path)}`" in DOCS
    section = DOCS if path == ("runs", "start") else next(
        line for line in DOCS.splitlines() if f"| `terrapod {' '.join(path)}`" in line
    ) + (DOCS if path[:2] == ("roles", "update") else "")  # fmt: skip
    options = {option for p in command.params if isinstance(p, click.Option) for option in p.opts if option[:2] == "--"}
    assert options >= EVERYWHERE
    assert [option for option in options - EVERYWHERE - IDS if option not in section] == []
    shown = CliRunner().invoke(main, [*path, "--help"])
    assert (shown.exit_code, "--json" in shown.output) == (0, True)
    assert all(p.help for p in command.params if isinstance(p, click.Option))
    assert command.help


def test_no_command_of_the_docs_is_missing() -> None:
    named = set(re.findall(r"\| `terrapod ([a-z -]+)`", DOCS))
    assert named == {" ".join(path) for path, _ in ALL}


def test_exit_codes_are_documented_and_complete() -> None:
    assert re.findall(r"^\| (\d+) \| (.+) \|$", DOCS, re.MULTILINE) == [(str(int(code)), code.meaning) for code in Exit]
    shown = CliRunner().invoke(main, ["--help"]).output
    assert all(f"{int(code):>4}  {code.meaning}" in shown for code in Exit)


def test_every_error_has_an_exit_code() -> None:
    tree = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.TerrapodError)]
    assert len(tree) > 15
    for cls in tree:
        if cls is not errors.TerrapodError:
            assert code_of(cls()) not in (Exit.DONE, Exit.FAILED, Exit.WAITING, Exit.INTERRUPTED), cls
    assert set(EXITS) == set(errors.TerrapodError.__subclasses__()), "one line for each branch of the tree"
