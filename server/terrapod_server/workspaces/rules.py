"""Pure rules: names, labels, searches."""

import base64
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from terrapod_shared import quantities

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,89}")


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


def cpu(text: str) -> str:
    """What a run may have of the processor; empty for no limit. Raises ValueError."""
    if text:
        quantities.cores(text)
    return text


def memory(text: str) -> str:
    """What a run may have of memory; empty for no limit. Raises ValueError."""
    if text:
        quantities.size(text)
    return text


def overwrites(sent: Mapping[str, Any]) -> dict[str, bool]:
    """Which settings are the workspace's own. Raises ValueError."""
    for name, value in sent.items():
        if name not in ("execution-mode", "agent-pool") or not isinstance(value, bool | None):
            message = "may hold execution-mode and agent-pool, each true or false"
            raise ValueError(message)
    return {name: value for name, value in sent.items() if value is not None}


def tag_id(key: str) -> str:
    """The id of the tag with that name, which is the label's key: the same on every workspace."""
    digest = base64.b32encode(hashlib.sha256(key.encode()).digest()).decode().lower()
    return f"tag-{digest[:24]}"


def tag_keys(keys: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """Of the keys those whose tag's id is wanted, by that id."""
    return {identity: key for key in keys if (identity := tag_id(key)) in wanted}


def tagged(query: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """The (key, value) pairs of `filter[tagged][i][key]` and `[value]`."""
    pairs = []
    for parameter, key in query.items():
        found = re.fullmatch(r"filter\[tagged\]\[(\d+)\]\[key\]", parameter)
        if found and key:
            pairs.append((key, query.get(f"filter[tagged][{found[1]}][value]")))
    return pairs
