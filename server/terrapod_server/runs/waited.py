"""How long a phase has waited before it begins, and for what: a sentence of its log."""

from datetime import datetime

from terrapod_server.runs import states
from terrapod_server.runs.events import Event
from terrapod_server.runs.model import Phase, Run, RunEvent
from terrapod_shared import clock

#: Shorter waits are not told in a log.
NOTICEABLE_S = 5.0


async def text(run: Run, phase: Phase) -> str:
    """What the log of a phase that begins says of its wait; empty where that was not noticeable."""
    queued = _at(phase.status_timestamps, "queued-at")
    if queued is None:
        return ""
    parts = []
    if phase.kind == "plan":
        turn = _between(_at(run.status_timestamps, "plan-queueable-at"), _at(run.status_timestamps, "plan-queued-at"))
        if turn >= NOTICEABLE_S:
            parts.append(f"{clock.duration_text(turn)} for {await _before(run)}")
    else:
        confirmed = _at(run.status_timestamps, "confirmed-at")
        approval = _between(_at(run.status_timestamps, "planned-at"), confirmed)
        if approval >= NOTICEABLE_S and run.confirmed_by_id:
            parts.append(f"{clock.duration_text(approval)} for somebody's approval")
        turn = _between(confirmed, queued)
        if turn >= NOTICEABLE_S:
            parts.append(f"{clock.duration_text(turn)} for its turn in the workspace")
    listener = _between(queued, clock.now())
    if listener >= NOTICEABLE_S:
        reasons_given = RunEvent.filter(run_id=run.id, event__in=[Event.REFUSED, Event.ENGINE], at__gte=queued)
        refused = await reasons_given.order_by("-id").first()
        why = f" (at last {refused.description})" if refused else ""
        parts.append(f"{clock.duration_text(listener)} for a listener{why}")
    text = f"Waited {', '.join(parts)}." if parts else ""
    return "".join(letter for letter in text if letter.isprintable())  # a listener's reason ends in other people's logs


async def _before(run: Run) -> str:
    """What it waited for before it was planned, as far as the rows still tell."""
    if run.plan_only:
        return "its configuration"
    earlier = Run.filter(workspace_id=run.workspace_id, plan_only=False, id__lt=run.id, status__in=list(states.FINAL))
    found = await earlier.order_by("-id").first()
    ended = _at(found.status_timestamps, states.timestamp_name(found.status)) if found else None
    if found is not None and ended is not None and ended > run.created_at:
        return f"{found.id}, which came before it"
    return "its turn in the workspace"


def _at(stamps: dict[str, str], name: str) -> datetime | None:
    text = stamps.get(name)
    return datetime.fromisoformat(text) if text else None


def _between(first: datetime | None, second: datetime | None) -> float:
    return (second - first).total_seconds() if first is not None and second is not None else 0.0
