"""The server's commands: what its help says of each, and that it says so before anything else is loaded."""

import importlib
import json
import subprocess
import sys

import click
import pytest

from terrapod_server.__main__ import COMMANDS, main

#: Whose import takes longer than everything that `--help` does.
_HEAVY = {"tortoise", "starlette", "hypercorn", "asyncpg", "cryptography", "msgspec", "terrapod_server.app"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_says_of_each_command_what_its_own_help_says(name: str) -> None:
    module, about = COMMANDS[name]
    command = importlib.import_module(f"terrapod_server.commands.{module}").command
    assert (command.name, command.get_short_help_str(limit=100)) == (name, about)
    assert main.get_command(click.Context(main), name) is command


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["no-such-command"]])
def test_what_needs_no_command_loads_none(arguments: list[str]) -> None:
    program = (
        "import json, sys\nfrom terrapod_server.__main__ import main\n"
        f"try:\n    main({arguments}, prog_name='terrapod-server')\n"
        "finally:\n    print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if arguments == ["no-such-command"] else 0)
    assert _HEAVY.isdisjoint(json.loads(done.stderr.splitlines()[-1]))
