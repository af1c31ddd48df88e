"""What a browser's form sends, as fields and files; small forms are read whole, files only as they come."""

from collections.abc import AsyncIterator, Sequence
from urllib.parse import parse_qsl

from terrapod_server.kit.http.multipart import MULTIPART, Multipart, Part
from terrapod_shared.errors import BadRequest, TooLarge, UnsupportedMedia

URLENCODED = "application/x-www-form-urlencoded"
#: All fields of a form together, in bytes: more than any form of ours has.
FIELDS_BYTES = 16 << 10
_FIELDS_MOST = 100


def media_of(content_type: str) -> str:
    """The media type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


async def fields_of(content_type: str, chunks: AsyncIterator[bytes]) -> dict[str, str]:
    """A form without files. Raises UnsupportedMedia, BadRequest, and what `chunks` raises past its limit."""
    media = media_of(content_type)
    if media != URLENCODED:
        raise UnsupportedMedia(f"the body must be {URLENCODED}, not {media[:80]!r}")
    raw = b"".join([chunk async for chunk in chunks])
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_FIELDS_MOST, errors="strict")
    except ValueError:
        raise BadRequest("the body is not a form") from None
    return single(pairs)


async def with_files(content_type: str, chunks: AsyncIterator[bytes]) -> tuple[dict[str, str], AsyncIterator[Part]]:
    """A form of either kind: its fields, and its files, which come behind them and are read as they are asked for."""
    if media_of(content_type) != MULTIPART:
        return await fields_of(content_type, chunks), _files(None, None)
    reader = Multipart(content_type, chunks)
    pairs: list[tuple[str, str]] = []
    left = FIELDS_BYTES
    while (part := await reader.part()) and part.filename is None:
        left -= len(part.name)
        raw = await part.read(max(left, 0))
        left -= len(raw)
        try:
            pairs.append((part.name, raw.decode()))
        except UnicodeDecodeError:
            raise BadRequest("a field of the form is not UTF-8") from None
    if left < 0:
        raise TooLarge(f"the fields of the form have more than {FIELDS_BYTES} bytes")
    return single(pairs), _files(reader, part)


async def _files(reader: Multipart | None, part: Part | None) -> AsyncIterator[Part]:
    while reader and part:
        if part.filename is None:
            raise BadRequest("the fields of a form must come before its files")
        yield part
        part = await reader.part()


def single(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Raises BadRequest for a name that comes twice, or for a NUL."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise BadRequest("a parameter is given twice")
    if any("\0" in value for value in fields.values()):
        raise BadRequest("a parameter may not contain a NUL character")
    return fields


__all__ = ["FIELDS_BYTES", "MULTIPART", "URLENCODED", "fields_of", "media_of", "single", "with_files"]
