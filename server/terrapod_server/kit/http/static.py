"""Files of the pages that are the same for everybody: by an address that changes when they do.

The address holds the digest of what is in the file, so browsers may keep it
for ever. Of a server of another version, beside this one, the digest is another:
then the file of this one is given, and not kept.
"""

import gzip
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from terrapod_shared.errors import NotFound

_FOLDER = Path(__file__).parents[2] / "static"
_MEDIA = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
#: All there are: nothing else is looked for.
_NAMES = frozenset(path.name for path in _FOLDER.iterdir() if path.suffix in _MEDIA)
PATH = "/static/{digest}/{file}"
_DIGEST = 12
#: In an Accept-Encoding: `gzip;q=0` says that it may not be.
_TAKES_GZIP = re.compile(r"(?:^|,)\s*(?:x-)?gzip\s*(?!\s*;\s*q\s*=\s*0(?:\.0*)?\s*(?:,|$))(?:[,;]|$)")
_FOR_EVER = "public, max-age=31536000, immutable"


@cache
def _content(name: str) -> tuple[bytes, bytes, str]:
    """A file, the same packed, and its digest."""
    raw = (_FOLDER / name).read_bytes()
    return raw, gzip.compress(raw, mtime=0), hashlib.sha256(raw).hexdigest()


def url(name: str) -> str:
    """The address of a file."""
    return PATH.format(digest=_content(name)[2][:_DIGEST], file=name)


def answer(request: Request, digest: str, name: str) -> Response:
    """A file as the answer. Raises NotFound."""
    if name not in _NAMES:
        raise NotFound
    raw, packed, current = _content(name)
    takes_packed = bool(_TAKES_GZIP.search(request.headers.get("accept-encoding", "").lower()))
    etag = f'"{current[:32]}{"-gzip" if takes_packed else ""}"'
    headers = {
        "Cache-Control": _FOR_EVER if digest == current[:_DIGEST] else "no-cache",
        "ETag": etag,
        "Vary": "Accept-Encoding",
    }
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if takes_packed:
        headers["Content-Encoding"] = "gzip"
    return Response(packed if takes_packed else raw, 200, headers, _MEDIA[Path(name).suffix])


__all__ = ["PATH", "answer", "url"]
