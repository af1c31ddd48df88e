"""Pure rules: names, labels, searches."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,89}")
LABELS_MOST = 50
KEY_LONGEST = 128
VALUE_LONGEST = 254


def name(text: str) -> str:
    """A workspace's name as it may be. Raises ValueError."""
    if not _NAME.fullmatch(text):
        message = "must be 1 to 90 letters, digits, - and _, beginning with a letter or digit"
        raise ValueError(message)
    return text


def folder(text: str) -> str:
    """A working directory: relative, inside the configuration. Raises ValueError."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        message = "must be a relative path inside the configuration"
        raise ValueError(message)
    return "" if str(path) == "." else str(path)


def labels(sent: Mapping[str, object]) -> dict[str, str]:
    """Labels as they may be; a null value is an empty one. Raises ValueError."""
    if len(sent) > LABELS_MOST:
        message = f"there may be at most {LABELS_MOST}"
        raise ValueError(message)
    checked = {}
    for key, value in sent.items():
        if not 0 < len(key) <= KEY_LONGEST or "," in key or key != key.strip():
            message = f"a key must have 1 to {KEY_LONGEST} characters and no comma"
            raise ValueError(message)
        if value is not None and (not isinstance(value, str) or len(value) > VALUE_LONGEST):
            message = f"the value of {key} must be a string of at most {VALUE_LONGEST} characters"
            raise ValueError(message)
        checked[key] = value or ""
    return checked


def tagged(query: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """The (key, value) pairs of `filter[tagged][i][key]` and `[value]`."""
    pairs = []
    for parameter, key in query.items():
        found = re.fullmatch(r"filter\[tagged\]\[(\d+)\]\[key\]", parameter)
        if found and key:
            pairs.append((key, query.get(f"filter[tagged][{found[1]}][value]")))
    return pairs
