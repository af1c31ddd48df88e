"""Which versions are used, and which are not."""

import pytest

from terrapod_server.engines import advisories, rules
from terrapod_shared import versions


@pytest.mark.parametrize(
    ("tool", "good", "bad"),
    [
        ("terraform", ["1.5.7", "1.6.0", "1.15.5", "2.0.0", "1.6.0-rc1"], ["1.5.6", "1.0.0", "0.11.15", "1.5.7-rc1"]),
        (
            "tofu",
            ["1.10.10", "1.10.11", "1.11.7", "1.12.0-beta1", "1.12.0"],
            ["1.10.9", "1.9.4", "1.11.0", "1.11.6", "1.11.7-rc1", "1.11.0-beta1"],
        ),
    ],
)
def test_versions_with_known_holes(tool: str, good: list[str], bad: list[str]) -> None:
    assert [version for version in good if advisories.why_not(tool, version)] == []
    assert [version for version in bad if not advisories.why_not(tool, version)] == []
    assert all(f"engines.{tool}_floor" in advisories.why_not(tool, version) for version in bad)


def test_an_owners_floor_stands_in_the_place_of_the_table() -> None:
    assert advisories.why_not("terraform", "1.4.0", "1.4.0") == ""
    assert advisories.why_not("terraform", "1.4.0-rc1", "1.4.0")
    assert (
        advisories.why_not("terraform", "1.9.0", "1.10.0") == "terraform 1.9.0 is below engines.terraform_floor, 1.10.0"
    )


def test_the_table_can_be_read() -> None:
    for hole in advisories.HOLES:
        assert hole.tool in rules.TOOLS
        assert [versions.exact(each) for each in hole.fixed] == sorted(filter(None, map(versions.exact, hole.fixed)))
