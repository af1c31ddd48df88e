"""States that are not delivered yet: copies in the spool, and what a killed listener left in its work folders."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
from pathlib import Path
from typing import IO

import msgspec

from terrapod_listener import workdir
from terrapod_shared import wire
from terrapod_shared.files import write_private

log = logging.getLogger(__name__)
JOB = "job.json"


def lock(home: Path) -> IO[bytes]:
    """Holds the home for one process, as long as the file is open. Raises BlockingIOError."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (home / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    return file


def note(
    folder: Path,
    work: wire.Work,
    state: Path | None = None,
    module: Path | None = None,
    seed: wire.StateRef | None = None,
) -> None:
    """What a later life of the listener needs to deliver the state of this folder."""
    facts = {
        "run_id": work.run_id,
        "phase": work.phase,
        "number": work.lease.number,
        "state": str(state) if state else "",
        "module": str(module) if module else "",
        "seed": msgspec.to_builtins(seed) if seed else None,
    }
    write_private(folder / JOB, json.dumps(facts).encode())


def keep(state: Path, spools: Path, run_id: str, number: int, mark: wire.StateRef) -> Path:
    """A copy on the disk itself, with what is needed to deliver it after a restart."""
    kept = spools / run_id / f"state-{number}"
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = kept.with_name(f".{kept.name}.part")
    with state.open("rb") as source, part.open("wb") as file:
        part.chmod(0o600)
        shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    part.replace(kept)
    facts = {"run_id": run_id, "number": number, **msgspec.to_builtins(mark)}
    write_private(kept.with_suffix(".json"), json.dumps(facts).encode())
    return kept


def drop(kept: Path) -> None:
    """Takes one delivered state out of the spool, and its folder when it was the last."""
    kept.with_suffix(".json").unlink(missing_ok=True)
    kept.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        kept.parent.rmdir()


def recover(folder: Path, spools: Path) -> bool:
    """Copies an apply's newer state out of a left folder. Whether the folder may go."""
    try:
        facts = json.loads((folder / JOB).read_bytes())
        if facts["phase"] != "apply" or not facts["module"]:
            return True
        errored = Path(facts["module"]) / "errored.tfstate"
        state = errored if errored.is_file() else Path(facts["state"])
        mark = workdir.state_mark(state)
        if mark is None or msgspec.to_builtins(mark) == facts["seed"]:
            return True
        if not (spools / facts["run_id"] / f"state-{facts['number']}.json").exists():
            keep(state, spools, facts["run_id"], facts["number"], mark)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError) as error:
        log.error("%s stays: the state in it cannot be kept: %s", folder, error)  # noqa: TRY400
        return False
    return True


def recover_all(home: Path) -> None:
    """Of all folders below HOME/work, before they go. To be called in a thread."""
    for folder in sorted((home / "work").glob("*")):
        if recover(folder, home / "spool"):
            workdir.remove(folder)
