"""What platform a program is for, by its first bytes; and the one program that a release's zip holds."""

import platform
import posixpath
import stat
import zipfile
import zlib

#: How much of a file `platform_of` needs.
HEAD = 20
_ARCHES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_ELF_MACHINES = {3: "386", 40: "arm", 62: "amd64", 183: "arm64"}
_ELF_SYSTEMS = {0: "linux", 3: "linux", 6: "solaris", 9: "freebsd", 12: "openbsd"}
_OTHERS = {
    b"MZ": ("windows", "?"),
    b"\xcf\xfa\xed\xfe\x07\x00\x00\x01": ("darwin", "amd64"),
    b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01": ("darwin", "arm64"),
    b"\xca\xfe\xba\xbe": ("darwin", "?"),
}
_ENTRIES_MOST = 1000
_PROGRAM_MOST = 2 << 30
_ALL_MOST = 4 << 30
#: Real ones have 3 to 4. A small file may be packed better.
_RATIO_MOST, _RATIO_FREE = 100, 1 << 20


class BadRelease(Exception):
    """Says what is wrong with a release's zip."""


def here() -> tuple[str, str]:
    """System and architecture of this host, as releases name them."""
    machine = platform.machine()
    return platform.system().lower(), _ARCHES.get(machine, machine)


def platform_of(head: bytes) -> tuple[str, str] | None:
    """System and architecture that a program's first bytes tell; None for a script and what else says nothing."""
    if head[:4] == b"\x7fELF" and len(head) >= HEAD:
        machine = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")  # noqa: PLR2004  EI_DATA
        return _ELF_SYSTEMS.get(head[7], "?"), _ELF_MACHINES.get(machine, f"machine {machine}")
    return next((known for magic, known in _OTHERS.items() if head.startswith(magic)), None)


def is_runnable(head: bytes, wanted: tuple[str, str]) -> bool:
    """Whether a program that begins so can run there: it is built for it, or is a script."""
    return platform_of(head) == wanted or head.startswith(b"#!")


def program_in(release: zipfile.ZipFile, tool: str, wanted: tuple[str, str]) -> zipfile.ZipInfo:
    """The entry of the program. Nothing is unpacked but its first bytes. Raises BadRelease."""
    entries = release.infolist()
    names = (tool, f"{tool}.exe")
    found = [each for each in entries if posixpath.normpath(each.filename.replace("\\", "/")).casefold() in names]
    if len(found) != 1 or found[0].filename not in names:
        raise BadRelease(f"it must hold one file {tool}, and holds {[each.filename for each in found][:5]}")
    entry = found[0]
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        raise BadRelease(f"{tool} in it is no plain file")
    if len(entries) > _ENTRIES_MOST or sum(each.file_size for each in entries) > _ALL_MOST:
        raise BadRelease(f"it holds more than {_ENTRIES_MOST} files, or {_ALL_MOST >> 30} GiB")
    most = min(_PROGRAM_MOST, entry.compress_size * _RATIO_MOST + _RATIO_FREE)
    if entry.file_size > most:
        raise BadRelease(f"{tool} in it has {entry.file_size} bytes, and {most} are the most that are believed")
    try:
        with release.open(entry) as program:
            head = program.read(HEAD)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise BadRelease(f"{tool} in it cannot be read: {error}") from None
    built = platform_of(head)
    if built is not None and not all(own in ("?", there) for own, there in zip(built, wanted, strict=True)):
        raise BadRelease(f"{tool} in it is built for {'/'.join(built)}, and not for {'/'.join(wanted)}")
    return entry
