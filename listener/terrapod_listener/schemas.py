"""Provider schemas of a plan: asked for once per engine, lock file and workspace, then cut down to what the plan speaks of.

With a large provider terraform takes seconds for them, and answers the same
until an engine or a provider changes. The workspace is part of the name, so
that no run can put a false answer before the run of another.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from terrapod_listener import terraform
from terrapod_shared import wire

KEPT_MOST = 50


class NotWhole(Exception):
    """The plan has errors in it."""


class Schemas:
    """Raw answers, in a folder of the listener's. All to be called in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def place(self, work: wire.Work, lock: bytes) -> Path:
        """Where the answer for a plan with this lock file is, or would be."""
        parts = (work.engine.sha256.encode(), work.workspace_id.encode(), lock)
        return self._folder / hashlib.sha256(b"\0".join(parts)).hexdigest()

    def keep(self, answer: Path, place: Path) -> None:
        """Keeps an answer, and forgets the ones that were not used for longest; a full disk costs only the time."""
        part = place.with_name(f".{place.name}.{answer.parent.name}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(answer, part)
            part.replace(place)
            known = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in known[KEPT_MOST:]:
                old.unlink(missing_ok=True)
        except OSError:
            part.unlink(missing_ok=True)


def digest(shown: Path, answer: Path, target: Path) -> terraform.Counts:
    """What the plan does; the schemas that it speaks of are written to `target`. Raises NotWhole."""
    plan, schemas = _read(shown), _read(answer)
    if plan.get("errored"):
        message = "the plan is not whole"
        raise NotWhole(message)
    target.write_text(json.dumps(terraform.filtered_schemas(schemas, plan)))
    with contextlib.suppress(OSError):
        os.utime(answer)  # the ones that are used are kept
    return terraform.read_plan(plan)


def _read(said: Path) -> Any:
    """What terraform said. Raises NotWhole: on a full disk the end of it is missing, though terraform ended well."""
    try:
        return json.loads(said.read_bytes())
    except ValueError:
        message = f"what terraform said of its plan is not whole ({said.name}): the listener's disk may be full"
        raise NotWhole(message) from None
