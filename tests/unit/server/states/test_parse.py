"""What is read of a state, and what is left in it."""

import io
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.serving import state_bytes
from terrapod_server.states import parse


def read(raw: bytes) -> parse.Summary:
    return parse.summarise(io.BytesIO(raw))


@pytest.mark.parametrize(
    "number", ["9223372036854775808999", "0.1234567890123456789012345", "1.10", "-7", "1E+400", "18446744073709551615"]
)
def test_numbers_stay_as_they_were_written(number: str) -> None:
    raw = b'{"serial": 1, "outputs": {"n": {"value": [%s], "type": ["list", "number"]}}}' % number.encode()
    assert read(raw).outputs[0].value == b"[%s]" % number.encode()


@pytest.mark.parametrize("raw", [b'{"serial": 1, "a": "hunter2" oops', b'{"hunter2": 1, "hunter2": 2}', b"hunter2"])
def test_why_it_is_unreadable_quotes_nothing(raw: bytes) -> None:
    with pytest.raises(parse.Unreadable) as caught:
        read(raw)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        state_bytes(1, outputs={"a\0b": {"value": 1, "type": "number"}}),
        state_bytes(1, resources=1).replace(b"r0", b"r\\u0000"),
    ],
)
def test_a_nul_in_a_name_costs_the_resources(raw: bytes) -> None:
    found = read(raw)
    assert (found.serial, found.resources) == (1, [])
    assert "NUL" in found.reason


def test_a_nul_in_the_lineage_is_refused() -> None:
    with pytest.raises(parse.Unreadable, match="lineage"):
        read(state_bytes(1, "a\0b"))


def test_a_nul_in_an_output_s_type_leaves_the_output_out() -> None:
    raw = state_bytes(1, outputs={"a": {"value": {}, "type": ["object", {"x\0": "string"}]}}, resources=1)
    found = read(raw)
    assert ([output.kept for output in found.outputs], found.resource_count, found.reason) == ([False], 1, "")


def test_a_nul_in_a_value_is_kept() -> None:
    assert read(state_bytes(1, outputs={"a": {"value": "x\0y", "type": "string"}})).outputs[0].value == rb'"x\u0000y"'


def test_outputs_share_one_budget() -> None:
    large = {"value": "x" * 900_000, "type": "string", "sensitive": True}
    outputs = {f"o{number}": large for number in range(20)} | {"last": {"value": "y" * 900_000, "type": "string"}}
    found = read(state_bytes(1, outputs=outputs)).outputs
    assert [output.name for output in found] == list(outputs)
    assert [output.kept for output in found] == [True] * 9 + [False] * 12
    assert all(output.sensitive for output in found[:-1])
    assert sum(len(output.value) for output in found) < parse.OUTPUTS_TOTAL
    assert {output.type for output in found[9:]} == {None}


def test_one_output_that_is_too_large_leaves_room_for_others() -> None:
    outputs = {"large": {"value": "x" * (2 << 20), "type": "string"}, "small": {"value": "y", "type": "string"}}
    assert [output.kept for output in read(state_bytes(1, outputs=outputs)).outputs] == [False, True]


def test_more_outputs_than_are_listed_show_that_the_list_is_not_all() -> None:
    outputs = {f"o{number}": {"value": number, "type": "number"} for number in range(parse.OUTPUTS_MOST + 1)}
    found = read(state_bytes(1, outputs=outputs)).outputs
    assert len(found) == parse.OUTPUTS_MOST
    assert [found[0].kept, found[-1].kept] == [True, False]


def test_a_version_of_absurd_size_is_passed_over() -> None:
    assert read(b'{"version": 1e999999999, "serial": 4}').serial == 4


def test_resources_are_counted_by_module_and_provider() -> None:
    document = json.loads(state_bytes(1, resources=3))
    document["resources"].append({**document["resources"][0], "mode": "data"})
    document["resources"][1]["module"] = "module.a"
    found = read(json.dumps(document).encode())
    assert found.resource_count == 3
    assert {name: sum(kinds.values()) for name, kinds in found.modules.items()} == {"root": 2, "module.a": 1}


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def with_attribute(value: bytes, serial: int = 1) -> bytes:
    """A state with one resource, of which one attribute is that."""
    raw = state_bytes(serial, outputs={"o": {"value": "v", "type": "string"}}, resources=1)
    return raw.replace(b'"id": "0"', b'"id": ' + value)


@pytest.mark.parametrize(
    "value", [b"1" * 5_000, b"-1." + b"0" * 2_000, b"1e" + b"9" * 3_000, nested(300), nested(100_000)]
)
def test_what_no_parser_may_see_costs_the_resources_and_not_the_state(value: bytes) -> None:
    found = read(with_attribute(value, 7))
    assert (found.serial, found.lineage, found.terraform_version) == (7, "aaaa", "1.15.5")
    assert "nesting" in found.reason or "number" in found.reason
    assert (found.resources, [(output.name, output.kept) for output in found.outputs]) == ([], [("o", False)])


