"""Names and versions of modules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrapod_server.registry.modules import rules

#: SemVer's own example of precedence, and a little more; oldest first.
ORDERED = [
    "0.9.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
    "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0-0", "2.0.0",
]  # fmt: skip


@given(st.permutations(ORDERED))
def test_versions_are_ordered_by_precedence(shuffled: list[str]) -> None:
    assert sorted(shuffled, key=rules.order) == ORDERED


@pytest.mark.parametrize("text", [*ORDERED, "1.0.0+build.5", "1.0.0-x-y.7+a-b.001", "999999999.0.0"])
def test_versions_that_may_be(text: str) -> None:
    assert rules.version(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0+", "1.0.0-a..b", "1.0.0\n", " 1.0.0",
        "1.0.0/../../x", "..", "1.0.0-é", "1.0.x", "1000000000.0.0", "1.0.0-" + "a" * 130, "\u0661.0.0",
    ],
)  # fmt: skip
def test_versions_that_may_not_be(text: str) -> None:
    with pytest.raises(ValueError, match="semantic version"):
        rules.version(text)


@given(st.text(max_size=20))
def test_what_is_a_version_has_an_order(text: str) -> None:
    try:
        rules.version(text)
    except ValueError:
        return
    assert rules.order(text) == rules.order(text)


def test_names_are_those_that_terraform_can_say() -> None:
    for good in ("a", "vpc", "my-vpc_2", "A" * 64):
        assert rules.name(good) == good
    for bad in ("", "-a", "a-", "a b", "a/b", "..", "a" * 65, "é", "a\n"):
        with pytest.raises(ValueError, match="must be"):
            rules.name(bad)
    for good in ("aws", "null", "azure2"):
        assert rules.provider(good) == good
    for bad in ("", "AWS", "a-b", "a.b", "..", "a" * 65, "a\n", "\u0661"):
        with pytest.raises(ValueError, match="must be"):
            rules.provider(bad)
    assert rules.namespace("") == rules.namespace("default") == "default"
    assert rules.registry("") == rules.registry("private") == "private"
    with pytest.raises(ValueError, match="one namespace"):
        rules.namespace("other")
    with pytest.raises(ValueError, match="private registry only"):
        rules.registry("public")
