"""Secrets out of a stream of bytes, however it is cut. Pure, of the standard library alone.

A secret of SHORTEST bytes or more is looked for as it is, line by line, and in
the encodings that logs show: JSON, HCL, URL, XML, shell, hexadecimal, base64
in its three alignments. Each run of bytes that any of these cover becomes one
MASK. What may be the beginning of one is held back, and nothing else.

Fast because it looks at few bytes: of each word that is looked for, some grams
of 8 (or 4) bytes are known, as many as the stride with which the text is
sampled, so every occurrence shows at least one of them. One set operation of
the interpreter finds them; only the words that they belong to are searched.
"""

import base64
import html
import itertools
import json
import re
import shlex
import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

MASK = b"***"
#: Values of fewer bytes are not masked: they would be found everywhere.
SHORTEST = 6
#: So much of a word's beginning is looked at to see whether a text ends in it; longer words are told by it.
_HEAD = 64
_LINE_MOST = 76  # terraform breaks a line of a message before this column
_TRIES = 32
#: Bytes of a gram, stride, and what sampling 64 KiB with it costs, in microseconds (measured).
_SIEVES = ((8, 32, 80.0), (8, 24, 107.0), (8, 16, 170.0), (8, 8, 340.0), (4, 4, 680.0), (4, 1, 2720.0))
#: Of so many words of one length each is searched for; of more, all places of the text are looked up.
_FEW = 64
_TEXT_MARK = re.compile(r'["\\]')
_KEY_MARK = re.compile(r"\s*[=:]")
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d.]{5,}(?![\w.])")
_PLAIN = re.compile(r"[A-Za-z0-9 +,.:;=@_~-]*")
_UNSAFE = re.compile(r"([^A-Za-z0-9%+,./:=@_^-])")
_ESCAPE = re.compile(r"%[0-9A-F]{2}")
#: What different encoders of URLs leave as it is, beside letters, digits and `-._~`.
_URL_SAFE = ("", "/", "!'()*", "$&+:=@", "$&+,/:;=@", "$&+,;=")
_GO = str.maketrans({"<": r"\u003c", ">": r"\u003e", "&": r"\u0026", "\u2028": r"\u2028", "\u2029": r"\u2029"})


