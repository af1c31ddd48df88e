"""The words for why a run waits: pure."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from terrapod_server.agents import reasons
from terrapod_server.runs.states import FINAL, Status
from terrapod_shared import clock

FACTS: dict[str, Any] = {
    "id": "run-1", "plan_only": False, "lease_state": "ready", "engine_tool": "terraform", "engine_version": "1.11.4",
    "engine_wanted": "~> 1.11", "engine_at": None,
    "workspace": "prod", "locked": False, "lock_reason": "", "locked_by_name": "", "pool": "dmz",
    "configuration": "uploaded", "listener": None, "listener_seen": None, "places": 0, "first_id": None,
    "first_status": None, "online": 1, "taking": 1, "slots": 2, "last_seen": None, "leases": 0, "holders": None,
    "platform": "linux_arm64", "is_open": True, "has_engine": True, "run_lock_reason": "",
}  # fmt: skip


def ways(version: str) -> str:
    return (
        f". To go on, import it at the server (terrapod-server binaries import terraform_{version}_linux_arm64.zip --data DIR, "
        "or --config FILE), or name a program of a listener's host at the top of its listener.toml "
        f'(engines = [{{ tool = "terraform", version = "{version}", path = "/usr/local/bin/terraform" }}]) and restart the listener'
    )


@pytest.mark.parametrize(
    ("status", "facts", "kind", "text"),
    [
        (Status.PLAN_QUEUED, {"online": 0}, "no-listener", "waits for a listener: pool dmz has none"),
        (Status.PLAN_QUEUED, {"leases": 2, "holders": "run-7"}, "busy", "waits for a listener: 2 of 2 slots of pool dmz are in use, by run-7 and 1 more"),
        (Status.APPLY_QUEUED, {"has_engine": False}, "engine", "waits for a listener: none of pool dmz has terraform 1.11.4, and no release site can give it" + ways("1.11.4")),
        (Status.PLAN_QUEUED, {"has_engine": False, "engine_at": "eu"}, "engine", "waits for a listener: none of pool dmz but eu, which is not there, has terraform 1.11.4, and no release site can give it" + ways("1.11.4")),
        (Status.PLAN_QUEUED, {"engine_version": ""}, "engine", "waits for a listener: no terraform is known that fits ~> 1.11" + ways("VERSION")),
        (Status.PLAN_QUEUED, {"lease_state": "offered", "listener": "eu", "has_engine": False}, "engine", "waits for a listener: eu is to take it once terraform 1.11.4 has been fetched"),
        (Status.PENDING, {"places": 1, "first_id": "run-0", "first_status": "applying"}, "queue", "waits for 1 run before it; next is run-0, which is applying"),
        (Status.CONFIRMED, {"locked": True, "locked_by_name": "ann"}, "lock", "waits until the workspace is unlocked (locked by ann)"),
        (Status.PENDING, {"run_lock_reason": "look", "locked": True, "places": 1}, "unknown-state", "waits until somebody has looked at the state: look"),
    ],
)  # fmt: skip
def test_each_kind_has_its_sentence(status: Status, facts: dict[str, Any], kind: str, text: str) -> None:
    found = reasons.of(status, FACTS | facts, since="2026-01-01T00:00:00.000Z")
    assert found == {"kind": kind, "text": text, "since": "2026-01-01T00:00:00.000Z"}
    assert kind in reasons.KINDS


def test_a_speculative_plan_waits_for_no_lock() -> None:
    assert (
        reasons.of(Status.PENDING, FACTS | {"locked": True, "run_lock_reason": "look", "plan_only": True}, since=None)
        is None
    )


@pytest.mark.parametrize("status", sorted(FINAL))
def test_what_is_over_is_not_asked_about(status: Status) -> None:
    assert not reasons.needs_facts(status, auto_apply=True, status_message="something")
    assert reasons.of(status, None, since=None) is None


def test_lengths_and_times_are_words() -> None:
    assert [clock.duration_text(s) for s in (0.2, 59.4, 60, 185, 7200, 7860)] == [
        "0 s", "59 s", "1 min", "3 min 5 s", "2 h", "2 h 11 min",
    ]  # fmt: skip
    at = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)
    assert reasons.written(at.astimezone(timezone(timedelta(hours=2)))) == "2026-01-02 03:04:05 UTC"
    assert reasons.written("2026-01-02 03:04:05.000600+00:00") == "2026-01-02 03:04:05 UTC"
    assert reasons.written(None) == ""
