"""What is read of a state, and what is left in it."""

import io
import json

import pytest

from kit.serving import state_bytes
from terrapod_server.states import parse


def read(raw: bytes) -> parse.Summary:
    return parse.summarise(io.BytesIO(raw))


@pytest.mark.parametrize(
    "number", ["9223372036854775808999", "0.1234567890123456789012345", "1.10", "-7", "1E+400", "18446744073709551615"]
)
def test_numbers_stay_as_they_were_written(number: str) -> None:
    raw = b'{"serial": 1, "outputs": {"n": {"value": [%s], "type": ["list", "number"]}}}' % number.encode()
    assert parse.encoded(read(raw).outputs[0].value) == b"[%s]" % number.encode()


@pytest.mark.parametrize("raw", [b'{"serial": 1, "a": "hunter2" oops', b'{"hunter2": 1, "hunter2": 2}', b"hunter2"])
def test_why_it_is_unreadable_quotes_nothing(raw: bytes) -> None:
    with pytest.raises(parse.Unreadable) as caught:
        read(raw)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        state_bytes(1, "a\0b"),
        state_bytes(1, outputs={"a\0b": {"value": 1, "type": "number"}}),
        state_bytes(1, outputs={"a": {"value": {}, "type": ["object", {"x\0": "string"}]}}),
        state_bytes(1, resources=1).replace(b"r0", b"r\\u0000"),
    ],
)
def test_a_nul_in_a_name_is_refused(raw: bytes) -> None:
    with pytest.raises(parse.Unreadable, match="NUL"):
        read(raw)


def test_a_nul_in_a_value_is_kept() -> None:
    assert read(state_bytes(1, outputs={"a": {"value": "x\0y", "type": "string"}})).outputs[0].value == "x\0y"


def test_outputs_share_one_budget() -> None:
    large = {"value": "x" * 900_000, "type": "string", "sensitive": True}
    outputs = {f"o{number}": large for number in range(20)} | {"last": {"value": "y" * 900_000, "type": "string"}}
    found = read(state_bytes(1, outputs=outputs)).outputs
    assert [output.name for output in found] == list(outputs)
    assert [output.kept for output in found] == [True] * 9 + [False] * 12
    assert all(output.sensitive for output in found[:-1])
    assert sum(len(parse.encoded(output.value)) for output in found) < parse.OUTPUTS_TOTAL
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
