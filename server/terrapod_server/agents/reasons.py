"""Why a run waits, in words for people and in a word for programs. Pure: facts in, sentences out."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from terrapod_server.engines import rules
from terrapod_server.runs.states import Status

#: Where something other than the run itself says why it waits.
WAITING: Final = frozenset({Status.PENDING, Status.PLAN_QUEUED, Status.CONFIRMED, Status.APPLY_QUEUED})
#: Where a person has the word.
ASKING: Final = frozenset({Status.PLANNED, Status.PLANNED_AND_SAVED})
#: In `waits-for.kind`, each with what it says.
KINDS: Final[Mapping[str, str]] = {
    "lock": "somebody has locked the workspace",
    "unknown-state": "an apply of the workspace has left its state unknown, and an admin has to look at it",
    "queue": "other runs of the workspace come first",
    "configuration": "its configuration has not been uploaded",
    "person": "somebody has to approve or discard it",
    "pool": "its pool is not open to the workspace",
    "no-listener": "its pool has no listener that is there and takes work",
    "engine": "its engine is not known yet, no listener has it, or it is being fetched",
    "busy": "all slots of the pool are in use",
    "refused": "listeners gave it back",
    "listener": "a listener is free and is about to take it",
    "held": "its listener was lost while it applied",
}

Facts = Mapping[str, Any]


def needs_facts(status: Status, *, auto_apply: bool, status_message: str) -> bool:
    """Whether the database has to be asked: never for a run that is over, nor for one that nobody but a person holds."""
    if status is Status.APPLYING:
        return bool(status_message)  # held: else nothing is said there
    return status in WAITING or (status is Status.PLANNED and auto_apply)


def needs_facts_of(run: Any) -> bool:
    """The same of a run's row: whether why it waits, if it does, stands outside of it."""
    return needs_facts(run.status, auto_apply=run.auto_apply, status_message=run.status_message)


def of(status: Status, facts: Facts | None, *, since: str | None, status_message: str = "") -> dict[str, Any] | None:
    """`{kind, text, since}`, or None for a run that waits for nothing."""
    found = _found(status, facts, status_message)
    return {"kind": found[0], "text": found[1], "since": since} if found else None


def _found(status: Status, facts: Facts | None, refused: str) -> tuple[str, str] | None:
    if facts is None:
        return ("person", "waits for somebody to approve or discard it") if status in ASKING else None
    if status is Status.APPLYING:
        return _held(facts) if facts["lease_state"] == "held" else None
    if status in (Status.PLAN_QUEUED, Status.APPLY_QUEUED):
        return _for_a_listener(facts, refused)
    return _for_its_turn(status, facts)


def _for_its_turn(status: Status, facts: Facts) -> tuple[str, str] | None:
    if facts["run_lock_reason"] and not facts["plan_only"]:
        return "unknown-state", f"waits until somebody has looked at the state: {facts['run_lock_reason']}"
    if facts["locked"] and not facts["plan_only"]:
        reason = f": {facts['lock_reason']}" if facts["lock_reason"] else ""
        return "lock", f"waits until the workspace is unlocked{reason} (locked by {facts['locked_by_name']})"
    if facts["places"]:
        many = f"{facts['places']} {'run' if facts['places'] == 1 else 'runs'}"
        which = f"{facts['first_id']}, which is {facts['first_status'].replace('_', ' ')}"
        if Status(facts["first_status"]) in ASKING:
            which += " and waits for somebody's approval"
        return "queue", f"waits for {many} before it; next is {which}"
    if facts["configuration"] != "uploaded":
        return "configuration", "waits for its configuration to be uploaded"
    return ("person", "waits for somebody to approve or discard it") if status is Status.PLANNED else None


def _for_a_listener(facts: Facts, refused: str) -> tuple[str, str]:
    """The first of what stands in its way; what listeners said when they gave it back stands behind it."""
    kind, text = _pool(facts)
    if refused:
        kind = "refused" if kind == "listener" else kind
        text += f"; last: {refused}"
    if kind == "engine" and facts["lease_state"] != "offered":
        text += f". To go on, {_ways_out(facts)}"
    return kind, f"waits for a listener: {text}"


def _ways_out(facts: Facts) -> str:
    system, _, arch = (facts["platform"] or "OS_ARCH").partition("_")
    return rules.ways_out(facts["engine_tool"], facts["engine_version"], (system, arch))


def _pool(facts: Facts) -> tuple[str, str]:
    pool, engine = facts["pool"], f"{facts['engine_tool']} {facts['engine_version']}"
    if facts["lease_state"] == "offered":
        if not facts["has_engine"]:
            return "engine", f"{facts['listener']} is to take it once {engine} has been fetched"
        return "listener", f"{facts['listener']} is taking it"
    if not facts["is_open"]:
        return "pool", f"pool {pool} is not open to workspace {facts['workspace']}"
    if not facts["online"]:
        seen = written(facts["last_seen"])
        return "no-listener", f"none of pool {pool} has been seen since {seen}" if seen else f"pool {pool} has none"
    if not facts["taking"]:
        return "no-listener", f"those of pool {pool} take no more work"
    if lacking := _lacking_engine(facts):
        return "engine", lacking
    if facts["leases"] >= facts["slots"]:
        return "busy", f"{facts['leases']} of {facts['slots']} slots of pool {pool} are in use{_by(facts)}"
    return "listener", f"pool {pool} has a free slot"


def _lacking_engine(facts: Facts) -> str:
    tool, version = facts["engine_tool"], facts["engine_version"]
    if not version:
        return f"no {tool} is known that fits {facts['engine_wanted']}"
    if facts["has_engine"]:
        return ""
    away = f" but {facts['engine_at']}, which is not there," if facts["engine_at"] else ""
    return f"none of pool {facts['pool']}{away} has {tool} {version}, and no release site can give it"


def _by(facts: Facts) -> str:
    shown = [each for each in (facts["holders"] or "").split(",") if each]
    if not shown:
        return ""
    others = facts["leases"] - len(shown)
    return f", by {', '.join(shown)}" + (f" and {others} more" if others > 0 else "")


def _held(facts: Facts) -> tuple[str, str]:
    name = facts["listener"] or "its listener, which has left its pool,"
    seen = written(facts["listener_seen"])
    return "held", (
        f"listener {name} was lost while it applied{f' (last seen {seen})' if seen else ''}. It may hold the only copy of "
        "the state: bring it back, and the state arrives by itself. An admin may give the run up instead "
        f"(terrapod runs release {facts['id']}): the workspace stays locked then until its state has been checked, and a "
        "state that comes after all is kept aside"
    )


def written(at: Any) -> str:
    """A time of the database, which SQLite gives as text, in whole seconds; empty for none."""
    if at is None:
        return ""
    found = datetime.fromisoformat(at) if isinstance(at, str) else at
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return f"{found:%Y-%m-%d %H:%M:%S} UTC"
