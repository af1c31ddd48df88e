"""Paths without links: the same answer from every version of Python."""

from pathlib import Path

import pytest

from terrapod_shared.files import real_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of links, itself reached without one."""
    root = tmp_path.resolve()
    (root / "file").touch()
    for name, target in {
        "good": "file", "gone": "nowhere/at/all", "self": "self", "here": "there", "there": "here", "below": "self/file",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    return root


@pytest.mark.parametrize(
    ("name", "leads_to"),
    [("file", "file"), ("good", "file"), ("gone", "nowhere/at/all"), ("missing", "missing"), ("./good", "file")],
)
def test_a_path_may_lead_to_nothing(root: Path, name: str, leads_to: str) -> None:
    assert real_path(root / name) == root / leads_to


@pytest.mark.parametrize("name", ["self", "here", "there", "below", "self/file"])
def test_a_link_that_leads_to_itself_is_an_error(root: Path, name: str) -> None:
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        real_path(root / name)
