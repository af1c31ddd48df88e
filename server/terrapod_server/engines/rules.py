"""Names of releases and checksum lists. Pure."""

import re

TOOLS = ("terraform", "tofu")
SYSTEMS = ("linux", "darwin", "windows", "freebsd", "openbsd", "solaris")
ARCHES = ("amd64", "arm64", "arm", "386")


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


def ways_out(tool: str, version: str, platform: tuple[str, str]) -> str:
    """What to type where nobody has an engine: at the server, or at a listener. `version` may be empty."""
    name = filename(tool, version or "VERSION", *platform)
    entry = f'{{ tool = "{tool}", version = "{version or "VERSION"}", path = "/usr/local/bin/{tool}" }}'
    return (
        f"import it at the server (terrapod-server binaries import {name} --data DIR, or --config FILE), or name a program "
        f"of a listener's host at the top of its listener.toml (engines = [{entry}]) and restart the listener"
    )
