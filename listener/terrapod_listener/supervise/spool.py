"""States that are not delivered yet: whole copies in HOME/spool/RUN/state-NUMBER, and why the server did not take one."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from terrapod_listener.supervise import statefile
from terrapod_shared.files import write_private

_TRIES = 10
_TOLD = "running.json"


def lock(home: Path) -> IO[bytes]:
    """Holds the home for one process, as long as the file is open; the pid is in it. Raises BlockingIOError."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (home / "lock").open("r+b" if (home / "lock").exists() else "w+b", buffering=0)
    for attempt in range(_TRIES):  # somebody who only asks who holds it does so for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == _TRIES - 1:
                file.close()
                raise
            time.sleep(0.02)
        else:
            break
    os.pwrite(file.fileno(), b"%-20d\n" % os.getpid(), 0)
    return file


def holder(home: Path) -> int | None:
    """The pid of the listener that runs with this home; None where none does."""
    try:
        with (home / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        text = (home / "lock").read_text().strip()
        return int(text) if text.isdecimal() else None
    return None


def tell(home: Path, **facts: Any) -> None:
    """What `status` is to say of the running listener; a full disk costs only that."""
    with contextlib.suppress(OSError):
        write_private(home / _TOLD, json.dumps(facts).encode())


def told(home: Path) -> dict[str, Any]:
    """What was told last."""
    try:
        found: dict[str, Any] = json.loads((home / _TOLD).read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def place(home: Path, run_id: str, number: int) -> Path:
    return home / "spool" / run_id / f"state-{number}"


def blame(state: Path, reason: str, *, is_final: bool = False) -> None:
    """Notes why the server did not take a state; a full disk costs the note.

    `is_final` puts it aside: the same bytes would be refused again, so that
    only a person sends them again, or a listener that has joined again.
    """
    with contextlib.suppress(OSError):
        note = {"reason": reason, "is_final": is_final}
        write_private(state.with_suffix(".json"), json.dumps(note).encode())


def drop(state: Path) -> None:
    """Takes one delivered state out of the spool, and its folder when it was the last."""
    state.with_suffix(".json").unlink(missing_ok=True)
    state.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        state.parent.rmdir()


def count(home: Path, live: Collection[str]) -> int:
    """How many states are in the spool, but those of the runs `live`; none is opened. To be called in a thread."""
    found = (path for path in (home / "spool").glob("*/state-*") if path.name.removeprefix("state-").isdecimal())
    return sum(path.parent.name not in live for path in found)


def spooled(home: Path) -> list[dict[str, Any]]:
    """What is in the spool: run_id, number, serial, lineage, md5, reason, is_final. The bytes say it, but for the reason."""
    found = []
    for state in sorted((home / "spool").glob("*/state-*")):
        number = state.name.removeprefix("state-")
        if not number.isdecimal():
            continue
        reason, is_final = "", False
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(state.with_suffix(".json").read_bytes())
            reason, is_final = note["reason"], bool(note.get("is_final"))
        with contextlib.suppress(OSError, statefile.Torn), state.open("rb") as file:
            found.append(
                {
                    "run_id": state.parent.name,
                    "number": int(number),
                    **statefile.mark(file, whole=False),
                    "reason": reason,
                    "is_final": is_final,
                }
            )
    return found
