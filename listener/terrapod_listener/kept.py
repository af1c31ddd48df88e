"""States that are not delivered yet: whole copies in HOME/spool/RUN/state-NUMBER, and why the server did not take one."""

import contextlib
import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from terrapod_listener import statefile
from terrapod_shared.files import write_private


def lock(home: Path) -> IO[bytes]:
    """Holds the home for one process, as long as the file is open; the pid is in it. Raises BlockingIOError."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (home / "lock").open("r+b" if (home / "lock").exists() else "w+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    os.pwrite(file.fileno(), b"%-20d\n" % os.getpid(), 0)
    return file


def place(home: Path, run_id: str, number: int) -> Path:
    return home / "spool" / run_id / f"state-{number}"


def blame(state: Path, reason: str) -> None:
    """Notes why the server did not take a state; a full disk costs the note."""
    with contextlib.suppress(OSError):
        write_private(state.with_suffix(".json"), json.dumps({"reason": reason}).encode())


def drop(state: Path) -> None:
    """Takes one delivered state out of the spool, and its folder when it was the last."""
    state.with_suffix(".json").unlink(missing_ok=True)
    state.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        state.parent.rmdir()


def spooled(home: Path) -> list[dict[str, Any]]:
    """What is in the spool: run_id, number, serial, lineage, md5, reason. The bytes say it, not a note beside them."""
    found = []
    for state in sorted((home / "spool").glob("*/state-*")):
        number = state.name.removeprefix("state-")
        if not number.isdecimal():
            continue
        reason = ""
        with contextlib.suppress(OSError, ValueError, KeyError):
            reason = json.loads(state.with_suffix(".json").read_bytes())["reason"]
        with contextlib.suppress(OSError, statefile.Torn), state.open("rb") as file:
            found.append(
                {
                    "run_id": state.parent.name,
                    "number": int(number),
                    **statefile.mark(file, whole=False),
                    "reason": reason,
                }
            )
    return found
