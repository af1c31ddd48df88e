"""Rooms are closed: what the import contracts say of modules holds for their SQL and for the rows that they hand out, too.

Rooms, tables and their order are read from the models and from the contract of `pyproject.toml`.
"""

import ast
import functools
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tortoise.models import Model

from terrapod_server import app

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server" / "terrapod_server"
#: (File, table) -> why its SQL may name that table all the same. An entry that is not needed any more fails the test.
_WAITS = "why the runs of a page wait is one statement"
_DEPTH = "how much waits in all pools is one statement"
EXCEPTIONS = {
    ("kit/db/row_versions.py", "__put_in__"): "triggers on each table whose model asks for them",
    ("kit/work/claims.py", "__put_in__"): "leases rows of the table that a room gives",
    (
        "kit/work/outbox.py",
        "__put_in__",
    ): "delivers the rows of its own table, and of those that a room has for its receivers",
    ("agents/depth.py", "run"): _DEPTH,
    ("agents/depth.py", "run_phase"): _DEPTH,
    ("agents/waits.py", "configuration_version"): _WAITS,
    ("agents/waits.py", "engine_file"): _WAITS,
    ("agents/waits.py", "run"): _WAITS,
    ("agents/waits.py", "run_phase"): _WAITS,
    ("agents/waits.py", "workspace"): _WAITS,
}
#: Functions that make SQL of a bare table or FROM clause, with the place of that argument.
_TAKES_TABLES = {"Thing": 1, "Kind": 0, "SealedColumn": 0, "SealedObjects": 0}
#: Functions that lease rows of the table that is their first argument.
_CLAIMS = {"due", "again", "claim"}
_SQL = re.compile(
    r"\b(SELECT|UPDATE|INTO|FROM|JOIN|TRUNCATE|TABLE)\b|(?i:\bselect\b.+\bfrom\b|\bupdate\b.+\bset\b|\b(delete\s+from|insert\s+into)\b)",
    re.DOTALL,
)
_QUOTED = re.compile(r"'[^']*'")
_WORD = re.compile(r"(?<![.\w])(?<!\bAS )(\w+)")
#: A word that is put in at run time.
_HOLE = "__put_in__"
_WRITES = re.compile(r"(?i:(?<!FOR )\bUPDATE(?:\s+ONLY)?|\bDELETE\s+FROM|\bINTO|\bTRUNCATE|\bTABLE)\s+\"?(\w+)")


def order() -> dict[str, int]:
    """The height of each room, by the contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [each["layers"] for each in contracts if each["name"] == "rooms are ordered"]
    return {
        room.strip(" ()"): height for height, layer in enumerate(reversed(layers)) for room in re.split("[|:]", layer)
    }


@functools.cache
def owners() -> dict[str, str]:
    """The room of each table."""
    found = {}
    for name in app.MODELS:
        for _, model in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if issubclass(model, Model) and model.__module__ == name:
                found[model._meta.db_table] = name.split(".")[1]
    return found


class _Clause(str):
    """The FROM clause of a `Thing`: it ends at the row of a lower room that has the rights."""

    __slots__ = ()


def texts(tree: ast.Module) -> Iterator[str]:
    """Every string of a module, put together where it is in parts; documentation is none."""
    yield from _walk(tree, dict(_constants(tree)))


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                yield name, text


def _joined(node: ast.expr, constants: Mapping[str, str]) -> str | None:
    """The text of a string, with holes for what is put in at run time."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return constants.get(name)
        case ast.JoinedStr(values=parts):
            return "".join(_joined(part, constants) or _HOLE for part in parts)
        case ast.FormattedValue(value=value):
            return _joined(value, constants)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            before, after = _joined(left, constants), _joined(right, constants)
            return None if before is None and after is None else (before or _HOLE) + (after or _HOLE)
    return None


def _walk(node: ast.AST, constants: Mapping[str, str]) -> Iterator[str]:
    match node:
        case ast.Expr(value=ast.Constant()):
            return
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args) if name in _TAKES_TABLES:
            yield _Clause(f"FROM {_joined(args[_TAKES_TABLES[name]], constants)}")
            return
        case ast.Call(func=ast.Attribute(attr=name), args=[ast.Constant(value=str(table)), *_]) if name in _CLAIMS:
            yield f"UPDATE {table} SET"
    if isinstance(node, ast.expr) and (text := _joined(node, constants)) is not None:
        yield text
    for each in ast.iter_child_nodes(node):  # what is put in may have strings of its own
        yield from _walk(each, constants)


def named(text: str, tables: dict[str, str]) -> tuple[set[str], set[str]]:
    """The tables that a text names, and those that it writes."""
    if not _SQL.search(text):
        return set(), set()
    plain = _QUOTED.sub("''", text)
    words = set(_WORD.findall(plain.replace('"', "")))
    return words & tables.keys(), {word for word in _WRITES.findall(plain) if word in tables or _HOLE in word}


