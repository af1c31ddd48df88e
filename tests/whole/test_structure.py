"""What the source is held to besides the contracts of import-linter: read of its syntax trees, and nothing is imported."""

import ast
import functools
import re
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

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


#: What a pure module may import besides other pure ones: nothing of it reads, writes, waits or looks at a clock.
_HARMLESS = frozenset(
    [
        "base64",
        "bisect",
        "codecs",
        "collections",
        "collections.abc",
        "contextlib",
        "dataclasses",
        "datetime",
        "enum",
        "functools",
        "hashlib",
        "hmac",
        "html",
        "ipaddress",
        "itertools",
        "json",
        "math",
        "msgspec",
        "operator",
        "re",
        "shlex",
        "string",
        "typing",
        "unicodedata",
        "urllib.parse",
    ]
)
#: And of these only what is named.
_IN_PART = {"pathlib": {"PurePosixPath"}, "signal": {"Signals"}, "sys": {"byteorder"}}
#: Whoever calls one of these depends on more than its arguments.
_IMPURE = frozenset({"open", "print", "input", "now", "today", "utcnow"})


#: Has a `room`, which is what rooms are made with, and layers of its own.
_KIT = "terrapod_server.kit."
#: What a package does at its import is no part of its modules; the time may be a default, and whoever asks for it is seen.
_NOT_FOLLOWED = {*PACKAGES, "terrapod_shared.clock"}


def says_that_it_is_pure(name: str) -> bool:
    return re.search(r"\bpure\b", ast.get_docstring(modules()[name]) or "", re.IGNORECASE) is not None


def impurities(name: str) -> Iterator[str]:
    """What a module does, or imports of others than ours, that a pure one may not."""
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name not in _HARMLESS and each.name not in _IN_PART)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = {each.name for each in node.names}
            if module not in _HARMLESS and module not in modules() and not names <= _IN_PART.get(module, set()):
                yield module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in _IN_PART and node.attr not in _IN_PART[node.value.id]:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
            yield "await"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in _IMPURE:
                yield called


@pytest.mark.parametrize("name", sorted(name for name in modules() if says_that_it_is_pure(name)))
def test_a_module_that_says_that_it_is_pure_is(name: str) -> None:
    reached, left = {name}, [name]
    while left:
        found = graph()[left.pop()] - _NOT_FOLLOWED - reached
        reached |= found
        left += found
    assert {each: sorted(set(impurities(each))) for each in sorted(reached) if any(impurities(each))} == {}


@functools.cache
def contracts() -> list[dict[str, Any]]:
    """The contracts of import-linter."""
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    return found


def drawers() -> list[set[str]]:
    """The names of modules that may stand in a room, from the top down, as the contract has them."""
    lines = next(each["layers"] for each in contracts() if each["name"] == "drawers are ordered")
    return [{name.strip(" ()") for name in line.split(":")} for line in lines]


def of_rooms() -> list[str]:
    """All modules of rooms, and the folders in them."""
    rooms = [name.removesuffix("room") for name in modules() if re.fullmatch(r"terrapod_server\.\w+\.room", name)]
    return [name for name in modules() for room in rooms if name.startswith(room) and room != _KIT]


def test_every_module_of_a_room_stands_in_a_drawer() -> None:
    known = set().union(*drawers())
    assert "terrapod_server.runs.states" in of_rooms()
    unknown = [name for name in of_rooms() if not known.issuperset(name.split(".")[2:])]
    assert unknown == [], 'the contract "drawers are ordered" in pyproject.toml does not have these names'
    silent = [name for name in of_rooms() if name.split(".")[-1] in drawers()[-1] and not says_that_it_is_pure(name)]
    assert silent == [], "the last drawer is of pure modules, and the docstrings of these do not say that they are"


def test_the_tables_of_each_room_are_its_own() -> None:
    guarded = {name for each in contracts() if each["type"] == "protected" for name in each["protected_modules"]}
    open_ = [name for name in of_rooms() if name.split(".")[-1] == "model" and name not in guarded]
    assert open_ == [], 'each needs a contract "the tables of ROOM are its own" in pyproject.toml'


#: What is larger, and may not be another one.
_LARGE = {"terrapod_server.migrations.0001_initial.Migration"}
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
