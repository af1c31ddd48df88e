"""Pure rules: names and versions of modules, as terraform itself can name them."""

import re

#: The one namespace, which is the organization's name.
NAMESPACE = "default"
REGISTRY = "private"
_NAME = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z_-]{0,62}[0-9A-Za-z])?")
_PROVIDER = re.compile(r"[0-9a-z]{1,64}")
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_PART = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_SEMVER = re.compile(
    rf"({_NUMBER}\.{_NUMBER}\.{_NUMBER})(?:-({_PART}(?:\.{_PART})*))?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
VERSION_LONGEST = 128

#: Newer versions have greater ones.
Order = tuple[list[int], bool, list[tuple[bool, int, str]], str]


def name(text: str) -> str:
    """A module's name as it may be. Raises ValueError."""
    if not _NAME.fullmatch(text):
        message = "must be 1 to 64 letters, digits, - and _, with a letter or digit at both ends"
        raise ValueError(message)
    return text


def provider(text: str) -> str:
    """The provider that a module is for. Raises ValueError."""
    if not _PROVIDER.fullmatch(text):
        message = "must be 1 to 64 lower-case letters and digits"
        raise ValueError(message)
    return text


def namespace(text: str) -> str:
    """Raises ValueError for any but the one."""
    if text not in ("", NAMESPACE):
        message = f"there is one namespace, {NAMESPACE}"
        raise ValueError(message)
    return NAMESPACE


def registry(text: str) -> str:
    """Raises ValueError for any but the private one."""
    if text not in ("", REGISTRY):
        message = f"modules are kept in the {REGISTRY} registry only"
        raise ValueError(message)
    return REGISTRY


def version(text: str) -> str:
    """A version as it may be: SemVer 2.0, without a `v`. Raises ValueError."""
    if len(text) > VERSION_LONGEST or not _SEMVER.fullmatch(text):
        message = f"must be a semantic version such as 1.2.0 or 1.2.0-beta.1, of at most {VERSION_LONGEST} characters"
        raise ValueError(message)
    return text


def order(text: str) -> Order:
    """SemVer's precedence of a version; what it leaves open (build metadata) is settled by the text."""
    found = _SEMVER.fullmatch(text)
    if found is None:
        message = f"{text[:VERSION_LONGEST]!r} is no version"
        raise ValueError(message)
    parts = found[2].split(".") if found[2] else []
    return (
        [int(number) for number in found[1].split(".")],
        not parts,
        [(False, int(part), "") if part.isdigit() else (True, 0, part) for part in parts],
        text,
    )
