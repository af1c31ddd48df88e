"""A line of terraform's structured log as people read it. Pure.

The cloud block's runs log JSON lines (`terraform plan -json`); each has
`@message`, and a diagnostic or an output says more in its own members.
"""

import json
import re
from typing import Any

#: Python's own bound, `sys.int_info.default_max_str_digits`.
_DIGITS_MOST = 4300
_MARK = '{"@'
_HIDDEN = ("version", "log")
#: A JSON string can spell halves of characters, which no encoding can write.
_HALVES = re.compile("[\ud800-\udfff]")


def may_hold(text: str) -> bool:
    """Whether one of the text's lines may be a structured one."""
    return _MARK in text


def is_candidate(line: str) -> bool:
    """Whether a line that begins so may be one; such a line is kept until it is whole."""
    return line.startswith(_MARK) or _MARK.startswith(line)


def _whole(digits: str) -> int | str:
    """The number; its digits where Python converts no number of that length."""
    return int(digits) if len(digits) <= _DIGITS_MOST else digits


def readable(line: str) -> str | None:
    """The line for people; as it is, if it is no structured one; None if it says nothing to them."""
    if not line.startswith(_MARK):
        return line
    try:
        message = json.loads(line, parse_int=_whole)
    except (ValueError, RecursionError):
        return line
    if not isinstance(message, dict) or not isinstance(message.get("@message"), str):
        return line
    kind = message.get("type")  # of any type: whoever is run may have printed the line
    if kind in _HIDDEN:
        return None
    return _HALVES.sub("\ufffd", _said(kind, message))


def _said(kind: object, message: dict[str, Any]) -> str:
    if kind == "diagnostic" and isinstance(message.get("diagnostic"), dict):
        return _diagnostic(message["diagnostic"])
    if kind == "outputs" and isinstance(message.get("outputs"), dict):
        return _outputs(message["outputs"])
    if kind == "provision_progress" and isinstance(message.get("hook"), dict):
        hook = message["hook"]
        return f"{_address(hook)}: ({hook.get('provisioner', 'provisioner')}) {hook.get('output', '')}"
    return str(message["@message"])


def _address(hook: dict[str, Any]) -> str:
    resource = hook.get("resource")
    return str(resource.get("addr", "")) if isinstance(resource, dict) else ""


def _diagnostic(found: dict[str, Any]) -> str:
    lines = [f"{str(found.get('severity', 'error')).capitalize()}: {found.get('summary', '')}"]
    if found.get("address"):
        lines.append(f"  with {found['address']}")
    place = found.get("range")
    if isinstance(place, dict) and isinstance(place.get("start"), dict):
        lines.append(f"  on {place.get('filename')} line {place['start'].get('line')}")
    if found.get("detail"):
        lines += ["", *(f"  {line}" for line in str(found["detail"]).splitlines()), ""]
    return "\n".join(lines)


def _outputs(found: dict[str, Any]) -> str:
    lines = ["Outputs:", ""]
    for name, output in found.items():
        if not isinstance(output, dict):
            continue
        if output.get("sensitive"):
            value = "<sensitive>"
        elif "value" in output:
            value = json.dumps(output["value"])
        else:
            value = str(output.get("action", ""))
        lines.append(f"{name} = {value}")
    return "\n".join(lines)
