"""The words of event rows, each with a sentence for people, and an event as it is written. Pure.

Rows outlive the program that wrote them: a word is never changed, and a program that reads a row may not know its word.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self

from terrapod_shared import clock


class Event(StrEnum):
    """Every word that an event row may hold. Those in `states.NEXT` move a run along, the others move nothing."""

    sentence: str

    def __new__(cls, word: str, sentence: str) -> Self:
        event = str.__new__(cls, word)
        event._value_ = word
        event.sentence = sentence
        return event

    CREATE = "create", "The run was created."
    QUEUE = "queue", "The run is next in its workspace and waits for a listener to plan it."
    START = "start", "A listener started to plan or to apply."
    PLAN = "plan", "The plan finished and waits for a decision."
    SAVE = "save", "The plan finished and was saved; it does not hold up the workspace."
    FINISH = "finish", "The plan finished and there is nothing to apply."
    LOSE = "lose", "The listener that planned was lost, or gave the plan back; the plan is queued again."
    CONFIRM = "confirm", "The plan was confirmed."
    QUEUE_APPLY = "queue_apply", "The run waits for a listener to apply it."
    APPLY = "apply", "The apply finished."
    DISCARD = "discard", "The run was discarded."
    CANCEL = "cancel", "The run was canceled."
    FAIL = "fail", "The run failed."
    ENGINE = "engine", "The run waits for a version of its engine that cannot be had now."
    REFUSED = "refused", "A listener gave the work back."
    HELD = "held", "The listener was lost while it applied; the run waits for it, or for somebody to release the run."
    CANCEL_REQUESTED = "cancel_requested", "Somebody asked the listener to interrupt the run."
    FORCE_CANCEL = "force_cancel", "Somebody asked the listener to kill the run."
    STATE_UNKNOWN = "state_unknown", "The run ended and nobody knows its state; it keeps the workspace's lock."
    LOCK_RELEASED = "lock_released", "An admin freed the lock that the run had kept."
    LATE_STATE = "late_state", "A state arrived after the lease had ended; it waits for an admin."
    STATE_ADOPTED = "state_adopted", "An admin made the late state the current one."
    STATE_DROPPED = "state_dropped", "An admin dropped the late state."


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An event as outlets get it. `run_id` is None for an event of the workspace alone; `id` is 0 until it is written."""

    workspace_id: str
    run_id: str | None
    event: str  #: a word of `Event`, or of a later release
    status: str = ""  #: of the run, after the event
    user_id: str = ""
    description: str = ""
    at: datetime = field(default_factory=clock.now)
    id: int = 0


def markdown() -> str:
    """The words as a table for the documents."""
    return "\n".join(["| Event | |", "|---|---|", *(f"| `{event.value}` | {event.sentence} |" for event in Event)])
