"""Releases with known holes, and the floor below which none is used. Pure."""

from dataclasses import dataclass

from terrapod_shared.versions import exact


@dataclass(frozen=True)
class Hole:
    """`fixed`: the first release of each line (major and minor) that had the fix, in order."""

    tool: str
    name: str
    fixed: tuple[str, ...]
    what: str


#: What lets a configuration, or who serves its modules and providers, do in `init` more than a run may do anyway:
#: `init` comes before anybody has seen a plan. What only takes time, or reads what a configuration may read, is
#: not in here.
HOLES = (
    Hole("terraform", "CVE-2023-4782", ("1.5.7",), "init writes files outside of the configuration's folder"),
    Hole("tofu", "GHSA-wcmj-x466-56mm", ("1.10.10", "1.11.7"), "init follows links out of the provider's folder"),
)


def why_not(tool: str, version: str, floor: str = "") -> str:
    """Why a version may not be used; empty where it may.

    `floor`: the owner's own, which stands in the place of the table.
    """
    own = exact(version)
    if own is None:
        return ""
    setting = f"engines.{tool}_floor"
    if floor:
        is_below = own < (exact(floor) or own)
        return f"{tool} {version} is below {setting}, {floor}" if is_below else ""
    for hole in HOLES:
        if hole.tool == tool and not _has_fix(own, hole.fixed):
            fixed = " and ".join(hole.fixed)
            return (
                f"{tool} {version} has a known hole, {hole.name}: {hole.what}; fixed in {fixed}."
                f" {setting} allows older ones"
            )
    return ""


def _has_fix(version: tuple[int, ...], fixed: tuple[str, ...]) -> bool:
    """A line that is newer than all that were fixed has it; an older one that was not fixed never got it."""
    firsts = [first for text in fixed if (first := exact(text))]
    return version >= max(firsts) or any(version[:2] == first[:2] and version >= first for first in firsts)
