"""Entries of a tar onto the disk, such that nothing lands or points outside of a folder.

Python's own filter for that is not there before 3.11.4, which Debian 12 lacks.

Why no link leads out: a link is made only in a folder that is reached without
links, and its text is some `..`, no more than it is deep, and then names. So it
begins at a real folder inside, and where one of the names is a link again, the
same holds of that one.
"""

import os
import shutil
import stat
import tarfile
from pathlib import Path

#: Bytes and parts of one name; the server takes no more either.
NAME_MOST, PARTS_MOST = 4096, 100


class Outside(ValueError):
    """An entry that is not put on the disk; the text says why."""


def check_size(entry: tarfile.TarInfo) -> None:
    """Raises Outside for a name, or the target of a link, that is longer or deeper than any that is meant."""
    for text in (entry.name, entry.linkname):
        if len(text) > NAME_MOST or text.count("/") > PARTS_MOST:
            raise Outside(
                f"{text[:200]!r} and so on is longer than {NAME_MOST} bytes or deeper than {PARTS_MOST} folders"
            )


def place(tar: tarfile.TarFile, entry: tarfile.TarInfo, root: Path) -> None:
    """Puts one entry below `root`, a folder that nobody else writes to. Raises Outside, OSError, TarError.

    Owners and times are not kept, and of the mode only what `entry.mode` says of files.
    """
    check_size(entry)
    name = os.path.normpath(entry.name)
    if name.startswith("/") or name.split("/")[0] == ".." or "\0" in name:
        raise Outside(f"{entry.name!r} lies outside of it")
    path = root / name
    if entry.isdir():
        _make_folder(root, path)
        return
    if path == root:
        raise Outside(f"{entry.name!r} is the folder itself")
    _make_folder(root, path.parent)
    if entry.isreg():
        _write(tar, entry, path)
    elif entry.issym():
        path.symlink_to(_text(entry, name))
    elif entry.islnk():
        _link(entry, root, path)
    else:
        raise Outside(f"{entry.name!r} is neither a file nor a folder nor a link")


def _make_folder(root: Path, folder: Path) -> None:
    """With those above it; none of them may be a link."""
    here = root
    for part in folder.relative_to(root).parts:
        here /= part
        try:
            here.mkdir()
        except FileExistsError:
            if not stat.S_ISDIR(here.lstat().st_mode):
                raise Outside(f"{here.relative_to(root)} is no folder, and something is to lie in it") from None


def _write(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(entry)
    if source is None:
        raise Outside(f"{entry.name!r} has no content")
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with source, os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(source, file, 256 << 10)
        os.fchmod(handle, entry.mode & 0o755)


def _text(entry: tarfile.TarInfo, name: str) -> str:
    """A link's text without detours, which has at most as many `..` as the link is deep."""
    text = os.path.normpath(entry.linkname)
    if not entry.linkname or text.startswith("/") or "\0" in text:
        raise Outside(f"{entry.name!r} is a link to {entry.linkname!r}, which is not relative")
    if text.split("/").count("..") > name.count("/"):
        raise Outside(f"{entry.name!r} is a link to {entry.linkname!r}, which is outside of it")
    return text


def _link(entry: tarfile.TarInfo, root: Path, path: Path) -> None:
    """A second name of a file that came before; it may not be reached by a link."""
    name = os.path.normpath(entry.linkname)
    here = root
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise Outside(f"{entry.name!r} is a link to {entry.linkname!r}, which is outside of it")
    for part in parts:
        here /= part
        mode = here.lstat().st_mode
        if not (stat.S_ISREG(mode) if here == root / name else stat.S_ISDIR(mode)):
            raise Outside(f"{entry.name!r} is a link to {entry.linkname!r}, which is no file of it")
    os.link(here, path, follow_symlinks=False)
