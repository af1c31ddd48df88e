"""Forms as browsers send them, in pieces of any size, and what is no form."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrapod_server.kit.http import forms
from terrapod_server.kit.http.multipart import HEAD_MOST, PARTS_MOST, Multipart, parameters
from terrapod_shared.errors import BadRequest, TooLarge, UnsupportedMedia

BOUNDARY = "----geckoformboundary1"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
Sent = tuple[str, str | None, bytes]


def body(*parts: Sent, boundary: str = BOUNDARY) -> bytes:
    """As browsers write it."""
    raw = b""
    for name, filename, content in parts:
        more = f'; filename="{filename}"\r\nContent-Type: application/x-tar' if filename is not None else ""
        raw += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        raw += content + b"\r\n"
    return raw + f"--{boundary}--\r\n".encode()


async def cut(raw: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(raw), size):
        yield raw[at : at + size]


async def read(raw: bytes, size: int = 1 << 16, media: str = TYPE) -> tuple[dict[str, str], list[Sent]]:
    fields, files = await forms.with_files(media, cut(raw, size))
    return fields, [(file.name, file.filename, b"".join([chunk async for chunk in file])) async for file in files]


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(1, 400))
async def test_a_file_arrives_as_it_was_sent_however_it_is_cut(content: bytes, size: int) -> None:
    tricky = content + b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n\r\n--"
    raw = body(("csrf", None, b"x"), ("name", None, "ä€".encode()), ("file", "a.tar", tricky), ("more", "", b""))
    fields, files = await read(raw, size)
    assert fields == {"csrf": "x", "name": "ä€"}
    assert files == [("file", "a.tar", tricky), ("more", "", b"")]


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
async def test_whatever_comes_is_a_form_or_an_error(raw: bytes, size: int) -> None:
    for sent in (raw, b"--" + BOUNDARY.encode() + raw, body(("a", "b", b"c"))[:-1] + raw):
        try:
            await read(sent, size)
        except (BadRequest, TooLarge):
            continue


async def test_files_may_be_passed_over_and_are_not_held() -> None:
    raw = body(("one", "1", b"x" * 500_000), ("two", "2", b"y"))
    reader = Multipart(TYPE, cut(raw, 1000))
    first = await reader.part()
    assert first is not None
    assert await anext(aiter(first))
    second = await reader.part()
    assert second is not None
    assert [chunk async for chunk in first] == [], "the content of one part is not that of the next"
    assert await second.read(10) == b"y"
    assert await reader.part() is None
    assert await reader.part() is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"--",
        b"x" + body(("a", None, b"b")),
        body(("a", None, b"b"))[:-4],
        body(("a", None, b"b")) + b"more",
        body(("a", None, b"b"), ("a", None, b"c")),
        body(("a", "file", b"b"), ("field behind it", None, b"c")),
        body(("a", None, b"\0")),
        body(("a", None, b"\xff")),
        body(('a"; name="b', None, b"c")),
        body(("a", None, b"b"), boundary=BOUNDARY + "x"),
        f"--{BOUNDARY}\r\n\r\n\r\nx\r\n--{BOUNDARY}--".encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--{BOUNDARY}--".encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\n\r\n--{BOUNDARY}--".encode(),
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=\xff\r\n\r\n".encode("latin-1"),
        f"--{BOUNDARY}\r\nX: {'x' * (HEAD_MOST + 10)}".encode(),
    ],
)
async def test_what_is_no_form_is_refused(raw: bytes) -> None:
    for size in (1, 1 << 16):
        with pytest.raises(BadRequest):
            await read(raw, size)


async def test_bombs_of_parts_and_of_fields_are_refused() -> None:
    with pytest.raises(TooLarge):
        await read(body(*[(f"f{number}", None, b"") for number in range(PARTS_MOST + 1)]))
    with pytest.raises(TooLarge):
        await read(body(*[(f"f{number}", "x", b"") for number in range(PARTS_MOST + 1)]))
    with pytest.raises(TooLarge):
        await read(body(("a", None, b"x" * (forms.FIELDS_BYTES + 1))))
    with pytest.raises(TooLarge):
        await read(body(*[(f"{number}" * 400, None, b"x" * 400) for number in range(40)]))


async def test_fields_of_a_form_without_files() -> None:
    assert await read(b"a=b&c=%C3%A4+d", media=forms.URLENCODED) == ({"a": "b", "c": "ä d"}, [])
    for raw in (b"a=1&a=2", b"a=%00", b"a=%ff", b"\xff", b"&".join(b"a%d=1" % n for n in range(101))):
        with pytest.raises(BadRequest):
            await read(raw, media=forms.URLENCODED)
    for media in ("", "application/json", "text/plain"):
        with pytest.raises(UnsupportedMedia):
            await read(b"a=b", media=media)
    for media in ("multipart/form-data", f"{forms.MULTIPART}; boundary=", f'{forms.MULTIPART}; boundary="{"x" * 71}"'):
        with pytest.raises(BadRequest):
            await read(body(("a", None, b"b")), media=media)


def test_parameters_of_a_header() -> None:
    assert parameters('form-data; name="a%22b;c"; filename="x\\y.tf"') == {
        "": "form-data",
        "name": 'a"b;c',
        "filename": "x\\y.tf",
    }
    for wrong in ('form-data; name="a', 'form-data; name="a"b', "form-data; =a", "a; b=1; b=2"):
        with pytest.raises(BadRequest):
            parameters(wrong)
