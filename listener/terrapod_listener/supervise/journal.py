"""What this listener is about to do and has done with each run, on disk before it does it; no run can reach it.

A folder a run below HOME/journal: `journal.json`, the phase's log, and what the
keeper of an apply leaves there. The steps, in order: `offered`, `accepted`,
`apply` (terraform may have begun), `spooled`,
`acknowledged` (the server has the state, or there is none). A record whose `left`
says why is over: it stays, with the work folder, until somebody drops it.

Beyond its end a lease is remembered in one line of HOME/journal/taken, so that
no work is begun twice: not by an answer that is shown again, nor for a server
that has come back from a backup.
"""

import logging
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any, Literal

import msgspec

from terrapod_listener.supervise import statefile
from terrapod_shared import wire
from terrapod_shared.files import write_private

log = logging.getLogger(__name__)
_FILE, _TAKEN = "journal.json", "taken"
#: Of so many phases at least it is known that they were taken.
_TAKEN_MOST = 5_000
_LINE = re.compile(r"[^ ]+ (?:plan|apply) [0-9]{1,10}")
_writing = threading.Lock()
Step = Literal["offered", "accepted", "apply", "spooled", "acknowledged"]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a later life of the listener needs to go on with a phase."""

    work: wire.Work  #: without anything secret
    step: Step = "offered"
    states: list[str] = []  #: where terraform may have left its state; what comes first wins over its equal
    before: wire.StateRef | None = None
    slot: int | None = None  #: which of the places for runs it has
    is_isolated: bool = False
    is_boxed: bool = False  #: a bubblewrap stands between the keeper and terraform
    keeper: int = 0  #: pid
    keeper_started: str = ""
    boot: str = ""  #: of which boot pid and start are
    left: str = ""  #: why the record and the work folder stay though there is nothing left to do; empty: there is


class Record:
    """The journal of one run."""

    def __init__(self, home: Path, facts: Facts) -> None:
        self.folder = home / "journal" / facts.work.run_id
        self.facts = facts

    @classmethod
    def of(cls, home: Path, work: wire.Work) -> "Record":
        """A new one; nothing is written yet."""
        return cls(home, Facts(work=msgspec.structs.replace(work, variables=[], run_token="", links={})))

    def write(self, step: Step, **more: Any) -> None:
        """On the disk when it returns. To be called in a thread. Raises OSError."""
        self.facts = msgspec.structs.replace(self.facts, step=step, **more)
        write_private(self.folder / _FILE, msgspec.json.encode(self.facts))
        statefile.sync(self.folder.parent)

    def remove(self) -> None:
        """To be called in a thread."""
        (self.folder / _FILE).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def remember(home: Path, work: wire.Work, *, is_ours: bool = True) -> None:
    """Notes that this host takes the work, or does not after all. On the disk when it returns. To be called in a thread.

    Raises OSError.
    """
    path = home / "journal" / _TAKEN
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _writing:
        lines = _lines(path)
        line = f"{work.run_id} {work.phase} {work.lease.number if is_ours else 0}"
        if len(lines) >= 2 * _TAKEN_MOST:
            write_private(path, "".join(f"{each}\n" for each in [*lines[-_TAKEN_MOST:], line]).encode())
            return
        with open(path, "ab", opener=_private) as file:
            file.write(f"\n{line}\n".encode())  # what a power cut left of the last line is a line of its own
            file.flush()
            os.fsync(file.fileno())


def has_taken(home: Path, work: wire.Work) -> bool:
    """Whether this host took that work before: a plan under this lease or a later one, an apply under any.

    An apply that was begun is never offered again. To be called in a thread.
    """
    number = 0
    for line in _lines(home / "journal" / _TAKEN):
        run_id, phase, last = line.split(" ")
        if (run_id, phase) == (work.run_id, work.phase):
            number = int(last)
    return number > 0 if work.phase == "apply" else number >= work.lease.number


def _lines(path: Path) -> list[str]:
    """Those that are whole."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.splitlines() if _LINE.fullmatch(line)]


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def records(home: Path) -> list[Record]:
    """All that an earlier life of this listener left. To be called in a thread."""
    found = []
    for path in sorted((home / "journal").glob(f"*/{_FILE}")):
        try:
            found.append(Record(home, msgspec.json.decode(path.read_bytes(), type=Facts)))
        except (OSError, msgspec.MsgspecError) as error:
            log.error("%s cannot be read: %s", path, error)  # noqa: TRY400
    return found