def offences(tree: ast.Module, room: str, tables: dict[str, str], height: dict[str, int]) -> dict[str, str]:
    """What is wrong, by table."""
    found = {}
    for text in texts(tree):
        seen, written = named(text, tables)
        for table in written:
            if tables.get(table) != room:
                found[table] = f"it writes {table}, which is of {tables.get(table, 'nobody knows which room')}"
        for table in seen - found.keys():
            owner = tables[table]
            if owner != room and height[owner] >= height[room]:
                found[table] = f"it names {table}, which is of the room {owner}, not below {room}"
            elif owner != room and not isinstance(text, _Clause):
                found[table] = f"it reads {table}: take a verb or a condition of the room {owner}"
    return found


def test_no_sql_reaches_through_a_wall() -> None:
    tables, height = owners(), order()
    found = {
        (file, table): why
        for file, room, tree in modules()
        for table, why in offences(tree, room, tables, height).items()
    }
    unknown = {place: why for place, why in found.items() if place not in EXCEPTIONS}
    assert not unknown
    assert EXCEPTIONS.keys() <= found.keys(), "an exception is not needed any more: take it out"


@pytest.mark.parametrize(
    ("room", "source", "table"),
    [
        ("runs", 'query("SELECT 1 FROM listener")', "listener"),
        ("runs", 'query("select 1 from listener")', "listener"),
        ("agents", 'query("delete  from run where id = $1")', "run"),
        ("agents", 'query("TRUNCATE run")', "run"),
        ("agents", 'claims.due("run", lease_s=1, most=1)', "run"),
        ("runs", 'query(f"SELECT {x} FROM run r JOIN agent_pool a ON {y}")', "agent_pool"),
        ("runs", 'query("SELECT * FROM run r," " listener l")', "listener"),
        ("runs", 'sql = "SELECT 1 " + f"FROM {x} WHERE EXISTS (SELECT 1 FROM " + "late_state l)"', "late_state"),
        ("runs", 'T = "listener"\nquery(f"SELECT 1 FROM {T}")', "listener"),
        ("runs", "f\"{', '.join(f'SELECT 1 FROM listener' for x in y)}\"", "listener"),
        ("runs", 'sql = "SELECT 1 " + also("AND EXISTS (SELECT 1 FROM listener)")', "listener"),
        ("states", 'query("SELECT 1 FROM configuration_version")', "configuration_version"),
        ("states", 'Thing("run", "run r")', "run"),
        ("workspaces", 'KIND = Kind("agent_pool_label", "pool_id")', "agent_pool_label"),
        ("agents", 'query("SELECT 1 FROM listener l JOIN workspace w ON l.x = w.y")', "workspace"),
        ("agents", 'query("WITH one AS (SELECT 1) UPDATE workspace SET name = $1")', "workspace"),
        ("agents", 'query("DELETE FROM run_phase WHERE id = $1")', "run_phase"),
        ("agents", 'query("INSERT INTO \\"run_event\\" VALUES ($1)")', "run_event"),
        ("agents", 'query(f"UPDATE {table} SET x = 1")', _HOLE),
    ],
)
def test_an_offence_is_found(room: str, source: str, table: str) -> None:
    assert list(offences(ast.parse(source), room, owners(), order())) == [table]


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("runs", 'def f():\n    """SELECT 1 FROM listener"""'),
        ("runs", "query(\"SELECT p.listener, w.id AS listener FROM run_phase p WHERE p.kind = 'listener'\")"),
        ("runs", 'query("SELECT 1 FROM run r WHERE r.id = $1 FOR UPDATE OF r")'),
        ("runs", 'Thing("run", "run r JOIN workspace t ON t.id = r.workspace_id")'),
        ("agents", 'query(f"UPDATE listener SET x = $1 WHERE {leases.is_awaited(id)} AND id IN ({marks})")'),
    ],
)
def test_what_is_allowed_is_no_offence(room: str, source: str) -> None:
    assert offences(ast.parse(source), room, owners(), order()) == {}


#: Modules that speak to clients: they call verbs, and write nothing themselves.
_DRAWERS = re.compile(r"(.*_)?(api|protocol|pages|web|stream)")
_WRITING = {"save", "create", "update", "delete", "bulk_create", "bulk_update", "get_or_create", "update_or_create"}
#: (File, call) -> why a drawer that speaks to clients may write a row all the same.
WRITERS: dict[tuple[str, str], str] = {}
#: File -> models of other rooms that it asks or writes all the same; an entry that is not needed any more fails the test.
FOREIGN: dict[str, set[str]] = {}