class Masker:
    """Masks one stream. What comes out may leave the host."""

    def __init__(self, secrets: Iterable[str]) -> None:
        words: set[bytes] = set()
        for secret in dict.fromkeys(secrets):
            for each in dict.fromkeys((secret, *members(secret))):
                words.update(forms(each))
        self._words = sorted(words)
        self._begins = [{word[:size] for word in words} for size in (1, 2, 3)]
        self._always: list[bytes] = []
        self._gram, self._stride = 8, 0
        self._grams: dict[int, list[bytes]] = {}
        self._choose()
        self._held = b""
        self._covered = 0  # so many of the held bytes are of a secret whose beginning is masked
        self._is_open = False  # what is before the held bytes was masked

    def feed(self, chunk: bytes) -> bytes:
        """What is certain by now; the rest is held until more comes."""
        if not self._words:
            return chunk
        text = self._held + chunk if self._held else chunk
        found = self._found(text)
        return self._masked(text, _spans(text, found), self._hold(text, found))

    def flush(self) -> bytes:
        """The end of the stream. A beginning of a secret at its very end is masked if it has SHORTEST bytes."""
        text = self._held
        found = self._found(text)
        spans = _spans(text, found)
        hold = self._hold(text, found, is_exact=True)
        if len(text) - hold >= SHORTEST:
            spans.append((hold, len(text)))
        return self._masked(text, spans, len(text))

    def all(self, text: str) -> str:
        """A text of its own, such as the message of an error, masked whole."""
        fresh = object.__new__(Masker)
        fresh.__dict__.update(self.__dict__, _held=b"", _covered=0, _is_open=False)
        raw = text.encode("utf-8", "surrogateescape")
        return (fresh.feed(raw) + fresh.flush()).decode("utf-8", "replace")

    def _choose(self) -> None:
        """Which words are looked for one by one, and which by their grams: whatever costs least."""
        costs = {word: max(5.0, 350.0 / len(word)) for word in self._words}
        best, chosen = sum(costs.values()), (8, 0)
        for gram, stride, cost in _SIEVES:
            cost += sum(costs[word] for word in self._words if len(word) < gram + stride - 1)  # noqa: PLW2901
            if cost < best:
                best, chosen = cost, (gram, stride)
        self._gram, self._stride = chosen
        for word in self._words:
            if not self._stride or len(word) < self._gram + self._stride - 1:
                self._always.append(word)
                continue
            for gram_ in _grams(word[:_HEAD], self._gram, self._stride):
                self._grams.setdefault(gram_, []).append(word)

    def _found(self, text: bytes) -> list[bytes]:
        """The words that may be in a text; of a long one its beginning is enough."""
        if not self._stride or len(text) < self._gram:
            return self._always
        size, hits = self._gram, set[int]()
        for first in range(0, size, self._stride):  # one turn, but for the finest sieve
            view = memoryview(text)[first : first + (len(text) - first) // size * size]
            hits |= self._grams.keys() & view.cast("Q" if size == 8 else "I")[:: max(1, self._stride // size)]  # noqa: PLR2004
        if not hits:
            return self._always
        return [*self._always, *dict.fromkeys(itertools.chain.from_iterable(self._grams[hit] for hit in hits))]

    def _hold(self, text: bytes, found: list[bytes], *, is_exact: bool = False) -> int:
        """Where the longest end of the text begins that is the beginning of a word.

        Unless `is_exact` it may be held where none begins: that costs time, never a secret.
        """
        hold = end = len(text)
        for at in range(max(0, end - _HEAD + 1), end):
            left = min(end - at, 3)
            if text[at : at + left] in self._begins[left - 1] and self._is_beginning(text[at:]):
                hold = at
                break
        for word in found:
            if len(word) <= _HEAD:
                continue
            head, left = word[:_HEAD], _TRIES
            at = text.find(head, max(0, end - len(word) + 1))
            while 0 <= at < hold:
                left -= 1
                if not left:
                    hold = min(hold, end - _overlap(word, text)) if is_exact else at
                    break
                if word.startswith(text[at:]):
                    hold = at
                at = text.find(head, at + 1)
        return hold

    def _is_beginning(self, text: bytes) -> bool:
        place = bisect_left(self._words, text)
        if place < len(self._words) and self._words[place] == text:
            place += 1
        return place < len(self._words) and self._words[place].startswith(text)

    def _masked(self, text: bytes, spans: list[tuple[int, int]], hold: int) -> bytes:
        """The text up to `hold` without what the spans cover; keeps the rest."""
        if self._covered:
            spans.append((0, self._covered))
        out: list[bytes] = []
        at = end = 0
        for start, stop in sorted(spans):
            if start >= hold:
                break
            if start > end or (start == end == 0):
                if start > at:
                    out.append(text[at:start])
                    self._is_open = False
                if not self._is_open:
                    out.append(MASK)
                    self._is_open = True
            end = max(end, stop)
            at = min(end, hold)
        if at < hold:
            out.append(text[at:hold])
            self._is_open = False
        self._held = text[hold:]
        self._covered = max(0, max(end, self._covered) - hold)
        return out[0] if len(out) == 1 else b"".join(out)


def _spans(text: bytes, words: Iterable[bytes]) -> list[tuple[int, int]]:
    """What the words cover, in time that is linear in the text for each length of a word."""
    spans: list[tuple[int, int]] = []
    sizes: dict[int, list[bytes]] = {}
    for word in words:
        sizes.setdefault(len(word), []).append(word)
    for size, some in sizes.items():
        if len(some) > _FEW:
            wanted = set(some)
            spans += ((at, at + size) for at in range(len(text) - size + 1) if text[at : at + size] in wanted)
        else:
            for word in some:
                spans += _occurrences(text, word)
    return spans


def _occurrences(text: bytes, word: bytes) -> Iterator[tuple[int, int]]:
    """Those that run into each other as one."""
    at = text.find(word)
    while at >= 0:
        start, end = at, at + len(word)
        while (following := text.find(word, at + 1, end + len(word))) >= 0:
            step = following - at  # a word that overlaps itself repeats by this: there may be thousands
            at, end, times = following, following + len(word), len(word) // step
            while times:
                again = word[len(word) - times * step :]
                while text.startswith(again, end):
                    at, end = at + len(again), end + len(again)
                times //= 2
        yield start, end
        at = text.find(word, end)


def _overlap(word: bytes, text: bytes) -> int:
    """How long the longest end of the text is that is the beginning of the word; in one pass (Knuth, Morris, Pratt)."""
    end = text[-len(word) :]
    borders, at = [0] * len(word), 0
    for place in range(1, len(word)):
        while at and word[place] != word[at]:
            at = borders[at - 1]
        at += word[place] == word[at]
        borders[place] = at
    at = 0
    for letter in end:
        while at and (at == len(word) or letter != word[at]):
            at = borders[at - 1]
        at += letter == word[at]
    return at


def _grams(head: bytes, size: int, stride: int) -> Iterator[int]:
    """As many as the stride is long, from where the word is least monotonous."""
    window = size + stride - 1
    last = len(head) - window
    first = max((0, last // 2, last), key=lambda at: len(set(head[at : at + window])))
    for at in range(first, first + stride):
        yield int.from_bytes(head[at : at + size], sys.byteorder)


def is_short(secret: str) -> bool:
    """Whether a value is one that is not masked."""
    return 0 < len(secret.strip().encode("utf-8", "surrogateescape")) < SHORTEST


def members(value: str) -> Iterator[str]:
    """The strings and long numbers inside of a value that is a collection, or a quoted string: in JSON or in HCL."""
    if value.lstrip()[:1] not in ("{", "[", '"'):
        return
    try:
        yield from _leaves(json.loads(value))
    except (ValueError, RecursionError):
        yield from map(_unquoted, _texts(value))
        yield from _NUMBER.findall(value)


def _texts(value: str) -> Iterator[str]:
    """What stands in quotes and is no key, as it stands there; in one pass. The last one may lack its end."""
    at = value.find('"') + 1
    while at:
        end = at
        while (mark := _TEXT_MARK.search(value, end)) and mark[0] == "\\":
            end = mark.end() + 1
        if mark is None:
            yield value[at:]
            return
        if not _KEY_MARK.match(value, mark.end()):
            yield value[at : mark.start()]
        at = value.find('"', mark.end()) + 1


def _leaves(value: object) -> Iterator[str]:
    """The values, not the keys: those are in every log."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict | list):
            left += reversed(list(each.values()) if isinstance(each, dict) else each)
        elif isinstance(each, str):
            yield each
            yield from members(each)
        elif isinstance(each, int | float) and not isinstance(each, bool):
            yield str(each)


def _unquoted(text: str) -> str:
    plain = text
    if "\\" in text:
        try:
            plain = str(json.loads(f'"{text}"', strict=False))
        except ValueError:
            return text
    return plain.replace("$${", "${").replace("%%{", "%{")


def forms(secret: str) -> set[bytes]:
    """All that is looked for to find one secret."""
    text = secret.strip()
    raw = text.encode("utf-8", "surrogateescape")
    if len(raw) < SHORTEST:
        return set()
    lines = [line.strip() for line in text.splitlines()]
    words: set[str] = set()
    for each in {text, *(lines if len(lines) > 1 else ())}:
        words |= _escaped(each)
    words |= _url(text) | _markup(text) | _shell(text) | _broken(text)
    words |= {raw.hex(), raw.hex().upper()}
    found = {word.encode("utf-8", "surrogateescape") for word in words} | _base64(raw)
    return {word for word in found if len(word) >= SHORTEST}


def _escaped(text: str) -> set[str]:
    """As it is, in JSON, in HCL, and each of these in JSON once more, as terraform's structured output has it."""
    if _PLAIN.fullmatch(text):
        return {text}
    once = {text, *_json(text)}
    once |= {each.replace("${", "$${").replace("%{", "%%{") for each in once}
    return once.union(*(_json(each) for each in once))


def _json(text: str) -> set[str]:
    """As different writers write it; Go's escapes what would be markup, and has no letters for two of the controls."""
    plain, ascii_ = (json.dumps(text, ensure_ascii=flag)[1:-1] for flag in (False, True))
    found = {plain, ascii_, plain.translate(_GO), plain.replace("/", "\\/")}
    if "\\b" in plain or "\\f" in plain:
        found |= {each.replace("\\b", "\\u0008").replace("\\f", "\\u000c") for each in found}
    return found


def _url(text: str) -> set[str]:
    found = {quote(text, safe=safe, errors="surrogateescape") for safe in _URL_SAFE}
    found.add(quote_plus(text, errors="surrogateescape"))
    return found | {_ESCAPE.sub(lambda part: part[0].lower(), each) for each in found}


def _markup(text: str) -> set[str]:
    plain = html.escape(text, quote=False)
    return {plain, html.escape(text), plain.replace('"', "&#34;").replace("'", "&#39;"), plain.replace('"', "&quot;")}


def _shell(text: str) -> set[str]:
    ours = shlex.quote(text)
    inner = ours[1:-1] if ours.startswith("'") and ours.endswith("'") else ours
    double = re.sub(r'([\\"$`])', r"\\\1", text)
    return {inner, text.replace("'", "'\\''"), double, _UNSAFE.sub(r"\\\1", text) if text.isascii() else text}


def _broken(text: str) -> set[str]:
    """With a space become the end of a line, as terraform breaks messages, bare and in its coloured frame."""
    if " " not in text or len(text) > 4 * _LINE_MOST:
        return set()
    places = [at for at, letter in enumerate(text) if letter == " "]
    ends = ("\n", "\n│ ", "\n\x1b[31m│\x1b[0m \x1b[0m", "\n\x1b[33m│\x1b[0m \x1b[0m")
    return {f"{text[:at]}{end}{text[at + 1 :]}" for at in places for end in ends}


def _base64(raw: bytes) -> set[bytes]:
    """In each alignment, without the letters at both ends in which other bytes have a part; also in lines."""
    found: set[bytes] = set()
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        found.add(base64.b64encode(b"\0" * before + raw)[first:last])
    whole = base64.b64encode(raw)[: len(raw) * 8 // 6]
    for width in (64, 76):  # PEM's and MIME's
        if len(whole) > width:
            found.update(whole[at : at + width] for at in range(0, len(whole), width))
    return found | {each.translate(bytes.maketrans(b"+/", b"-_")) for each in found}
