"""Which requests are recorded, what an entry says, and how entries are chained: values in, values out. Pure.

The entries of a server process form a chain. Each carries an HMAC over its
own values and the one before it, under a key that is not in the database: an
entry cannot be altered, moved, put in or taken out without the key. What is cut
off at the end is told by checkpoints (`chain_heads`), which are signed and also kept
outside the database.
"""

import functools
import hmac
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from terrapod_server.kit.api.resources import Recorded
from terrapod_server.kit.http.networks import group

_SAFE = frozenset({"GET", "HEAD"})
#: A path's value that may be written down: an id, a name, an address; not what looks like a credential.
_SHOWN = re.compile(r"(?!tpod)[A-Za-z0-9@._+-]{1,128}")
_AGENT_LONGEST = 200
_REFUSED = frozenset({401, 403, 429})
#: Refusals of one caller are counted for so long, of so many callers at once.
REFUSALS_S, REFUSALS_MOST = 60.0, 10_000
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


def is_recorded(declared: Recorded, method: str, status: int, *, is_admitted: bool) -> bool:
    """Changes, whatever became of them; what was refused, before the handler or by it; reads that are declared so."""
    if status >= 400 and (not is_admitted or status in {401, 403, 429}):  # noqa: PLR2004
        return True
    if declared is Recorded.REFUSALS:
        return 400 <= status < 500  # noqa: PLR2004
    if method in _SAFE:
        return declared is Recorded.READS and 200 <= status < 400 and status != 204  # noqa: PLR2004
    return True


class Shape(NamedTuple):
    """What of a declared path says which thing a request is about."""

    type: str
    id: str  #: name of the path's parameter; empty where it names none


#: Parameters of paths that name nothing of their own, but a part of what stands before them.
_NO_THINGS = frozenset({"{org}", "{phase}", "{artifact}"})


@functools.cache
def shape(path: str, of: str) -> Shape:
    """`of` is the type of the endpoint's resource, or empty.

    `/workspaces/{workspace}/actions/lock` is about that workspace,
    `/workspaces/{workspace}/runs` about a run that the path does not name,
    `/runs/{run}/{phase}/log` about that run.
    """
    parts = [part for part in path.split("/") if part] or ["pages"]
    places = [place for place, part in enumerate(parts) if part.startswith("{") and part not in _NO_THINGS]
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


class Refusals:
    """Many refusals of one caller become few entries: one at once, and then one each minute that counts the others.

    Strangers are told apart by their address, or its network, the status, and
    the account whose password was guessed: an entry tells the first path or the
    last, and how many there were.
    """

    def __init__(self, span_s: float = REFUSALS_S, most: int = REFUSALS_MOST) -> None:
        """`most`: callers that are remembered; the oldest is written down early."""
        self._span_s, self._most = span_s, most
        self._open: OrderedDict[tuple[object, ...], _Refused] = OrderedDict()  #: by their end

    def take(self, entry: Entry, now: float) -> list[Entry]:
        """What is to be written of a refusal that came at `now`, in seconds of a clock that never goes back."""
        key = _caller(entry)
        found = self._open.get(key)
        if found is not None and now < found.until:
            found.count, found.last = found.count + 1, entry
            return []
        done = self.due(now)
        self._open[key] = _Refused(now + self._span_s)
        while len(self._open) > self._most:
            done += self._open.popitem(last=False)[1].entries
        return [*done, entry]

    def due(self, now: float) -> list[Entry]:
        """The entries of minutes that are over; a caller who was refused in one has another minute begun."""
        done = []
        while self._open:
            key, first = next(iter(self._open.items()))
            if now < first.until:
                break
            del self._open[key]
            if first.count:
                done += first.entries
                self._open[key] = _Refused(now + self._span_s)
        return done

    def rest(self) -> list[Entry]:
        """All that was not written yet."""
        done = [entry for each in self._open.values() for entry in each.entries]
        self._open.clear()
        return done

    @property
    def next_at(self) -> float:
        """When there may be something due; infinite where nothing is remembered."""
        return next((each.until for each in self._open.values()), math.inf)


@dataclass
class _Refused:
    """A caller in one minute."""

    until: float
    count: int = 0  #: of those that no entry tells of yet
    last: Entry | None = None

    @property
    def entries(self) -> list[Entry]:
        return [self.last._replace(repeats=self.count)] if self.last else []


def is_refusal(entry: Entry) -> bool:
    """Whether others like it are counted with it."""
    if entry.actor_kind == "anonymous":
        return 400 <= entry.status < 500  # noqa: PLR2004
    return entry.status in _REFUSED


def _caller(entry: Entry) -> tuple[object, ...]:
    if entry.actor_kind == "anonymous":
        # only sign-in names an account here: elsewhere a stranger could write any id into the path
        account = entry.resource_id if entry.resource_type == "users" and "{" not in entry.path else ""
        return (group(entry.address), entry.status, account)
    about = "" if entry.status == 429 else entry.resource_id  # noqa: PLR2004
    return (entry.actor_kind, entry.actor_id, entry.address, entry.action, entry.path, about, entry.status)


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
