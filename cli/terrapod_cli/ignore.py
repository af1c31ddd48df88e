"""`.terraformignore`: which files of a folder stay at home. Pure.

The syntax and its oddities are those of the terraform CLI, so that the same
archive is sent: the last rule that matches decides; `!` takes back; a leading
`/` means the root, else a rule matches at any depth; a rule matches what is
below a folder only if it ends in `/`.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

FILE = ".terraformignore"
_DEFAULT = (".terraform/", "!.terraform/modules/", ".git/")


@dataclass(frozen=True)
class Rule:
    pattern: "re.Pattern[str]"
    keeps: bool


def _expression(pattern: str) -> str:
    """The rule's pattern as a regular expression: `**` any folders, `*`, `?` and `[…]` within one name."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        at += 1
        if pattern[at - 1 : at + 1] == "**":
            at += 1
            at += pattern[at : at + 1] == "/"
            parts.append("(.*/)?" if at < len(pattern) else ".*")
        elif letter == "*":
            parts.append("[^/]*")
        elif letter == "?":
            parts.append("[^/]")
        elif letter == "[" and "]" in pattern[at + 1 :]:
            stop = pattern.index("]", at + 1)
            inside = pattern[at:stop].replace("\\", "\\\\").replace("[", "\\[")
            parts.append(f"[{'^' if inside[0] in '!^' else ''}{inside.lstrip('!^') if inside[0] in '!^' else inside}]")
            at = stop + 1
        elif letter == "\\" and at < len(pattern):
            parts.append(re.escape(pattern[at]))
            at += 1
        else:
            parts.append(re.escape(letter))
    return "".join(parts)


def _rule(line: str) -> Rule:
    keeps = line.startswith("!")
    text = line.removeprefix("!")
    if text.endswith("/"):
        text += "**"
    text = text[1:] if text.startswith("/") else f"**/{text}"
    return Rule(re.compile(_expression(unicodedata.normalize("NFC", text)), re.DOTALL), keeps)


def rules(lines: Iterable[str] = ()) -> list[Rule]:
    """The default rules and those of a file's lines. Raises re.error for a pattern that is none."""
    stripped = [line.strip() for line in lines]
    return [_rule(line) for line in (*_DEFAULT, *stripped) if line.strip("!") and not line.startswith("#")]


def excludes(found: list[Rule], path: str, *, for_good: bool = False) -> bool:
    """Whether the path, relative with `/`, stays at home; folders are asked for with a `/` at the end too.

    `for_good`: and no later rule could take back anything below it.
    """
    path = unicodedata.normalize("NFC", path)
    matching = [number for number, rule in enumerate(found) if rule.pattern.fullmatch(path)]
    if not matching or found[matching[-1]].keeps:
        return False
    return not for_good or not any(rule.keeps for rule in found[matching[-1] :])
