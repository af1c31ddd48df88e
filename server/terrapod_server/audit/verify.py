"""Reads the whole log and says whether it is as it was written. Holds some rows at a time, never all."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from terrapod_server.audit.chain_heads import Head, Heads, Keys, lines, opened
from terrapod_server.audit.model import AuditCheckpoint
from terrapod_server.audit.rules import Entry, mac_of
from terrapod_server.kit.db import database

_ROWS = 2_000
_COLUMNS = ", ".join(Entry._fields)
#: So many problems are told of one chain; a log that was rewritten as a whole would fill the screen.
_TOLD = 20


@dataclass
class Report:
    """What was found. `problems` are sentences; none means that all is as it was written."""

    entries: int = 0
    newer: int = 0  #: entries after the last checkpoint: their end is not proved
    heads: Heads = field(default_factory=Heads)
    problems: list[str] = field(default_factory=list)


@dataclass
class _Mark:
    """What the files say of one chain: its furthest end, and seals at numbers to compare."""

    number: int = 0
    mac: str = ""
    sequence: int = 0
    at: str = ""


async def verify(keys: Keys, files: Iterable[Path]) -> Report:
    """`files` are checkpoint files of the servers."""
    report = Report()
    report.heads = await _heads(keys, report)
    marks = _marks(keys, files, report)
    last = max(marks.values(), key=lambda mark: mark.sequence, default=_Mark())
    if last.sequence > report.heads.sequence:
        report.problems.append(
            f"the database ends at checkpoint {report.heads.sequence}; a file has {last.sequence}, of {last.at}"
        )
    found = [str(row[0]) for row in await database.rows("SELECT DISTINCT chain FROM audit_entry")]
    for chain in sorted({*report.heads.chains, *marks, *found}):
        await _chain(chain, keys, marks.get(chain, _Mark()), report)
    return report


async def _heads(keys: Keys, report: Report | None = None) -> Heads:
    """The newest checkpoint that is signed; what is wrong with the others is told to `report`."""
    newest = Heads()
    problems = report.problems if report else []
    for row in await AuditCheckpoint.all().order_by("id"):
        found = opened(keys, row)
        if found is None:
            problems.append(f"checkpoint {row.id} is not as a server signed it: it was altered or put in")
        else:
            if newest.sequence and found.sequence != newest.sequence + 1:
                problems.append(f"the checkpoints between {newest.sequence} and {found.sequence} are missing")
            newest = found
    return newest


def _marks(keys: Keys, files: Iterable[Path], report: Report) -> dict[str, _Mark]:
    marks: dict[str, _Mark] = {}
    for file in files:
        for place, line in enumerate(lines(file), 1):
            if line is None or not keys.has_signed(line.signed, line.signature):
                report.problems.append(f"line {place} of {file} is not as a server signed it")
            elif line.number >= marks.setdefault(line.chain, _Mark()).number:
                marks[line.chain] = _Mark(line.number, line.mac, line.sequence, line.at)
    return marks


async def _chain(chain: str, keys: Keys, mark: _Mark, report: Report) -> None:
    head = report.heads.chains.get(chain)
    while True:
        if head is None and mark.number and mark.at <= report.heads.purged_until:
            # retention has taken all of it, and says so in a signed checkpoint
            async for row in _rows(chain):
                report.problems.append(
                    f"chain {chain}: entry {row.number} ({row.id}) was put back: retention has removed it"
                )
                return
            return
        walk = _Walk(chain, keys.macs, head or Head(), mark)
        async for row in _rows(chain):
            walk.step(row)
        walk.end()
        if not walk.problems:
            break
        report.heads = await _heads(keys)
        if report.heads.chains.get(chain) == head:
            break
        head = report.heads.chains.get(chain)  # retention went over it meanwhile: look again
    report.entries += walk.seen
    report.newer += max(0, walk.last - max(walk.head.number, mark.number))
    told = walk.problems[:_TOLD]
    if len(walk.problems) > _TOLD:
        told.append(f"chain {chain}: and {len(walk.problems) - _TOLD} further entries are wrong")
    report.problems += told


async def _rows(chain: str) -> AsyncIterator[Entry]:
    number = -(1 << 63)  # a row that was put in may have any
    while True:
        sql = f"SELECT {_COLUMNS} FROM audit_entry WHERE chain = $1 AND number > $2 ORDER BY number LIMIT {_ROWS}"  # noqa: S608
        rows = await database.rows(sql, [chain, number])
        for row in rows:
            yield Entry(*tuple(row))
        if len(rows) < _ROWS:
            return
        number = rows[-1][Entry._fields.index("number")]


class _Walk:
    """One chain from its floor to its end."""

    def __init__(self, chain: str, keys: Sequence[bytes], head: Head, mark: _Mark) -> None:
        self.chain, self.head, self._mark = chain, head, mark
        self._keys = list(keys)
        self.problems: list[str] = []
        self.seen, self.last = 0, head.floor
        self._before: str | None = head.floor_mac  #: None after a gap: the seal before is not known

    def step(self, row: Entry) -> None:
        self.seen += 1
        if row.number <= self.head.floor:
            self._tell(f"entry {row.number} ({row.id}) was put back: retention has removed it")
            return
        if row.number > self.last + 1:
            self._missing(self.last + 1, row.number - 1)
            self._before = None
        if self._before is not None and not self._is_sealed(row):
            self._tell(f"entry {row.number} ({row.id}) is not as it was written: it was altered, moved or put in")
        for number, mac in ((self.head.number, self.head.mac), (self._mark.number, self._mark.mac)):
            if row.number == number and row.mac != mac:
                self._tell(f"entry {row.number} ({row.id}) has another seal than in the checkpoint")
        self._before, self.last = row.mac, row.number

    def end(self) -> None:
        until = max(self.head.number, self._mark.number)
        if self.last < until:
            if self.seen == 0:
                self._tell(f"all its {until - self.head.floor} entries are missing")
            else:
                self._missing(self.last + 1, until)

    def _is_sealed(self, row: Entry) -> bool:
        for place, key in enumerate(self._keys):
            if mac_of(key, self._before or "", row) == row.mac:
                if place:  # the chain is this key's: try it first from now on
                    self._keys.insert(0, self._keys.pop(place))
                return True
        return False

    def _missing(self, first: int, last: int) -> None:
        if first == last:
            self._tell(f"entry {first} is missing")
        else:
            self._tell(f"entries {first} to {last} are missing")

    def _tell(self, text: str) -> None:
        self.problems.append(f"chain {self.chain}: {text}")


__all__ = ["Report", "verify"]
