"""No regular expression that can take more than linear time, but those that are listed with a reason."""

import ast
import re._compiler as compiler  # type: ignore[import-not-found]
import re._constants as sre  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("listener", "server", "shared", "cli")
#: Where a repeat has an end that is near, backtracking is bounded by it.
_NEAR = 2000
#: File and name (or function) of a pattern -> why it may be.
ALLOWED = {
    (
        "server/terrapod_server/identity/signin/saml.py",
        "_CERTIFICATE",
    ): "reads the operator's own file of the identity provider",
    ("server/terrapod_server/engines/signatures.py", "_ARMOR"): "reads the operator's own file of keys",
    (
        "server/terrapod_server/store/port.py",
        "_KEY",
    ): "each turn begins with a / that nothing else in it matches; of 900 bytes",
    (
        "server/terrapod_server/registry/modules/rules.py",
        "_SEMVER",
    ): "each turn begins with a dot; of 128 letters at most",
    ("cli/terrapod_cli/hcl.py", "_TOKEN"): "reads the user's own settings on the user's own machine",
    ("cli/terrapod_cli/ignore.py", "_rule"): "the user's own patterns and file names on the user's own machine",
}
_USES = {"compile", "match", "search", "fullmatch", "findall", "finditer", "split", "sub", "subn"}


def patterns() -> Iterator[tuple[str, str, str | bytes | None]]:
    """File, name and text of every pattern; no text where it is put together."""
    for program in PROGRAMS:
        for path in sorted((ROOT / program).rglob("*.py")):
            tree = ast.parse(path.read_text())
            names = dict(_names(tree))
            for call in ast.walk(tree):
                function = call.func if isinstance(call, ast.Call) else None
                is_re = (
                    isinstance(function, ast.Attribute)
                    and isinstance(function.value, ast.Name)
                    and function.value.id == "re"
                )
                if is_re and function.attr in _USES:  # type: ignore[union-attr]
                    yield str(path.relative_to(ROOT)), names.get(call, ""), _text(call.args[0], tree)  # type: ignore[attr-defined]


def _names(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Each node's name at the top of its module: a constant, a function or a class."""
    for top in tree.body:
        target = top.targets[0] if isinstance(top, ast.Assign) else top
        name = getattr(target, "id", "") or getattr(target, "name", "")
        for node in ast.walk(top):
            yield node, name


def _text(node: ast.expr, tree: ast.Module) -> str | bytes | None:
    """The pattern's text, with what constants of the module are put into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [_text(each.value if isinstance(each, ast.FormattedValue) else each, tree) for each in node.values]
        return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else None
    if isinstance(node, ast.Name):
        for each in tree.body:
            if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name) and each.targets[0].id == node.id:
                return _text(each.value, tree)
    return None


def slow(tree: Any, *, is_repeated: bool = False) -> str:  # noqa: C901  one answer a kind of node
    """Why a parsed pattern may backtrack; empty where it does not."""
    before: set[int] = set()  # what a repeat before this place could match, too
    for what, value in tree:
        inner, is_inside = list[Any](), is_repeated
        is_optional = what in (sre.AT, sre.ASSERT, sre.ASSERT_NOT)
        if what in (sre.MIN_REPEAT, sre.MAX_REPEAT):
            least, most, body = value
            is_long, is_optional, inner = most > _NEAR, least == 0, [body]
            if what is sre.MIN_REPEAT and is_long:
                return "a lazy repeat"
            if is_repeated and is_long:
                return "a repeat in a repeat"
            if is_long and _letters(body) & before:
                return "two repeats side by side that match the same"
            before = (before if is_optional else set()) | (_letters(body) if is_long else set())
            is_optional, is_inside = True, is_repeated or is_long
        elif what is sre.SUBPATTERN:
            inner = [value[3]]
        elif what is sre.BRANCH:
            inner = value[1]
        if not is_optional:
            before = set()
        for each in inner:
            if why := slow(each, is_repeated=is_inside):
                return why
    return ""


def _letters(tree: Any) -> set[int]:
    """Letters of one byte that a pattern of one letter matches; nothing for a longer one, which has its own marks."""
    if len(tree) != 1 or tree[0][0] not in (sre.IN, sre.LITERAL, sre.NOT_LITERAL, sre.ANY):
        return set()
    one = parser.SubPattern(tree.state, [tree[0]])
    matches = compiler.compile(one).fullmatch
    return {letter for letter in range(128) if matches(chr(letter))}


def test_no_pattern_takes_more_than_linear_time() -> None:
    found, used = [], set()
    for file, name, text in patterns():
        why = "is put together" if text is None else slow(parser.parse(text))
        if why and (file, name) in ALLOWED:
            used.add((file, name))
        elif why:
            found.append(f"{file}: {name}: {why}: {text!r}")
    assert found == []
    assert used == set(ALLOWED), "an exception that nothing needs any more"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"a.*?b", "a lazy repeat"),
        (r"(a+)+", "a repeat in a repeat"),
        (r"(?:[^\"]|\\.)*", ""),
        (r"\s*(=)?\s*x", "two repeats side by side that match the same"),
        (r"\s*\s*x", "two repeats side by side that match the same"),
        (r"[a-z]*[0-9]*", ""),
        (r"a{0,20}?b{0,9}", ""),
        (r"\s*=\s*x", ""),
    ],
)
def test_the_judge_of_patterns(pattern: str, why: str) -> None:
    assert slow(parser.parse(pattern)) == why
