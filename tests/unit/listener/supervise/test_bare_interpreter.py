"""The supervisor of an apply and the launcher run by a bare interpreter, which has the standard library alone."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from terrapod_listener.sandbox import launch
from terrapod_listener.supervise import files, masking, processes, statefile, supervisor

BARE = [launch.__file__, *(module.__file__ for module in (files, masking, processes, statefile, supervisor))]


@pytest.mark.parametrize("path", BARE)
def test_a_module_for_the_bare_interpreter_imports_the_standard_library_alone(path: str) -> None:
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    names = [each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_the_supervisor_runs_a_program_in_a_bare_interpreter(tmp_path: Path) -> None:
    """Whatever the working folder and the environment, by its path alone."""
    job = {
        "argv": ["/bin/sh", "-c", "echo ran with hunter2-long"], "cwd": str(tmp_path), "env": {}, "root": str(tmp_path),
        "log": str(tmp_path / "log"), "log_most": 1000, "exit": str(tmp_path / "exit.json"),
        "child": str(tmp_path / "child.json"), "states": [], "before": None, "spooled": str(tmp_path / "spooled"),
        "timeout_s": 60, "is_isolated": False, "is_boxed": False, "secrets": ["hunter2-long"],
    }  # fmt: skip
    words = [sys.executable, "-I", "-S", supervisor.__file__]
    done = subprocess.run(words, input=json.dumps(job).encode(), capture_output=True, cwd="/", env={}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == 0
    log = (tmp_path / "log").read_text()
    assert log.startswith("ran with ")
    assert "hunter2" not in log
    assert json.loads((tmp_path / "child.json").read_text()).keys() == {"pid", "started"}


def test_the_supervisor_begins_nothing_before_it_is_told_what() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", supervisor.__file__], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, b"")
