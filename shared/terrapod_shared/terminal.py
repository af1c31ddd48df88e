"""What may reach the user's terminal: text, line ends and colours. Pure.

Logs and names are written by others. An escape that moves the cursor, sets
the title or the clipboard, or hides text could make a plan look like another,
so all of them are dropped but SGR (colour, bold, underline …) without conceal.
A sequence that is not ended stops at its line's end: it cannot swallow a log.
"""

import codecs
import functools
import re

#: What stands for itself, and so ESC and CR.
_LONE_SET = "\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSEEN_SET = rf"\x1b\r{_LONE_SET}"
#: Controls of C0 and C1 but newline and tab, and marks that turn the direction of text around.
_UNSEEN = re.compile(f"[{_UNSEEN_SET}]")
#: One of these, and what belongs to it. ESC and one of PX]^_ begin a string (DCS, SOS, OSC, PM, APC), which BEL or ST
#: ends, and here also a line's end. (It begins with a class of letters, so that the search for it is quick, and takes what
#: is cut off by the next ESC together with that, so that a log of nothing else is quick too.)
_SPECIAL = re.compile(
    f"[{_UNSEEN_SET}]"
    r"(?:(?<=\x1b)(?:[\[PX\]^_]?\x1b){0,1000}+(?:"
    r"(?P<colour>\[[0-9;:]{0,62}m)"
    r"|\[[\x20-\x3f]{0,62}[\x40-\x7e]?"
    r"|(?P<string>[PX\]^_][^\x07\x9c\n\x1b]*[\x07\x9c]?)"
    r"|[\x20-\x7e]?)"
    r"|(?<=\r)(?P<line>\n?)"
    rf"|[{_LONE_SET}]*)"
)
_STRING_ENDS = re.compile("[\x07\x9c\n\x1b]")
#: What a chunk may have cut in two.
_UNDECIDED = re.compile(r"(?:\x1b(?:\[[\x20-\x3f]{0,62})?|\r)\Z")
_RESET = "\x1b[0m"
_CONCEAL = 8
_EXTENDED = {38, 48, 58}
#: How many parameters follow 38;5 and 38;2.
_OPERANDS = {5: 2, 2: 4}


def plain(text: str) -> str:
    """One line of text that was written by somebody: every control character is gone."""
    return _UNSEEN.sub("", re.sub(r"[\r\n\t]+", " ", text))


@functools.lru_cache(maxsize=256)
def _hides(parameters: str) -> bool:
    """Whether an SGR sequence makes text invisible."""
    numbers = [int(word) if word.isdigit() else 0 for word in parameters.replace(":", ";").split(";")]
    at = 0
    while at < len(numbers):
        if numbers[at] == _CONCEAL:
            return True
        if numbers[at] in _EXTENDED and at + 1 < len(numbers):
            at += _OPERANDS.get(numbers[at + 1], 1)
        at += 1
    return False


def cleaned(text: str, *, colour: bool) -> str:
    """A text that is all there; colours are not reset at its end."""
    return _SPECIAL.sub(lambda found: _kept(found, colour=colour), text)


def _kept(found: "re.Match[str]", *, colour: bool) -> str:
    if found.lastgroup == "colour":
        sequence = "\x1b" + found["colour"]
        return sequence if colour and not _hides(sequence[2:-1]) else ""
    return "\n" if found.lastgroup == "line" else ""


class Cleaner:
    """Bytes of a log in, safe text out; what a chunk cuts in two is kept for the next."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""
        self._in_string = False

    def feed(self, chunk: bytes) -> str:
        return self._cleaned(self._kept + self._decoder.decode(chunk), final=False)

    def end(self) -> str:
        """The rest; colours are reset, so that none leaks into what follows."""
        rest = self._cleaned(self._kept + self._decoder.decode(b"", final=True), final=True)
        return rest + (_RESET if self._colour else "")

    def _cleaned(self, text: str, *, final: bool) -> str:
        self._kept = ""
        if self._in_string:
            found = _STRING_ENDS.search(text)
            if not found:
                return ""
            self._in_string = False
            text = text[found.end() if found.group() in "\x07\x9c" else found.start() :]
        undecided = None if final else _UNDECIDED.search(text)
        if undecided:
            self._kept, text = text[undecided.start() :], text[: undecided.start()]
        return _SPECIAL.sub(self._shown, text)

    def _shown(self, found: "re.Match[str]") -> str:
        if found.lastgroup == "string":
            self._in_string = found.end() == len(found.string) and not found.group().endswith(("\x07", "\x9c"))
        return _kept(found, colour=self._colour)
