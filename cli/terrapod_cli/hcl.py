"""Just enough of terraform's CLI configuration language to find `credentials "host" { token = "…" }`. Pure."""

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
      (?P<skip>\s+|\#[^\n]*|//[^\n]*|/\*.*?\*/)
    | (?P<heredoc><<-?(?P<tag>[A-Za-z_]\w*)\n.*?^[ \t]*(?P=tag)[ \t]*$)
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<word>[A-Za-z_][\w-]*)
    | (?P<sign>.)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_PLAIN = {"n": "\n", "r": "\r", "t": "\t"}
Token = tuple[str, str]


def _tokens(text: str) -> Iterator[Token]:
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup if found.lastgroup != "tag" else "heredoc"
        if kind == "string":
            yield "string", _ESCAPE.sub(_unescaped, found.group()[1:-1])
        elif kind and kind != "skip":
            yield kind, found.group()


def _unescaped(found: "re.Match[str]") -> str:
    word = found.group(1)
    if len(word) > 1:
        return chr(int(word[1:], 16))
    return _PLAIN.get(word, word)


def credentials(text: str) -> dict[str, str]:
    """Host as written -> token. What else the file says is skipped, whatever it is."""
    found: dict[str, str] = {}
    host: str | None = None
    depth = 0
    last: list[Token] = [("", "")] * 2
    for token in _tokens(text):
        kind, value = token
        if (kind, value) == ("sign", "{"):
            if depth == 0 and last[0] == ("word", "credentials") and last[1][0] == "string":
                host = last[1][1]
            depth += 1
        elif (kind, value) == ("sign", "}"):
            depth -= 1
            host = host if depth else None
        elif kind == "string" and host is not None and depth == 1 and _names(last, "token"):
            found[host] = value
        last = [last[1], token]
    return found


def quoted(text: str) -> str:
    """The text as an expression that means exactly this text: nothing in it is a template."""
    escaped = (
        text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    )
    return f'"{escaped.replace("${", "$${").replace("%{", "%%{")}"'


def _names(last: list[Token], name: str) -> bool:
    return last[0][0] in ("word", "string") and last[0][1] == name and last[1] == ("sign", "=")
