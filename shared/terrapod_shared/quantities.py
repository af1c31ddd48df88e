"""Amounts of processor and memory as a workspace names them: `1`, `0.5`, `500m`; `2Gi`, `512Mi`, `1G`. Pure."""

import re

_CPU = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(m?)")
_MEMORY = re.compile(r"(\d{1,15})(Ki|Mi|Gi|Ti|k|K|M|G|T)?B?")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_MEMORY_LEAST = 64 << 20


def cores(text: str) -> float:
    """Of `resource-cpu`. Raises ValueError."""
    found = _CPU.fullmatch(text)
    amount = float(found[1]) / (1000 if found[2] else 1) if found else 0.0
    if amount < 0.01:  # noqa: PLR2004  a hundredth of a core is what a control group can tell apart
        raise ValueError(f"{text!r} is no number of cores, such as 1, 0.5 or 500m")
    return amount


def size(text: str) -> int:
    """Bytes of `resource-memory`. Raises ValueError."""
    found = _MEMORY.fullmatch(text)
    amount = int(found[1]) * _UNITS[found[2] or ""] if found else 0
    if amount < _MEMORY_LEAST:
        raise ValueError(f"{text!r} is no size of memory of at least 64Mi, such as 512Mi or 2Gi")
    return amount
