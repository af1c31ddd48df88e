"""Lists of the versions that release sites have, each read once an hour by one reader.

Nobody waits for a site longer than he has patience: the reading goes on without
him, and is there for who comes next. A site that did not answer is left alone
for a minute, and while it is known not to answer nobody waits for it at all.
"""

import asyncio
import time
from dataclasses import dataclass, field

import msgspec

from terrapod_server.config.settings import Engines
from terrapod_server.engines import checksums
from terrapod_shared import versions
from terrapod_shared.errors import BadGateway, NotFound, Unreachable

_KEPT_S = 3600.0
_FAILED_S = 60.0
_MOST = 64 << 20


class _Entry(msgspec.Struct):
    """Of OpenTofu's list."""

    id: str


class _Document(msgspec.Struct):
    """HashiCorp's index holds versions by name, OpenTofu's a list of them. What else stands there is not read."""

    versions: dict[str, msgspec.Raw] | list[_Entry]


@dataclass
class _List:
    """What is known of one site's list."""

    url: str
    found: list[str] = field(default_factory=list)
    read_at: float = float("-inf")
    why: str = ""  #: the last reading failed; empty where it did not
    failed_at: float = float("-inf")
    reading: asyncio.Task[None] | None = None

    async def read(self, engines: Engines) -> None:
        try:
            raw = await checksums.site().small(engines, self.url, _MOST)
            document = await asyncio.to_thread(msgspec.json.decode, raw, type=_Document)
        except (BadGateway, NotFound) as error:
            self.why, self.failed_at = error.detail, time.monotonic()
        except (msgspec.DecodeError, RecursionError) as error:
            self.why, self.failed_at = f"the list of releases at {self.url} cannot be read: {error}", time.monotonic()
        else:
            names = (
                [each.id for each in document.versions] if isinstance(document.versions, list) else document.versions
            )
            self.found = [name for name in names if len(name) <= versions.LENGTH_MOST and versions.is_exact(name)]
            self.why, self.read_at = "", time.monotonic()

    def begun(self, engines: Engines) -> asyncio.Task[None]:
        """The reading that is under way, or a new one."""
        reading = self.reading
        if reading is None or reading.done() or reading.get_loop() is not asyncio.get_running_loop():
            reading = self.reading = asyncio.create_task(self.read(engines))
        return reading


_lists: dict[str, _List] = {}


async def listed(engines: Engines, tool: str, patience_s: float | None) -> list[str]:
    """The exact versions that the tool's site lists. `patience_s`: None waits as long as the site may take.

    Raises BadGateway where the list is not there by then; says why.
    """
    url = f"{engines.terraform_url}/index.json" if tool == "terraform" else engines.tofu_index_url
    known = _lists.setdefault(url, _List(url))
    now = time.monotonic()
    if not known.why and now - known.read_at < _KEPT_S:
        return known.found
    if known.why and now - known.failed_at < _FAILED_S:
        raise BadGateway(known.why)
    patience_s = 0.0 if known.why and patience_s is not None else patience_s
    done, _ = await asyncio.wait({known.begun(engines)}, timeout=patience_s)
    if known.why:
        raise BadGateway(known.why)
    if not done and known.read_at < 0:
        raise Unreachable(f"{url} has not answered yet")
    return known.found
