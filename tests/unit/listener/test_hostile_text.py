"""What users write costs the listener time and memory by its size, whatever it is: each reader of it, and 1 MB of the worst."""

import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrapod_listener import config
from terrapod_listener.engine import argv, plugins, workdir
from terrapod_listener.phase import accept
from terrapod_listener.supervise import masking, statefile
from terrapod_listener.supervise.masking import Masker

M = 1 << 20
#: Seconds of the processor. What is linear takes a quarter of it; the quickest pattern that is not took nine for one text.
BOUND_S = 4.0


@contextmanager
def bounded() -> Iterator[None]:
    began = time.thread_time()
    yield
    assert time.thread_time() - began < BOUND_S


def filled(unit: str, size: int = M // 8) -> str:
    return unit * (size // len(unit))


UNITS = [
    'provider "x" {\n', 'provider "a/b/c" {\n}\n', "provider", 'provider "x', "provider ", '"', '\\"', "\\", "{", "[", "[]", "1", "1.",
    "-1", " ", "\n", "\t", "a", "é", 'variable "x" {\n', "variable ", 'variable "', "ephemeral ", 'backend "remote" {', "backend ",
    'workspaces { prefix = "', "workspaces {", "prefix = ", ".tfstate", "override", "_override", '"h1:', 'version = "1', "$${", "${",
    '"a" = ', '"a": "b", ', "*", "?", '"\\u0000', "\0", "]", "/*", "#", "a b\n", "'", '"serial": 1,\n', '  "lineage": "',
]  # fmt: skip
READERS: list[Callable[[str], Any]] = [
    plugins.locked,
    lambda text: list(masking.members(text)),
    lambda text: list(masking.members("{" + text)),
    lambda text: list(masking.members('["' + text)),
    lambda text: argv.declared({"a.tf": text, "b.tf.json": text}),
    lambda text: argv.selected("w", {"a.tf": text, "b.tf.json": text}),
    argv.quoted,
    lambda text: accept._matches(text[: config.PATTERN_MOST], text[:255]),
    workdir._is_dropped,
]


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_every_reader_of_text_is_linear(unit: str) -> None:
    text = filled(unit)
    with bounded():
        for read in READERS:
            read(text)
        for tail in ("\n", '"', "}", "\\"):
            plugins.locked(text + tail)
            list(masking.members("[" + text + tail))
        with pytest.raises(statefile.Torn):
            statefile.mark(io.BytesIO(text.encode()))
        with pytest.raises(statefile.Torn):
            statefile.mark(io.BytesIO(b'{"a": ' + text.encode()), whole=False)


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        pytest.param("a" * 50_000, b"a" * (M // 2), id="all one letter"),
        pytest.param("a" * 50_000 + "b", b"a" * (M // 2), id="a beginning for ever"),
        pytest.param("ab" + "a" * 25_000, b"ab" + b"a" * (M // 2), id="alike from the end"),
        pytest.param("ab" * 25_000, b"ab" * (M // 4), id="a short period"),
        pytest.param(
            json.dumps([f"s{number:05}" for number in range(10_000)]), b"word after word\n" * (M // 32), id="many short"
        ),
        pytest.param(
            json.dumps([f"s{number:05}" for number in range(10_000)]),
            b" ".join(b"s%05d" % (number % 10_000) for number in range(M // 14)),
            id="many short, all there",
        ),
        pytest.param(
            json.dumps(["x" * 6 + str(number) for number in range(10_000)]), b"x" * (M // 2), id="many of one beginning"
        ),
        pytest.param('"' * 50_000, b'"' * (M // 2), id="quotes"),
        pytest.param("\n".join(f"line{number}" for number in range(20_000)), b"line1\n" * (M // 12), id="many lines"),
    ],
)
def test_masking_is_linear(secret: str, text: bytes) -> None:
    with bounded():
        masker = Masker([secret])
        for at in range(0, len(text), 65536):
            masker.feed(text[at : at + 65536])
        masker.flush()


@pytest.mark.parametrize("unit", ['provider "x" {\n', '\\"', '"', "[", "1"])
def test_a_megabyte_is_no_more_than_its_parts(unit: str) -> None:
    text = filled(unit, M)
    with bounded():
        assert plugins.locked(text) == []
        list(masking.members('["' + text))


def test_a_reader_of_text_has_no_recursion_to_run_out_of() -> None:
    deep = "[" * 900 + '"a secret word",' * 10_000 + '"x"' + "]" * 900
    with bounded():
        assert "a secret word" in set(masking.members(deep))
        assert argv.declared({"a.tf.json": "[" * 100_000}) == {}
        assert argv.selected("w", {"a.tf.json": '{"terraform":' * 100_000}) == "w"


def naive(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return naive(pattern[1:], text) or (bool(text) and naive(pattern, text[1:]))
    return bool(text) and pattern[0] in ("?", text[0]) and naive(pattern[1:], text[1:])


@given(st.text("ab*?", max_size=8), st.text("ab\n", max_size=8))
def test_patterns_mean_what_they_say(pattern: str, text: str) -> None:
    assert accept._matches(pattern, text) == naive(pattern, text)


@given(st.text('a"\\= :{', max_size=30))
def test_quoted_texts_are_those_between_quotes(text: str) -> None:
    """As the letters say it one by one."""
    found, at = [], 0
    while at < len(text):
        if text[at] != '"':
            at += 1
            continue
        end = at + 1
        while end < len(text) and text[end] != '"':
            end += 2 if text[end] == "\\" else 1
        rest = text[end + 1 :].lstrip()
        if end >= len(text) or not rest.startswith(("=", ":")):
            found.append(text[at + 1 : end])
        at = end + 1
    assert list(masking._texts(text)) == found


@given(st.text("ab", min_size=1, max_size=12), st.text("ab", max_size=40))
def test_an_overlap_is_the_longest(word: str, text: str) -> None:
    longest = max(size for size in range(min(len(word), len(text)) + 1) if text.endswith(word[:size]))
    assert masking._overlap(word.encode(), text.encode()) == longest


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[],:é\n', max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k"\\[', max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text('mn"\\{', max_size=4), VALUE, max_size=5), st.booleans(), st.sampled_from([1, 2, 3, M]))
def test_a_skeleton_is_the_document_without_its_insides(document: dict[str, Any], is_ascii: bool, chunk: int) -> None:
    raw = json.dumps(document, ensure_ascii=is_ascii).encode()
    wanted = {key: None if isinstance(value, list | dict) else value for key, value in document.items()}
    before, statefile._CHUNK = statefile._CHUNK, chunk
    try:
        assert json.loads(statefile._skeleton(io.BytesIO(raw))) == wanted
        with pytest.raises(ValueError):
            json.loads(statefile._skeleton(io.BytesIO(raw[: len(raw) // 2])))
    finally:
        statefile._CHUNK = before


def test_a_state_of_another_writer_is_told_by_its_skeleton() -> None:
    sealed = {
        "serial": 7,
        "lineage": "line",
        "meta": {"key": ["x"]},
        "encrypted_data": "A" * (8 * M),
        "encryption_version": "v0",
    }
    raw = json.dumps(sealed).encode()
    found = statefile.mark(io.BytesIO(raw))
    assert (found["serial"], found["lineage"]) == (7, "line")
    for torn in (
        raw[:-1],
        raw[: 4 * M],
        raw + b"}",
        raw.replace(b"A", b"\0", 1),
        raw.replace(b"7", b"1e999", 1),
        b"[]",
        b"",
    ):
        with pytest.raises(statefile.Torn):
            statefile.mark(io.BytesIO(torn))


def test_locks_of_providers_are_read_as_before() -> None:
    digest = "h1:" + "A" * 43 + "="
    block = 'provider "registry.terraform.io/a/b" {{\n  version = "{}"\n  hashes = [\n    "{}",\n  ]\n}}\n'
    text = (
        "# by terraform\n"
        + block.format("1.0.0", digest)
        + block.format("1.0.0", digest)
        + block.format("2.0.0", "zh:1")
    )
    [one] = plugins.locked(text)
    assert (one.place[:4], one.digests) == (("registry.terraform.io", "a", "b", "1.0.0"), (digest,))
    many = "".join(block.replace("/b", f"/b{number}").format("1.0.0", digest) for number in range(2000))
    assert len(plugins.locked(many)) == plugins._LOCKED_MOST
