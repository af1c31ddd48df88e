"""Blocks of the project's documents, and a terminal in which a test does what they say."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pexpect

ROOT = Path(__file__).parents[2]
#: Before a block of shell that no test runs.
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*\S) -->")
_LANGUAGES = {"sh", "hcl", "toml", "text"}
_FAILED = "<<failed "
_ENDED = "<<ended "


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    line: int  #: of its fence, from 1
    language: str
    text: str
    not_run: str = ""  #: why no test runs it

    @property
    def is_run(self) -> bool:
        return self.language == "sh" and not self.not_run


def blocks(document: str) -> list[Block]:
    """All blocks of a document, by its path in the repository. Fails for one that does not say what it is."""
    found, before, opened, inside = [], "", 0, [""]
    for number, line in enumerate((ROOT / document).read_text(encoding="utf-8").splitlines(), 1):
        where = f"{document}:{number}"
        if opened and line == "```":
            reason = _NOT_RUN.fullmatch(before)
            found.append(Block(opened, inside[0], "\n".join(inside[1:]), reason["reason"] if reason else ""))
            opened = 0
        elif opened:
            inside.append(line)
        elif line.startswith("```"):
            assert line[3:] in _LANGUAGES, f"{where}: a block says whether it is one of {sorted(_LANGUAGES)}"
            opened, inside = number, [line[3:]]
            continue
        else:
            assert not line.startswith("    "), f"{where}: blocks are fenced, so that they say what they are"
        if not opened:
            assert "<!-- not run" not in line or _NOT_RUN.fullmatch(line), f"{where}: a reason is missing"
            before = line
    assert not opened, f"{document}:{opened}: the block has no end"
    for block in found:
        assert block.language == "sh" or not block.not_run, f"{document}:{block.line}: nobody runs {block.language}"
    return found


class Shell:
    """bash on a terminal of its own, with a person who answers."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], place: Mapping[str, str], inside: Sequence[str] = ()
    ) -> None:
        """`place`: what stands for the documents' names of hosts, ports and folders here. `inside`: what starts the shell."""
        self._scripts, self._place, self._number = folder, dict(place), 0
        program, *words = [*inside, "bash", "--norc", "--noprofile"]
        self.terminal: pexpect.spawn[str] = pexpect.spawn(
            program, words, env={**environment, "PS1": "", "PS2": "", "TERM": "dumb"}, cwd=str(folder),
            timeout=90, encoding="utf-8", echo=False, dimensions=(50, 300),
        )  # fmt: skip
        self.terminal.sendline(
            f"set -o pipefail -E; bind 'set enable-bracketed-paste off'; trap 'echo \"{_FAILED}$?>> $BASH_COMMAND\"' ERR"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminal.close(force=True)

    def begin(self, text: str) -> None:
        """Pastes a block; what it asks is answered by the caller."""
        for name, here in self._place.items():
            text = text.replace(name, here)
        self._number += 1
        script = self._scripts / f"block-{id(self)}-{self._number}.sh"
        script.write_text(f"{text}\n")
        self.terminal.sendline(f". {script}; echo '{_ENDED}'\"$?>>\"")

    def ended(self) -> str:
        """What the block printed, at its end. Fails where one of its commands did."""
        self.terminal.expect(rf"{_ENDED}(\d+)>>")
        said: str = self.terminal.before
        assert self.terminal.match[1] == "0", said
        assert _FAILED not in said, said
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said).replace("\r\n", "\n")

    def run(self, text: str) -> str:
        self.begin(text)
        return self.ended()
