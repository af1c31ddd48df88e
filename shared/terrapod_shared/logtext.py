"""A log's bytes as text for people: without escapes, structured lines made readable. Pure."""

from terrapod_shared import structured
from terrapod_shared.terminal import Cleaner, cleaned

#: A line that is longer is shown as it is.
_LINE_MOST = 1 << 20


class LogText:
    """Takes bytes as they come and gives lines, or the beginning of one that can be shown already.

    `raw` leaves structured lines as they are; `whole` gives nothing before its
    line's end. What is given is (text, line end): the end is empty where the
    line goes on. No more than one line of 1 MiB is held.
    """

    def __init__(self, *, colour: bool = False, raw: bool = False, whole: bool = False) -> None:
        self._colour, self._raw, self._whole = colour, raw, whole
        self._cleaner = Cleaner(colour=colour)
        self._line = ""
        self._begun = False  #: the line's beginning was given already

    def pieces(self, chunk: bytes) -> list[tuple[str, str]]:
        return self._pieces(self._cleaner.feed(chunk))

    def last(self) -> list[tuple[str, str]]:
        """What is left at the log's end, which may be within a line."""
        found = self._pieces(self._cleaner.end())
        if self._line:
            found += self._given(self._line, "\n")
            self._line = ""
        return found

    def feed(self, chunk: bytes) -> str:
        text = self._line + self._cleaner.feed(chunk)
        end, self._line = text.rfind("\n") + 1, ""
        lines, rest = text[:end], text[end:]
        if not end or structured.may_hold(lines):
            lines, rest = "", text
        else:  # they are given as they are, and many at once
            self._begun = False
        return lines + "".join(text + end for text, end in self._pieces(rest))

    def end(self) -> str:
        return "".join(text + end for text, end in self.last())

    def _pieces(self, text: str) -> list[tuple[str, str]]:
        lines = (self._line + text).split("\n")
        self._line = lines.pop()
        found = []
        for line in lines:
            found += self._given(line, "\n")
            self._begun = False
        is_kept = self._whole or (not self._raw and not self._begun and structured.is_candidate(self._line))
        if self._line and (not is_kept or len(self._line) > _LINE_MOST):
            self._begun = True
            found += self._given(self._line, "")
            self._line = ""
        return found

    def _given(self, line: str, end: str) -> list[tuple[str, str]]:
        if self._raw or self._begun:
            return [(line, end)]
        text = structured.readable(line)
        if text is None:
            return []
        # a JSON string can spell an escape that the cleaner has not seen
        return [(text if text is line else cleaned(text, colour=self._colour), end)]
