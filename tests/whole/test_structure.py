"""What the source is held to besides the contracts of import-linter: read of its syntax trees, and nothing is imported."""

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "terrapod_server": ROOT / "server",
    "terrapod_listener": ROOT / "listener",
    "terrapod_cli": ROOT / "cli",
    "terrapod_shared": ROOT / "shared",
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    """The syntax tree of each module of ours."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in (folder / package).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(), str(path))
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """What a module imports, wherever in it: for types alone too, and inside of functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "an import names its module in full"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    """By module, those of ours that it imports."""
    ours = modules().keys()
    return {name: frozenset(set(imported(tree)) & ours) - {name} for name, tree in modules().items()}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_way_of_others(package: str) -> None:
    inside = {
        name: {other for other in others if other.partition(".")[0] == package}
        for name, others in graph().items()
        if name.partition(".")[0] == package
    }
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


#: What is larger, and may not be another one.
_LARGE = {"terrapod_server.kit.asgi.application.Server", "terrapod_server.migrations.0001_initial.Migration"}
_CLASS_MOST, _FUNCTION_MOST = 250, 100


@pytest.mark.parametrize("package", PACKAGES)
def test_no_class_and_no_function_is_large(package: str) -> None:
    large = set()
    for name, tree in modules().items():
        if name.partition(".")[0] != package:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                most = _CLASS_MOST if isinstance(node, ast.ClassDef) else _FUNCTION_MOST
                if (node.end_lineno or 0) - node.lineno + 1 > most:
                    large.add(f"{name}.{node.name}")
    assert large == {each for each in _LARGE if each.partition(".")[0] == package}
