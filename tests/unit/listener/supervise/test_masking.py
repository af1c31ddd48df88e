"""No secret gets through the masker, in whatever form and however the stream is cut; and it costs little."""

import base64
import html
import json
import random
import secrets
import shlex
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from terrapod_listener.supervise import masking
from terrapod_listener.supervise.masking import MASK, SHORTEST, Masker, forms, members

KEY = "-----BEGIN PRIVATE KEY-----\n{}\nAb==\n-----END PRIVATE KEY-----\n"
NASTY = "p\"w'd<&>${x}%{y}\\ /+é\t~(1)"


def masked(names: list[str], text: bytes, cuts: list[int] | None = None) -> bytes:
    masker, out, at = Masker(names), b"", 0
    for cut in sorted(cut % (len(text) + 1) for cut in cuts or []):
        out += masker.feed(text[at:cut])
        at = cut
    return out + masker.feed(text[at:]) + masker.flush()


def plainly(names: list[str], text: bytes) -> bytes:
    """What masking is, said without haste."""
    words = set().union(*(forms(each) for name in names for each in (name, *members(name))))
    covered = [False] * len(text)
    for word in words:
        for at in range(len(text) - len(word) + 1):
            if text[at : at + len(word)] == word:
                covered[at : at + len(word)] = [True] * len(word)
    for at in range(len(text)):
        if len(text) - at >= SHORTEST and any(len(w) > len(text) - at and w.startswith(text[at:]) for w in words):
            covered[at:] = [True] * (len(text) - at)
            break
    out = b""
    for at in range(len(text)):
        if not covered[at]:
            out += text[at : at + 1]
        elif not at or not covered[at - 1]:
            out += MASK
    return out


#: Few letters, so that secrets overlap, repeat and begin each other.
SMALL = st.text("ab", min_size=5, max_size=12)
LONG = st.builds(
    lambda part, times, end: part * times + end, st.text("abc", min_size=1, max_size=30), st.integers(1, 9), SMALL
)


