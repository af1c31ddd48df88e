"""What an archive may not be, above all where readers of tar could differ."""

import contextlib
import gzip
import io
import tarfile
import time
import tracemalloc
from collections.abc import Callable

import pytest

from kit.serving import tar
from terrapod_server.store.archive import Checker, Unfit


def packed(*entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as out:
        for entry, content in entries:
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", headers: dict[str, str] | None = None
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.pax_headers = kind, link, headers or {}
    return made, b""


def check(data: bytes, step: int = 100, most: int = 1 << 30) -> None:
    checker = Checker(most)
    for at in range(0, len(data), step):
        checker.feed(data[at : at + step])
    checker.end()


LONG = "x" * 150
GOOD: list[Callable[[], bytes]] = [
    lambda: packed(entry("a/b.tf"), entry("a/link", tarfile.SYMTYPE, "../c"), entry("c")),
    lambda: packed(entry(f"{LONG}/b.tf"), entry("hard", tarfile.LNKTYPE, f"{LONG}/b.tf")),
    lambda: packed(entry(f"{LONG}/b.tf"), entry("l", tarfile.SYMTYPE, f"{LONG}/b.tf"), form=tarfile.GNU_FORMAT),
    lambda: packed(entry("a/" * 99 + "b"), entry("y" * 4096), entry("link", tarfile.SYMTYPE, "a/" * 99 + "b")),
    lambda: packed(entry("a/link", tarfile.SYMTYPE, "c"), entry("a/link2/d"), entry("link/d"), entry("a/b/link/d")),
    lambda: packed(entry("dir", tarfile.DIRTYPE), entry("dir/é.tf", headers={"comment": "two\nlines = of 3 words"})),
]
BAD: list[Callable[[], bytes]] = [
    lambda: packed(entry("link", tarfile.SYMTYPE, "/etc/passwd")),
    lambda: packed(entry("//etc/passwd")),
    lambda: packed(entry("link", tarfile.SYMTYPE, "//etc/passwd")),
    lambda: packed(entry("a/link", tarfile.SYMTYPE, "../../x")),
    lambda: packed(entry("hard", tarfile.LNKTYPE, "../x")),
    lambda: packed(entry("link", tarfile.SYMTYPE, "../" * 60 + "x"), form=tarfile.PAX_FORMAT),
    lambda: packed(entry("link", tarfile.SYMTYPE, "../" * 60 + "x"), form=tarfile.GNU_FORMAT),
    lambda: packed(entry("link", tarfile.SYMTYPE, "."), entry("link/evil")),
    lambda: packed(entry("a/l", tarfile.SYMTYPE, ".."), entry("a/l/l2", tarfile.SYMTYPE, "../x")),
    lambda: packed(entry("./link", tarfile.SYMTYPE, "."), entry("a/../link/evil")),
    lambda: packed(entry("fifo", tarfile.FIFOTYPE)),
    lambda: packed(entry("device", tarfile.CHRTYPE)),
    lambda: packed(entry("odd", b"Z")),
    lambda: packed(entry("sparse", tarfile.GNUTYPE_SPARSE)),
    lambda: packed(entry("fine", headers={"GNU.sparse.name": "../x"})),
    lambda: packed(entry("fine", headers={"GNU.sparse.realsize": "999999999999"})),
    lambda: packed(entry("fine", headers={"size": "512"})),
    lambda: tar({"main.tf": b"x" * 5000})[:-30],
    lambda: gzip.compress(b"") + tar({"main.tf": b""}),
    lambda: packed(entry("a/" * 100 + "b")),
    lambda: packed(entry("x" * 4097)),
    lambda: packed(entry("x" * 4097), form=tarfile.GNU_FORMAT),
    lambda: packed(entry("link", tarfile.SYMTYPE, "x" * 4097)),
    lambda: packed(entry("link", tarfile.SYMTYPE, "a/" * 100 + "b")),
    lambda: packed(entry("x", tarfile.REGTYPE), entry("hard", tarfile.LNKTYPE, "a/" * 100 + "x")),
    lambda: packed(entry("a/b/link", tarfile.SYMTYPE, "c"), entry("a/./b//link/d/evil")),
]


@pytest.mark.parametrize("make", GOOD)
@pytest.mark.parametrize("step", [1, 100, 1 << 20])
def test_what_tools_make_is_taken(make: Callable[[], bytes], step: int) -> None:
    check(make(), step)


@pytest.mark.parametrize("make", BAD)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_what_could_leave_is_refused(make: Callable[[], bytes], step: int) -> None:
    with pytest.raises(Unfit):
        check(make(), step)


def test_a_name_of_all_entries_is_refused() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"path": "../x"}) as out:
        out.addfile(tarfile.TarInfo("a"))
    with pytest.raises(Unfit, match="not taken there"):
        check(gzip.compress(buffer.getvalue(), mtime=0))
    fine = io.BytesIO()
    with tarfile.open(fileobj=fine, mode="w", pax_headers={"comment": "of git archive"}) as out:
        out.addfile(tarfile.TarInfo("a"))
    check(gzip.compress(fine.getvalue()))


def test_bombs_are_refused() -> None:
    bomb = tar({"zeros": bytes(4 << 20)})
    assert len(bomb) < 10_000
    with pytest.raises(Unfit, match="more than 1048576 bytes"):
        check(bomb, most=1 << 20)


def many_links(count: int) -> bytes:
    names = (f"{number}/{'n' * 2000}" for number in range(count))
    return packed(*(entry(name, tarfile.SYMTYPE, "t" * 2000) for name in names), form=tarfile.GNU_FORMAT)


def extended(content: bytes) -> bytes:
    header = tarfile.TarInfo("p")
    header.type, header.size = tarfile.XHDTYPE, len(content)
    blocks = header.tobuf() + content + bytes(-len(content) % 512) + tarfile.TarInfo("f").tobuf() + bytes(1024)
    return gzip.compress(blocks)


@pytest.mark.parametrize(
    ("make", "is_fit"),
    [
        (lambda: packed(entry("link", tarfile.SYMTYPE, "x"), entry("a/" * 100_000), form=tarfile.GNU_FORMAT), False),
        (lambda: many_links(2_000), True),
        (lambda: extended(b"6 a=b\n" * 170_000), False),
        (lambda: extended(b"6 a=b\n" * 900), True),
        (lambda: gzip.compress(b"".join([gzip.decompress(extended(bytes(1 << 20)))[:-1536]] * 40)), False),
        (lambda: extended(b"0" * (1 << 20)), False),
        (lambda: extended(b"9" * 1000 + b" path=x\n"), False),
        (lambda: extended(b"%d path=%s\n" % (900_000, b"x" * 899_987)), False),
        (lambda: packed(*[entry(f"{'d/' * 90}{number}") for number in range(2_000)]), True),
    ],
)
def test_what_is_made_to_be_slow_or_large_takes_neither_time_nor_memory(
    make: Callable[[], bytes], is_fit: bool
) -> None:
    raw = make()
    begun = time.process_time()
    tracemalloc.start()
    with contextlib.nullcontext() if is_fit else pytest.raises(Unfit):
        check(raw, 1 << 18)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
    assert time.process_time() - begun < 30
