"""May this state follow that one? Pure."""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What becomes of a state that somebody sends."""

    ACCEPT = "accept"
    REPEAT = "repeat"
    CONFLICT = "conflict"


@dataclass(frozen=True)
class Mark:
    """What tells states apart. Who sends one announces serial and lineage; the bytes may say others.

    `bytes_lineage` is the one in the bytes, or empty where they are not here
    yet or hold none.
    """

    serial: int
    lineage: str
    md5: str
    bytes_lineage: str = ""


def judge(current: Mark | None, sent: Mark, *, force: bool = False, grows: bool = False) -> tuple[Verdict, str]:
    """The verdict and, for a conflict, the reason. `force` lets go of serial and lineage.

    Equal serial and md5 is a repeat, so that an upload whose answer was lost
    can be sent again; it is one even with `force`. An announced lineage follows
    the one that was announced before it, and the one in the bytes of the
    current state; an absent one follows any. `grows`: the current one is
    an intermediate state of the run that sends this one; terraform counts from
    what it had read, and may come back to a serial.
    """
    if current is None:
        return Verdict.ACCEPT, ""
    known = {current.lineage, current.bytes_lineage} - {""}
    same_lineage = not sent.lineage or not known or sent.lineage in known
    if same_lineage and sent.serial == current.serial and sent.md5 == current.md5:
        return Verdict.REPEAT, ""
    if force:
        return Verdict.ACCEPT, ""
    if not same_lineage:
        return Verdict.CONFLICT, f"the lineage {sent.lineage} is not that of the current state, {current.lineage}"
    if sent.serial == current.serial and grows:
        return Verdict.ACCEPT, ""
    if sent.serial == current.serial:
        return Verdict.CONFLICT, f"the serial {sent.serial} is there already, with other content"
    if sent.serial < current.serial:
        return Verdict.CONFLICT, f"the serial {sent.serial} is lower than that of the current state, {current.serial}"
    return Verdict.ACCEPT, ""


def foreign(current: Mark | None, lineage: str) -> str:
    """Why bytes with this lineage are of another state than the current one's bytes; empty where they may follow."""
    before = current.bytes_lineage if current else ""
    if lineage and before and lineage != before:
        return f"the lineage in the bytes, {lineage}, is not that of the current state's bytes, {before}"
    return ""
