"""What may reach the user's terminal: text, line ends and colours. Pure.

Logs and names are written by others. An escape that moves the cursor, sets
the title or the clipboard, or hides text could make a plan look like another,
so all of them are dropped but SGR (colour, bold, underline …) without conceal.
A sequence that is not ended stops at its line's end: it cannot swallow a log.
"""

import codecs
import re
from collections.abc import Iterator

_ESC = "\x1b"
#: Controls of C0 and C1 but newline and tab, and marks that turn the direction of text around.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SGR = re.compile(r"\x1b\[[0-9;:]*m")
_RESET = "\x1b[0m"
#: ESC and these begin a string that BEL or ST ends: DCS, SOS, OSC, PM, APC.
_STRINGS = frozenset("PX]^_")
_CONCEAL = 8
_EXTENDED = {38, 48, 58}
#: How many parameters follow 38;5 and 38;2.
_OPERANDS = {5: 2, 2: 4}
_SEQUENCE_MOST = 64


def plain(text: str) -> str:
    """One line of text that was written by somebody: every control character is gone."""
    return _UNSEEN.sub("", re.sub(r"[\r\n\t]+", " ", text))


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


class Cleaner:
    """Bytes of a log in, safe text out; what a chunk cuts in two is kept for the next."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept = ""  #: an escape sequence, or a carriage return, that is not complete
        self._in_string = False

    def feed(self, chunk: bytes) -> str:
        text = self._kept + self._decoder.decode(chunk)
        self._kept = ""
        return "".join(self._parts(text))

    def end(self) -> str:
        """The rest; colours are reset, so that none leaks into what follows."""
        rest = "" if self._kept.startswith(_ESC) else self._kept.replace("\r", "\n")
        self._kept = ""
        return rest + _UNSEEN.sub("", self._decoder.decode(b"", final=True)) + (_RESET if self._colour else "")

    def _parts(self, text: str) -> Iterator[str]:
        at = 0
        while at < len(text):
            if self._in_string:
                at = self._skip_string(text, at)
                continue
            found = re.compile("[\x1b\r]").search(text, at)
            stop = found.start() if found else len(text)
            yield _UNSEEN.sub("", text[at:stop])
            if not found:
                return
            if found.group() == "\r":
                if stop + 1 == len(text):
                    self._kept = "\r"
                    return
                yield "" if text[stop + 1] == "\n" else "\n"
                at = stop + 1
                continue
            shown, at = self._escape(text, stop)
            yield shown

    def _skip_string(self, text: str, at: int) -> int:
        found = re.compile("[\x07\x9c\n]|\x1b").search(text, at)
        if not found:
            return len(text)
        self._in_string = False
        if found.group() == _ESC:  # ST is ESC and a backslash; any other sequence ends the string too
            return found.start()
        return found.start() if found.group() == "\n" else found.end()

    def _escape(self, text: str, at: int) -> tuple[str, int]:
        """What is shown of the sequence at `at`, and where text goes on."""
        if at + 1 == len(text):
            self._kept = text[at:]
            return "", len(text)
        kind = text[at + 1]
        if kind in _STRINGS:
            self._in_string = True
            return "", at + 2
        if kind != "[":
            return "", at + (2 if "\x20" <= kind <= "\x7e" else 1)
        stop = at + 2
        while stop < len(text) and "\x20" <= text[stop] <= "\x3f" and stop - at < _SEQUENCE_MOST:
            stop += 1
        if stop == len(text) and stop - at < _SEQUENCE_MOST:
            self._kept = text[at:]
            return "", len(text)
        if not "\x40" <= text[stop : stop + 1] <= "\x7e":
            return "", stop
        sequence = text[at : stop + 1]
        keep = self._colour and _SGR.fullmatch(sequence) is not None and not _hides(sequence[2:-1])
        return sequence if keep else "", stop + 1