@pytest.mark.parametrize("value", [b"1" * 1_000, nested(190), b'"' + b"7" * 10_000 + b'"', b'"\\\\\\"[[[["'])
def test_what_is_within_the_bounds_is_read(value: bytes) -> None:
    assert (read(with_attribute(value)).reason, read(with_attribute(value)).resource_count) == ("", 1)


@pytest.mark.parametrize("value", ["1" * 500, "[" + "1" * 500 + "]", '{"a": [1.' + "0" * 500 + "]}"])
def test_an_output_that_no_client_could_read_is_left_out(value: str) -> None:
    raw = b'{"serial": 1, "outputs": {"n": {"value": %s, "type": "dynamic"}, "m": {"value": 2, "type": "number"}}}'
    found = read(raw % value.encode())
    assert [(output.name, output.kept) for output in found.outputs] == [("n", False), ("m", True)]


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 30_000,
        b'{"serial": 1, "a": ' + b"[" * 300_000,
        b'{"serial": 1, "resources": [{"a": [}]}',
        b'{"serial": 1, "resources": [{"a": "\xff"}]}',
        b'{"serial": 1, "a": "x',
        b'{"serial": 1, "a": "\\',
        b'{"serial": 1}}',
        b'{"serial": 1} {"serial": 2}',
        b'{"serial": %s}' % (b"1" * 5_000),
        b'{"serial": 1, "lineage": "%s"}' % (b"x" * 256),
        b'{"serial": 1, "lineage": 5}',
        b'{"serial": 1, "%s": 1}' % (b"n" * 200_000),
        b"{" + b", ".join(b'"m%d": 1' % number for number in range(50_000)) + b"}",
    ],
)
def test_what_is_broken_is_refused(raw: bytes) -> None:
    with pytest.raises(parse.Unreadable):
        read(raw)


def test_resources_of_another_form_cost_the_resources() -> None:
    for form in (b'{"serial": 4, "resources": 5}', b'{"serial": 4, "outputs": []}', b'{"serial": 4, "resources": [7]}'):
        found = read(form)
        assert (found.serial, found.resources) == (4, [])
        assert "terraform" in found.reason


@pytest.mark.slow
def test_memory_is_bounded_whatever_is_nested() -> None:
    tracemalloc.start()
    with pytest.raises(parse.Unreadable):
        read(b"[" * (1 << 20))
    for value in (nested(1 << 19), b"1" * (1 << 20), b'"' + b"x" * (1 << 20) + b'"'):
        read(with_attribute(value))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20


def test_counts_of_very_many_modules_are_bounded() -> None:
    one = '{"mode": "managed", "type": "t", "name": "n", "provider": "p", "module": "module.m%d", "instances": [{}]}'
    raw = '{"serial": 1, "resources": [' + ",".join(one % number for number in range(parse.KINDS_MOST + 9)) + "]}"
    found = read(raw.encode())
    assert (found.resource_count, len(found.modules)) == (parse.KINDS_MOST + 9, parse.KINDS_MOST + 1)
    assert found.modules[parse.OTHERS] == {parse.OTHERS: 9}


NAMES = st.text(max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
RESOURCES = st.fixed_dictionaries(
    {"type": NAMES, "name": NAMES, "instances": st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=3)},
    optional={"mode": st.sampled_from(["managed", "data"]), "module": NAMES, "provider": NAMES, "each": VALUES},
)
OUTPUTS_ = st.dictionaries(
    NAMES, st.fixed_dictionaries({"value": VALUES, "type": VALUES}, optional={"sensitive": st.booleans()}), max_size=4
)


@settings(deadline=None)
@given(st.lists(RESOURCES, max_size=4), OUTPUTS_, VALUES, st.integers(0, 3))
def test_a_large_state_is_read_as_a_small_one(resources: list[Any], outputs: Any, other: Any, indent: int) -> None:
    document = {"serial": 3, "check": other, "resources": resources, "outputs": outputs, "lineage": "l", "x": [other]}
    raw = json.dumps(document, indent=indent or None, ensure_ascii=bool(indent % 2)).encode()
    small = read(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse, "WHOLE_MOST", 1)
        patch.setattr(parse, "_BLOCK", 7)
        assert read(raw) == small


def test_a_state_of_more_than_one_piece_is_read_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "WHOLE_MOST", 1 << 20)
    one = json.loads(state_bytes(1, resources=1))["resources"][0]
    one["instances"] = [{"attributes": {"text": "x" * 1000, "list": [[1], {"a": "]"}]}}] * 50
    raw = state_bytes(5, outputs={"a": {"value": "\\", "type": "string"}})[:-3]
    raw += b",".join([json.dumps(one).encode()] * 200) + b"]}"
    assert len(raw) > 10 << 20
    tracemalloc.start()
    found = read(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.reason, found.serial, found.resource_count) == ("", 5, 10_000)
    assert found.outputs[0].value == rb'"\\"'
    assert peak < 8 << 20


def test_half_a_character_is_in_no_text_that_is_kept() -> None:
    raw = rb'{"serial": 1, "terraform_version": "1\ud800.2"}'
    assert parse.head(io.BytesIO(raw), "no reader could").terraform_version == "1.2"
    with pytest.raises(parse.Unreadable, match="lineage"):
        read(rb'{"serial": 1, "lineage": "\ud800"}')
