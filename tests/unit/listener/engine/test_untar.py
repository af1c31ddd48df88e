"""Nothing of an archive lands or points outside of its folder, whatever its links are."""

import io
import os
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrapod_listener.engine import untar

Entry = tuple[str, bytes, str]
KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)


def archive(*entries: Entry, mode: int = 0o644) -> io.BytesIO:
    """A tar of (name, kind, link's text)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, kind, link in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode = kind, link, mode
            raw = b"content" if kind == tarfile.REGTYPE else b""
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    made.seek(0)
    return made


def placed(root: Path, *entries: Entry, mode: int = 0o644) -> Path:
    root.mkdir()
    with tarfile.open(fileobj=archive(*entries, mode=mode), mode="r|") as tar:
        for entry in tar:
            untar.place(tar, entry, root)
    return root


def test_what_is_usual_is_there(tmp_path: Path) -> None:
    out = placed(
        tmp_path / "out",
        ("./a/b/main.tf", tarfile.REGTYPE, ""),
        ("a/empty/", tarfile.DIRTYPE, ""),
        ("a/b/up", tarfile.SYMTYPE, "../../c/./d"),
        ("a/same", tarfile.LNKTYPE, "a/b/main.tf"),
        ("link", tarfile.SYMTYPE, "a/b"),
        mode=0o4777,
    )
    assert (out / "link" / "main.tf").read_bytes() == b"content"
    assert (out / "a" / "empty").is_dir()
    assert str((out / "a" / "b" / "up").readlink()) == "../../c/d"
    assert (out / "a" / "same").samefile(out / "a" / "b" / "main.tf")
    assert stat.S_IMODE((out / "a" / "same").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "entries",
    [
        [("/etc/x", tarfile.REGTYPE, "")],
        [("../x", tarfile.REGTYPE, "")],
        [("a/../../x", tarfile.DIRTYPE, "")],
        [("l", tarfile.SYMTYPE, "/etc")],
        [("l", tarfile.SYMTYPE, "..")],
        [("a/l", tarfile.SYMTYPE, "../../x")],
        [("l", tarfile.SYMTYPE, "")],
        [("l", tarfile.SYMTYPE, "a"), ("l/x", tarfile.REGTYPE, "")],
        [("a", tarfile.DIRTYPE, ""), ("l", tarfile.SYMTYPE, "a"), ("l/b/c", tarfile.SYMTYPE, "../../x")],
        [("a/f", tarfile.REGTYPE, ""), ("l", tarfile.SYMTYPE, "a"), ("h", tarfile.LNKTYPE, "l/f")],
        [("l", tarfile.SYMTYPE, "x"), ("h", tarfile.LNKTYPE, "l")],
        [("h", tarfile.LNKTYPE, "../x")],
        [("h", tarfile.LNKTYPE, "/etc/passwd")],
        [("h", tarfile.LNKTYPE, "none")],
        [("f", tarfile.REGTYPE, ""), ("f/x", tarfile.REGTYPE, "")],
        [("p", tarfile.FIFOTYPE, "")],
        [("d", tarfile.CHRTYPE, "")],
        [("f", tarfile.REGTYPE, ""), ("f", tarfile.REGTYPE, "")],
    ],
)
def test_what_would_leave_is_refused(tmp_path: Path, entries: list[Entry]) -> None:
    with pytest.raises((untar.Outside, OSError)):
        placed(tmp_path / "out", *entries)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_links_by_links_do_not_leave(tmp_path: Path) -> None:
    """Taken as text `x/y/b/../../../z` is inside; the kernel would have gone by what `b` is."""
    entries = [("x/y/b", tarfile.SYMTYPE, "../.."), ("x/y/l", tarfile.SYMTYPE, "b/../../../z")]
    out = placed(tmp_path / "out", *entries)
    assert str((out / "x" / "y" / "l").readlink()) == "../../z"


_PART = st.sampled_from(["a", "b", "c", "..", ".", ""])
_PATH = st.lists(_PART, min_size=1, max_size=6).map("/".join)


@given(st.lists(st.tuples(_PATH, st.sampled_from(KINDS), _PATH), max_size=12))
def test_no_archive_gets_out(entries: list[Entry]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder).resolve() / "o" / "u" / "t"
        outer.mkdir(parents=True)
        root = outer / "root"
        root.mkdir()
        with tarfile.open(
            fileobj=archive(*((name or "a", kind, link) for name, kind, link in entries)), mode="r|"
        ) as tar:
            for entry in tar:
                try:
                    untar.place(tar, entry, root)
                except (untar.Outside, OSError):
                    continue
        for path in root.rglob("*"):
            real = Path(os.path.realpath(path))
            assert real == root or root in real.parents, (path, real)
        assert sorted(outer.iterdir()) == [root]
        assert len([path for path in Path(folder).rglob("*") if root not in (path, *path.parents)]) == 3


@pytest.mark.parametrize(
    "entry",
    [
        ("a/" * 100_000 + "b", tarfile.REGTYPE, ""),
        ("x" * 5000, tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "a/" * 100_000),
        ("link", tarfile.LNKTYPE, "x" * 5000),
    ],
)
def test_names_beyond_all_meaning_are_refused_at_once(tmp_path: Path, entry: Entry) -> None:
    with pytest.raises(untar.Outside, match="longer than"):
        placed(tmp_path / "out", entry)
    assert not any((tmp_path / "out").iterdir())
