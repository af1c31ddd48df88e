"""The words of event rows, and who writes them."""

import re
from pathlib import Path

import pytest

import terrapod_server
from terrapod_server.runs import change, events, states
from terrapod_server.runs.events import Event
from terrapod_server.runs.model import Run, RunEvent

SERVER = Path(terrapod_server.__file__).parent
DOCS = Path(__file__).parents[4] / "docs"
#: Rows hold these: a word is never renamed.
WORDS = {
    "create", "queue", "start", "plan", "save", "finish", "lose", "confirm", "queue_apply", "apply", "discard", "cancel",
    "fail", "engine", "refused", "held", "cancel_requested", "force_cancel", "state_unknown", "lock_released",
    "late_state", "state_adopted", "state_dropped",
}  # fmt: skip


def test_words_stay_and_each_has_a_sentence() -> None:
    assert {event.value for event in Event} >= WORDS
    longest = RunEvent._meta.fields_map["event"].max_length  # type: ignore[attr-defined]
    assert all(len(event.value) <= longest for event in Event)
    assert all(re.fullmatch(r"[A-Z].*\.", event.sentence) for event in Event)
    assert len({event.sentence for event in Event}) == len(Event)
    assert events.markdown() in (DOCS / "run-states.md").read_text()


def test_one_module_writes_events() -> None:
    writes = re.compile(
        r"RunEvent\.(create|bulk_\w+|\w*_or_create|raw|filter\(.*\.update)|RunEvent\(|(INTO|UPDATE)\s+run_event\b"
    )
    found = {
        str(file.relative_to(SERVER))
        for file in SERVER.rglob("*.py")
        if "migrations" not in file.parts and writes.search(file.read_text().replace("class RunEvent(", ""))
    }
    assert found == {"runs/change.py"}


@pytest.mark.parametrize("event", sorted(states.MOVES))
def test_an_event_that_moves_a_run_is_not_a_note(event: Event) -> None:
    noted = object.__new__(change.Change)
    with pytest.raises(ValueError, match=event.value):
        noted.note(Run(id="run-1", workspace_id="ws-1"), event)