@given(st.lists(SMALL | LONG, min_size=1, max_size=5), st.data())
@example(["aaaaaa"], None)
def test_any_cut_gives_what_the_whole_gives(names: list[str], data: st.DataObject | None) -> None:
    if data is None:
        text, cuts = b"b" + b"a" * 50 + b"b", list(range(52))
    else:
        pieces = st.sampled_from([*names, *(name[: len(name) // 2] for name in names), "a", "b", "-"])
        text = "".join(data.draw(st.lists(pieces, max_size=20))).encode()
        cuts = data.draw(st.lists(st.integers(0, 500), max_size=20))
    expected = plainly(names, text)
    assert masked(names, text) == expected
    assert masked(names, text, cuts) == expected
    assert masked(names, text, list(range(len(text)))) == expected


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=6, max_size=40), st.integers(0, 10_000))
@example(NASTY, 1)
@example("correct horse battery staple", 7)
@settings(deadline=None)
def test_no_usual_encoding_gets_through(secret: str, seed: int) -> None:
    secret = secret.strip()
    raw = secret.encode()
    if len(raw) < SHORTEST or "*" in secret or any(c in secret for c in "\x85\u2028\u2029"):
        return
    shown = [
        raw, base64.b64encode(raw), base64.urlsafe_b64encode(raw), base64.b64encode(b"u:" + raw), base64.b64encode(b"." + raw + b"!"),
        json.dumps(secret).encode(), json.dumps(secret, ensure_ascii=False).encode(), json.dumps(json.dumps(secret)).encode(),
        urllib.parse.quote(secret, safe="").encode(), urllib.parse.quote_plus(secret).encode(),
        urllib.parse.quote(secret).encode(), shlex.quote(secret).encode(), raw.hex().encode(), raw.hex().upper().encode(),
        html.escape(secret).encode(),
    ]  # fmt: skip
    cutter = random.Random(seed)
    for form in shown:
        text = b"\x1b[1m> " + form + b"\x1b[0m\n"
        cuts = [cutter.randrange(len(text)) for _ in range(3)]
        out = masked([secret], text, cuts)
        assert MASK in out
        assert len(out) < len(text) - len(raw) + 20 or form == raw
        for other in shown:
            assert other.strip(b"\"'=") not in out, other


def test_terraforms_own_ways_to_write() -> None:
    secret = NASTY + "\nsecond line"
    go = json.dumps(secret, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    hcl = json.dumps(secret, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")
    structured = json.dumps({"@message": f"x = {hcl}"})
    heredoc = "<<-EOT\n    " + secret.replace("\n", "\n    ") + "\nEOT"
    for text in (go, hcl, structured, heredoc):
        out = masked([secret], text.encode()).decode()
        assert "second line" not in out
        assert "p\\" not in out
        assert 'p"' not in out
    wrapped = "│ Error: it says correct horse\n│ battery staple, which\n".encode()
    assert masked(["correct horse battery staple"], wrapped) == "│ Error: it says ***, which\n".encode()


def test_lines_and_members_are_secrets_of_their_own() -> None:
    key = KEY.format("\n".join(secrets.token_hex(32) for _ in range(20)))
    line = key.splitlines()[4]
    assert masked([key], f"a {line} b".encode()) == b"a *** b"
    assert masked([key], key.encode()) == b"***\n"
    wrapped = subprocess.run(["base64"], input=key.encode(), capture_output=True, check=True).stdout
    assert all(line.startswith(MASK) and len(line) < 8 for line in masked([key], wrapped).splitlines())
    assert masked([json.dumps({"password": "in-json-1", "n": [12345678, True]})], b"in-json-1 12345678 password") == (
        b"*** *** password"
    )
    hcl = '{ user = "in-hcl-1", "k" = ["quo\\"ted-2"], pin = 99887766 }'
    assert masked([hcl], b'in-hcl-1 "k" = quo"ted-2 99887766') == b'*** "k" = *** ***'
    assert masked(['"run-variable-1"'], b"run-variable-1") == b"***"


def test_short_values_are_not_masked() -> None:
    assert masking.is_short("12345")
    assert not masking.is_short("ééé")
    assert masking.is_short("  1234\n")
    assert not masking.is_short("")
    assert masked(["12345", ""], b"12345") == b"12345"


def test_only_what_may_be_a_beginning_is_held() -> None:
    long = secrets.token_urlsafe(4000)
    masker = Masker(["secret-one", "secret-one-and-more", long, "x" * 5000 + "!"])
    assert masker.feed(b"line\nsecre") == b"line\n"
    assert masker.feed(b"ts ") == b"secrets "
    assert masker.feed(b"secret-one") == b""
    assert masker.feed(b" ") == b"*** "
    assert masker.feed(long[:4000].encode()) == b""
    assert masker.feed(b" ") == long[:4000].encode() + b" "
    held = 0
    for _ in range(100):  # a long line without an end, all of which may begin a secret
        held += 100_000 - len(masker.feed(b"x" * 100_000))
        assert held <= 5000
    assert masker.flush() == MASK, "the stream ends in a part of a secret"


def test_a_run_of_a_repeating_secret_is_not_kept() -> None:
    masker = Masker(["a" * 10_000])
    began = time.perf_counter()
    out = b"".join(masker.feed(b"a" * 65536) for _ in range(160)) + masker.feed(b"\n") + masker.flush()
    assert out == b"***\n"
    assert time.perf_counter() - began < 5


def lines(count: int) -> bytes:
    word = random.Random(1)
    names = [
        "module.vpc.aws_subnet.private",
        "Creating...",
        "Still creating...",
        "Creation complete after",
        "[id=",
        "\x1b[0m\x1b[1m",
    ]
    return "".join(
        f"{word.choice(names)} {word.choice(names)}[{word.randrange(99)}]: {word.getrandbits(60):x}\x1b[0m\n" for _ in range(count)
    ).encode()  # fmt: skip


@pytest.mark.parametrize("count", [5, 200])
def test_a_large_log_without_a_secret_passes_whole(count: int) -> None:
    """How fast it is, `make bench` says."""
    masker = Masker([secrets.token_urlsafe(30) for _ in range(count)])
    text = lines(200_000)[: 16 << 20]
    size = sum(len(masker.feed(text[at : at + 65536])) for at in range(0, len(text), 65536)) + len(masker.flush())
    assert size == len(text)


def test_it_needs_the_standard_library_alone() -> None:
    code = (
        f"import runpy; M = runpy.run_path({masking.__file__!r})['Masker']; print(M(['secret-1']).feed(b'secret-1 '))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "b'*** '\n"
    assert Path(masking.__file__).read_text().count("terrapod") == 0
