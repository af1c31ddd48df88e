"""The life of a run as a table; everything about statuses is read off it. Pure.

A run plans, may wait for a person, and may apply. `NEXT` says for each status
which events can happen and where they lead; a status that leads nowhere is
final. The statuses are HashiCorp's, since terraform, go-tfe and pytfe check
them.
"""

from enum import StrEnum
from typing import Final

from terrapod_server.runs.events import Event
from terrapod_shared.errors import IllegalTransition


class Status(StrEnum):
    """Where in its life a run is."""

    PENDING = "pending"
    PLAN_QUEUED = "plan_queued"
    PLANNING = "planning"
    PLANNED = "planned"
    PLANNED_AND_SAVED = "planned_and_saved"
    PLANNED_AND_FINISHED = "planned_and_finished"
    CONFIRMED = "confirmed"
    APPLY_QUEUED = "apply_queued"
    APPLYING = "applying"
    APPLIED = "applied"
    DISCARDED = "discarded"
    CANCELED = "canceled"
    ERRORED = "errored"


S, E = Status, Event
_STOP: Final = {E.CANCEL: S.CANCELED, E.FAIL: S.ERRORED}
_ANSWER: Final = {E.CONFIRM: S.CONFIRMED, E.DISCARD: S.DISCARDED, E.FAIL: S.ERRORED}
NEXT: Final[dict[Status, dict[Event, Status]]] = {
    S.PENDING: {E.QUEUE: S.PLAN_QUEUED, E.DISCARD: S.DISCARDED, **_STOP},
    S.PLAN_QUEUED: {E.START: S.PLANNING, **_STOP},
    S.PLANNING: {
        E.PLAN: S.PLANNED,
        E.SAVE: S.PLANNED_AND_SAVED,
        E.FINISH: S.PLANNED_AND_FINISHED,
        E.LOSE: S.PLAN_QUEUED,
        **_STOP,
    },
    S.PLANNED: _ANSWER,
    S.PLANNED_AND_SAVED: _ANSWER,
    S.CONFIRMED: {E.QUEUE_APPLY: S.APPLY_QUEUED, **_STOP},
    S.APPLY_QUEUED: {E.START: S.APPLYING, **_STOP},
    S.APPLYING: {E.APPLY: S.APPLIED, **_STOP},
}
FINAL: Final = frozenset(Status) - NEXT.keys()
UNFINISHED: Final = frozenset(NEXT)
#: The events that move a run.
MOVES: Final = frozenset(event for row in NEXT.values() for event in row)
#: While a listener works on it.
RUNNING: Final = frozenset({S.PLANNING, S.APPLYING})
#: From its confirmation to its end a run locks its workspace.
LOCKING: Final = frozenset({S.CONFIRMED, S.APPLY_QUEUED, S.APPLYING})

#: What an event makes of (plan's, apply's) status; None leaves it.
_PHASES: Final[dict[Event, tuple[str | None, str | None]]] = {
    E.QUEUE: ("queued", None),
    E.PLAN: ("finished", None),
    E.SAVE: ("finished", None),
    E.FINISH: ("finished", "unreachable"),
    E.LOSE: ("queued", None),
    E.CONFIRM: (None, None),
    E.QUEUE_APPLY: (None, "queued"),
    E.APPLY: (None, "finished"),
}
_BEFORE_PLAN_ENDS: Final = frozenset({S.PENDING, S.PLAN_QUEUED, S.PLANNING})


def after(status: Status, event: Event) -> Status:
    """Where the event leads. Raises IllegalTransition, which says what is so."""
    try:
        return NEXT[status][event]
    except KeyError:
        message = f"cannot {event.value.replace('_', ' ')} a run that is {status.value}"
        raise IllegalTransition(message) from None


def allows(status: Status, event: Event) -> bool:
    return event in NEXT.get(status, {})


def phases_after(status: Status, event: Event) -> tuple[str | None, str | None]:
    """The new statuses of plan and apply when `event` happens at `status`."""
    if event is E.START:
        return ("running", None) if status is S.PLAN_QUEUED else (None, "running")
    if event in _PHASES:
        return _PHASES[event]
    word = "errored" if event is E.FAIL else "canceled"
    if status in _BEFORE_PLAN_ENDS:
        return word, "unreachable"
    return None, word if status is S.APPLYING or event is E.FAIL else "unreachable"


def is_cancelable(status: Status) -> bool:
    """Whether a person may cancel: neither final nor waiting for a person."""
    return allows(status, E.CANCEL)


def timestamp_name(status: Status) -> str:
    """The member of `status-timestamps` that tells when the status was reached."""
    return status.value.replace("_", "-") + "-at"


def mermaid() -> str:
    """The table as a diagram for the documents."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    lines += [
        f"    {status.value} --> {to.value}: {event.value}" for status, row in NEXT.items() for event, to in row.items()
    ]
    lines += [f"    {status.value} --> [*]" for status in Status if status in FINAL]
    return "\n".join(lines)
