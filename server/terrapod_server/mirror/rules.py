"""Versions and checksum lists. Pure."""

import re
from collections.abc import Iterable

TOOLS = ("terraform", "tofu")
SYSTEMS = ("linux", "darwin", "windows", "freebsd", "openbsd", "solaris")
ARCHES = ("amd64", "arm64", "arm", "386")
_EXACT = re.compile(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(-[0-9A-Za-z.-]+)?")
_PARTIAL = re.compile(r"v?(\d{1,6})(?:\.(\d{1,6}|x))?(?:\.x)?")
_TERM = re.compile(r"(=|!=|>=|<=|>|<|~>)?\s*v?(\d{1,6}(?:\.\d{1,6}){0,2})")

Version = tuple[int, int, int]


def parse(text: str) -> Version | None:
    """A released version; None for anything else, pre-releases included."""
    found = _EXACT.fullmatch(text)
    return (int(found[1]), int(found[2]), int(found[3])) if found and not found[4] else None


def is_exact(text: str) -> bool:
    return _EXACT.fullmatch(text) is not None


def exact(text: str) -> tuple[int, int, int, int] | None:
    """An exact version to compare by; its last number is 0 for a pre-release, which comes before the release."""
    found = _EXACT.fullmatch(text)
    return (int(found[1]), int(found[2]), int(found[3]), 0 if found[4] else 1) if found else None


def choose(wanted: str, known: Iterable[str]) -> str | None:
    """The newest known release that `wanted` allows: exact, partial (1.11), constraint (~> 1.11.0), latest."""
    wanted = wanted.strip().removeprefix("v")
    names = {version: name for name in known if (version := parse(name)) is not None}
    if is_exact(wanted):
        return wanted if wanted in set(known) | set(names.values()) else None
    allowed = _allowed(wanted)
    if allowed is None:
        return None
    fitting = [version for version in names if all(_holds(version, *term) for term in allowed)]
    return names[max(fitting)] if fitting else None


def is_sensible(wanted: str) -> bool:
    """Whether it is a form that `choose` knows."""
    wanted = wanted.strip().removeprefix("v")
    return is_exact(wanted) or _allowed(wanted) is not None


def _allowed(wanted: str) -> list[tuple[str, list[int]]] | None:
    if wanted in ("", "latest"):
        return []
    partial = _PARTIAL.fullmatch(wanted)
    if partial:
        numbers = [int(part) for part in partial.groups() if part and part != "x"]
        return [("~>", [*numbers, 0])] if len(numbers) == 2 else [("=", numbers)]  # noqa: PLR2004
    terms = [_TERM.fullmatch(term.strip()) for term in wanted.split(",")]
    if not all(terms):
        return None
    return [(term[1] or "=", [int(part) for part in term[2].split(".")]) for term in terms if term]


def _holds(version: Version, operator: str, numbers: list[int]) -> bool:
    bound = (*numbers, 0, 0)[:3]
    if operator == "=":
        return list(version[: len(numbers)]) == numbers
    if operator == "!=":
        return version != bound
    if operator == "~>":
        return version >= bound and list(version[: len(numbers) - 1]) == numbers[:-1]
    return {">=": version >= bound, "<=": version <= bound, ">": version > bound, "<": version < bound}[operator]


def checksum(sums: str, filename: str) -> str | None:
    """The SHA-256 that a SHA256SUMS document lists for a file."""
    for line in sums.splitlines():
        digest, _, name = line.strip().partition(" ")
        if name.strip().lstrip("*") == filename and re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            return digest.lower()
    return None


def filename(tool: str, version: str, system: str, arch: str) -> str:
    return f"{tool}_{version}_{system}_{arch}.zip"


def sums_name(tool: str, version: str) -> str:
    return f"{tool}_{version}_SHA256SUMS"


def signature_names(tool: str, version: str) -> list[str]:
    """Files that may hold the signature of the checksums, in the order of preference."""
    sums = sums_name(tool, version)
    return [f"{sums}.gpgsig"] if tool == "tofu" else [f"{sums}.sig", f"{sums}.72D7468F.sig"]


def from_filename(name: str) -> tuple[str, str, str, str] | None:
    """Tool, version, system and architecture of a release's file name."""
    found = re.fullmatch(r"(terraform|tofu)_(\d{1,6}\.\d{1,6}\.\d{1,6}[0-9A-Za-z.-]*)_([a-z]+)_([a-z0-9]+)\.zip", name)
    if not found or found[3] not in SYSTEMS or found[4] not in ARCHES:
        return None
    return found[1], found[2], found[3], found[4]
