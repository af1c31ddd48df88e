"""A folder as the gzip tar that a configuration version takes.

The archive holds what the terraform CLI would send, but no state: the server
drops that anyway. A link that stays inside is sent as a link; one that leads
out is replaced by what it points to; sockets, pipes and devices are left out.
"""

import contextlib
import gzip
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from terrapod_cli import ignore
from terrapod_shared import configuration
from terrapod_shared.errors import Invalid
from terrapod_shared.files import real_path

_STATE = re.compile(r".*\.tfstate(\..*)?")
_CONFIGURATION_MOST = 10_000


@dataclass(frozen=True)
class Packed:
    """The archive, and what went into it."""

    file: Path
    entries: int
    size_bytes: int  #: of the archive
    configuration: tuple[str, ...] = ()  #: paths in the archive of files that an engine may read, the first of them


def check_configuration(root: Path, working_directory: str, tool: str, archive: Packed) -> None:
    """Asks terraform's question before anything is uploaded. Raises Invalid if the archive has no configuration for it.

    Without configuration the plan would be to destroy everything.
    """
    if len(archive.configuration) == _CONFIGURATION_MOST:
        return  # not all are known: the listener looks again
    folder = _archived(root, working_directory)
    for path in archive.configuration:
        above, _, name = path.rpartition("/")
        if above == folder and configuration.is_configuration(name, tool):
            return
    raise Invalid(configuration.refusal(tool, folder, archive.configuration))


def check_folder(root: Path, working_directory: str) -> None:
    """Raises Invalid if the workspace's working directory is not there."""
    if not (root / working_directory.strip("/")).is_dir():
        raise Invalid(f"the workspace's working directory {working_directory!r} is not in {root}")


def _archived(root: Path, working_directory: str) -> str:
    """Name in the archive of the working directory, which may be a link: those that stay inside are sent as links."""
    named = Path(working_directory.strip("/"))
    real = (root / named).resolve()
    below = real.relative_to(root.resolve()) if real.is_relative_to(root.resolve()) else named
    return "" if below == Path() else str(below)


def root_of(folder: Path, working_directory: str) -> Path:
    """What to send: where the workspace runs in a folder below, the folder that holds it, as terraform does."""
    folder = folder.resolve()
    below = Path(working_directory.strip("/")).parts
    if below and folder.parts[-len(below) :] == below:
        return folder.parents[len(below) - 1]
    return folder


@contextlib.contextmanager
def packed(root: Path, seen: Callable[[int], None] = lambda _: None) -> Iterator[Packed]:
    """Writes the archive to a temporary file, which is gone at the end; `seen` hears the number of entries.

    Raises Invalid for a folder that cannot be packed.
    """
    with tempfile.TemporaryDirectory(prefix="terrapod-") as folder:
        file = Path(folder) / "configuration.tar.gz"
        packer = _Packer(root.resolve(), seen)
        try:
            with gzip.open(file, "wb", compresslevel=4) as zipped, tarfile.open(fileobj=zipped, mode="w|") as archive:
                packer.walk(archive)
        except OSError as error:
            raise Invalid(f"{error.filename or root} cannot be read: {error.strerror or error}") from None
        yield Packed(file, packer.entries, file.stat().st_size, tuple(packer.configuration))


def _followed(link: Path) -> Path:
    """What a link leads to at last, whether or not it is there."""
    try:
        return real_path(link)
    except OSError:
        raise Invalid(f"{link} is a link that leads to itself") from None


class _Packer:
    def __init__(self, root: Path, seen: Callable[[int], None]) -> None:
        self._root, self._seen, self.entries = root, seen, 0
        self.configuration: list[str] = []
        file = root / ignore.FILE
        try:
            lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
            self._rules = ignore.rules(lines)
        except (UnicodeDecodeError, re.error) as error:
            raise Invalid(f"{file}: {error}") from None

    def walk(self, archive: tarfile.TarFile) -> None:
        self._folder(archive, self._root, "", (self._root,))

    def _folder(self, archive: tarfile.TarFile, folder: Path, below: str, above: tuple[Path, ...]) -> None:
        """Adds what is in `folder` under the name `below`; `above` are the real folders that led here."""
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{below}{entry.name}"
            is_out = ignore.excludes(self._rules, name) and not entry.is_dir(follow_symlinks=False)
            is_state = _STATE.fullmatch(entry.name) and not configuration.is_configuration(entry.name)
            if is_out or is_state:
                continue
            path = Path(entry.path)
            real = path
            if entry.is_symlink():
                real = _followed(path)
                if path == self._root / name and real.is_relative_to(self._root):
                    self._add(archive, path, name, link=os.path.relpath(real, path.parent))
                    continue
            mode = real.stat().st_mode
            if stat.S_ISDIR(mode):
                self._below(archive, real, name, above)
            elif stat.S_ISREG(mode):
                self._add(archive, real, name)

    def _below(self, archive: tarfile.TarFile, real: Path, name: str, above: tuple[Path, ...]) -> None:
        if real in above:
            raise Invalid(f"{name} is a link to a folder that holds it: that has no end")
        if ignore.excludes(self._rules, f"{name}/", for_good=True):
            return
        if not any(ignore.excludes(self._rules, path) for path in (name, f"{name}/")):
            self._add(archive, real, name)
        self._folder(archive, real, f"{name}/", (*above, real))

    def _add(self, archive: tarfile.TarFile, path: Path, name: str, link: str | None = None) -> None:
        entry = tarfile.TarInfo(name)
        facts = path.lstat()
        entry.mtime, entry.mode = int(facts.st_mtime), stat.S_IMODE(facts.st_mode)
        if link is not None:
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
        elif stat.S_ISDIR(facts.st_mode):
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        else:
            with path.open("rb") as file:
                entry.size = os.fstat(file.fileno()).st_size
                archive.addfile(entry, file)
        if entry.type != tarfile.DIRTYPE and configuration.is_configuration(name.rpartition("/")[2]):
            self.configuration += [name] * (len(self.configuration) < _CONFIGURATION_MOST)
        self.entries += 1
        self._seen(self.entries)
