"""Which requests are recorded, what an entry says, and how entries are chained: values in, values out.

The entries of a server process form a chain. Each carries an HMAC over its
own values and the one before it, under a key that is not in the database: an
entry cannot be altered, moved, put in or taken out without the key. What is cut
off at the end is told by checkpoints (`heads`), which are signed and also kept
outside the database.
"""

import functools
import hmac
import re
from typing import NamedTuple

import msgspec

from terrapod_server.kit.jsonapi import Endpoint, Raw, Recorded

_SAFE = frozenset({"GET", "HEAD"})
#: A path's value that may be written down: an id, a name, an address; not what looks like a credential.
_SHOWN = re.compile(r"(?!tpod)[A-Za-z0-9@._+-]{1,128}")
_AGENT_LONGEST = 200
#: Stands before the first entry of a chain.
NOTHING = "0" * 64


class Entry(NamedTuple):
    """A row, in the order of its columns. `mac` is last and seals all others."""

    id: str
    chain: str  #: of the server process that wrote it
    number: int  #: within the chain, from 1
    at: int  #: microseconds of the epoch
    actor_kind: str
    actor_id: str
    actor: str  #: e-mail or name
    token_id: str
    address: str
    action: str  #: the method
    path: str  #: as it is declared, never as it was sent
    resource_type: str
    resource_id: str
    workspace_id: str
    status: int  #: 0: the client left before an answer
    request_id: str
    user_agent: str
    duration_us: int
    repeats: int  #: how many such refusals it stands for
    mac: str


def is_recorded(endpoint: Endpoint | Raw, method: str, status: int, *, is_admitted: bool) -> bool:
    """Changes, whatever became of them; what was refused, before the handler or by it; reads that are declared so."""
    if status >= 400 and (not is_admitted or status in {401, 403, 429}):  # noqa: PLR2004
        return True
    if endpoint.recorded is Recorded.REFUSALS:
        return 400 <= status < 500  # noqa: PLR2004
    if method in _SAFE:
        return endpoint.recorded is Recorded.READS and 200 <= status < 400 and status != 204  # noqa: PLR2004
    return True


class Shape(NamedTuple):
    """What of a declared path says which thing a request is about."""

    type: str
    id: str  #: name of the path's parameter; empty where it names none


@functools.cache
def shape(path: str, of: str) -> Shape:
    """`of` is the type of the endpoint's resource, or empty.

    `/workspaces/{workspace}/actions/lock` is about that workspace,
    `/workspaces/{workspace}/runs` about a run that the path does not name.
    """
    parts = [part for part in path.split("/") if part]
    places = [place for place, part in enumerate(parts) if part.startswith("{") and part != "{org}"]
    if not places:
        return Shape(of or parts[2 if parts[0] == "api" else 0], "")
    last = places[-1]
    kind = next((part for part in reversed(parts[:last]) if not part.startswith("{")), "")
    rest = parts[last + 1 :]
    if rest and rest[0] not in {"actions", "relationships"} and of and of != kind:
        return Shape(of, "")
    return Shape(kind, parts[last][1:-1])


def shown(value: str) -> str:
    """A value of a path, or nothing where it might be a secret."""
    return value if _SHOWN.fullmatch(value) else ""


@functools.lru_cache(1024)
def printable(text: str, longest: int = _AGENT_LONGEST) -> str:
    return "".join(letter for letter in text[:longest] if letter.isprintable())


def fold(entries: list[Entry]) -> list[Entry]:
    """Refusals for too many requests, of one caller at one place, become one entry: a flood fills no table."""
    kept: list[Entry] = []
    places: dict[tuple[str, ...], int] = {}
    for entry in entries:
        if entry.status == 429:  # noqa: PLR2004
            key = (entry.actor_kind, entry.actor_id, entry.address, entry.action, entry.path)
            if key in places:
                first = kept[places[key]]
                kept[places[key]] = first._replace(repeats=first.repeats + 1)
                continue
            places[key] = len(kept)
        kept.append(entry)
    return kept


def mac_of(key: bytes, before: str, entry: Entry) -> str:
    """The seal of an entry that follows one with the seal `before`."""
    return _mac(key, before, entry[:-1])


def _mac(key: bytes, before: str, values: tuple[object, ...]) -> str:
    return hmac.digest(key, before.encode() + msgspec.json.encode(values), "sha256").hex()


class Chain:
    """Numbers and seals the entries of this process."""

    def __init__(self, name: str, key: bytes) -> None:
        self.name, self._key = name, key
        self.number, self.mac = 0, NOTHING

    def seal(self, entry: Entry) -> Entry:
        self.number += 1
        values = (entry.id, self.name, self.number, *entry[3:-1])
        self.mac = _mac(self._key, self.mac, values)
        return Entry(*values, self.mac)