@functools.cache
def modules() -> tuple[tuple[str, str, ast.Module], ...]:
    """File, room and content of each module of a room."""
    found = []
    for path in sorted(SERVER.rglob("*.py")):
        name = path.relative_to(SERVER)
        room = name.parts[0].removesuffix(".py")
        if room not in ("migrations", "__init__"):
            found.append((str(name), room, ast.parse(path.read_text())))
    return tuple(found)


def imported(tree: ast.Module) -> dict[str, Any]:
    """What the names stand for that a module imports from the server."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("terrapod_server"):
            module = importlib.import_module(node.module or "")
            for each in node.names:
                name = f"{node.module}.{each.name}"
                found[each.asname or each.name] = getattr(module, each.name, None) or sys.modules.get(name)
    return found


def _annotations(tree: ast.Module) -> set[ast.AST]:
    """All nodes that stand in types alone."""
    kinds = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    return {part for kind in kinds if kind is not None for part in ast.walk(kind)}


def foreign_rows(tree: ast.Module, room: str) -> set[str]:
    """The models of other rooms that a module uses for more than types."""
    known, types = imported(tree), _annotations(tree)
    found = set()
    for node in ast.walk(tree):
        if node in types:
            continue
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                thing = known.get(name)
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if inspect.ismodule(known.get(name)):
                thing = getattr(known[name], attr, None)
            case _:
                continue
        if inspect.isclass(thing) and thing.__module__ in app.MODELS and thing.__module__.split(".")[1] != room:
            found.add(ast.unparse(node))
    return found


def test_a_room_asks_another_by_verbs_alone() -> None:
    found = {file: rows for file, room, tree in modules() if (rows := foreign_rows(tree, room))}
    assert found == FOREIGN, (
        "a row of another room is read and handed on; it is found and changed by verbs of its own room"
    )


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        (
            "from terrapod_server.workspaces.model import Workspace\nWorkspace.filter(id=1).update(name='x')",
            {"Workspace"},
        ),
        ("from terrapod_server.workspaces import actions as workspaces\nworkspaces.Row.all()", {"workspaces.Row"}),
        ("from terrapod_server.workspaces.actions import Row\nread = Reader(Row)", {"Row"}),
        ("from terrapod_server.workspaces.actions import Row\ndef f(x: Row, *y: list[Row]) -> Row: z: Row = x", set()),
        ("from terrapod_server.runs.model import Run\nRun.all()", set()),
    ],
)
def test_the_use_of_a_foreign_row_is_found(source: str, rows: set[str]) -> None:
    assert foreign_rows(ast.parse(source), "runs") == rows


def foreign_models(tree: ast.Module, room: str) -> set[str]:
    """The modules of other rooms' tables that a module imports, be it for types alone."""
    named = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                named |= {module, *(f"{module}.{each.name}" for each in names)}
            case ast.Import(names=names):
                named |= {each.name for each in names}
    return {name for name in named & {*app.MODELS} if name.split(".")[1] != room}


def test_the_tables_of_a_room_are_its_own() -> None:
    """As the contracts have it of the rooms that they name; a room that is new is asked here."""
    assert {file: found for file, room, tree in modules() if (found := foreign_models(tree, room))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from terrapod_server.runs.model import Run",
        "from terrapod_server.runs import model",
        "import terrapod_server.runs.model as tables",
        "def f():\n    from terrapod_server.runs.model import Run",
        "if TYPE_CHECKING:\n    from terrapod_server.runs.model import Run",
    ],
)
def test_an_import_of_foreign_tables_is_found(source: str) -> None:
    assert foreign_models(ast.parse(source), "agents") == {"terrapod_server.runs.model"}
    assert foreign_models(ast.parse(source), "runs") == set()


def _is_drawer(file: Path) -> bool:
    return any(_DRAWERS.fullmatch(part) for part in (*file.parts[:-1], file.stem))


def writes(tree: ast.Module) -> set[str]:
    """What writes rows: SQL, methods of models and queries, and no verbs of a module."""
    known = imported(tree)
    found = {f"SQL on {table}" for text in texts(tree) for table in named(text, owners())[1]}
    for node in ast.walk(tree):
        match node:
            case ast.Await(value=ast.Call(func=ast.Attribute(value=of, attr=name))) if name in _WRITING:
                if not (isinstance(of, ast.Name) and inspect.ismodule(known.get(of.id))):
                    found.add(f"{ast.unparse(of)}.{name}")
            case ast.Name(id="in_transaction") | ast.Attribute(attr="in_transaction"):
                found.add("in_transaction")
    return found


def test_who_speaks_to_clients_writes_no_rows() -> None:
    found = {(file, call): "" for file, _, tree in modules() if _is_drawer(Path(file)) for call in writes(tree)}
    assert found.keys() == WRITERS.keys(), "the api drawer calls verbs; an exception that is not needed goes"
