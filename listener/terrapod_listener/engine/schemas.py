"""Provider schemas of a plan: asked for once per engine, lock file and workspace, then cut down to what the plan speaks of.

With a large provider terraform takes seconds for them, and answers the same
until an engine or a provider changes. The workspace is part of the name, so
that no run can put a false answer before the run of another.
"""

import contextlib
import hashlib
import mmap
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from terrapod_listener.engine import argv
from terrapod_shared import wire

KEPT_MOST = 50
#: Bytes of a plan's JSON or of schemas; the server takes as many of either.
SAID_MOST = wire.ARTIFACT_MOST["plan-json"]
T = TypeVar("T")


class _There(msgspec.Struct):
    """An object in which nothing is looked at."""


class _Change(msgspec.Struct, omit_defaults=True):
    actions: list[str] = []
    importing: _There | None = None
    generated_config: str | None = None


class _Entry(msgspec.Struct, omit_defaults=True):
    mode: str = ""
    type: str = ""
    provider_name: str = ""
    previous_address: str | msgspec.UnsetType = msgspec.UNSET
    change: _Change = msgspec.field(default_factory=_Change)


class _Deferred(msgspec.Struct, omit_defaults=True):
    resource_change: _Entry = msgspec.field(default_factory=_Entry)


class _Plan(msgspec.Struct, omit_defaults=True):
    """What is looked at of `terraform show -json`; values of resources, by far the most of it, are passed over."""

    errored: bool = False
    applyable: bool | None = None
    resource_changes: list[_Entry] = []
    resource_drift: list[_Entry] = []
    deferred_changes: list[_Deferred] = []
    output_changes: dict[str, _Change] = {}


class _Provider(msgspec.Struct):
    provider: msgspec.Raw = msgspec.Raw(b"{}")
    resource_schemas: dict[str, msgspec.Raw] = {}
    data_source_schemas: dict[str, msgspec.Raw] = {}


class _Schemas(msgspec.Struct):
    format_version: str = "1.0"
    provider_schemas: dict[str, _Provider] = {}


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


def digest(shown: Path, answer: Path, target: Path) -> argv.Counts:
    """What the plan does; the schemas that it speaks of are written to `target`. Raises NotWhole."""
    plan: dict[str, Any] = msgspec.to_builtins(_decoded(_mapped(shown), _Plan, shown))
    if plan.get("errored"):
        raise NotWhole("the plan is not whole")
    schemas = _decoded(_mapped(answer), _Schemas, answer)
    known = {name: msgspec.structs.asdict(each) for name, each in schemas.provider_schemas.items()}
    about = {"format_version": schemas.format_version, "provider_schemas": known}
    target.write_bytes(msgspec.json.encode(argv.filtered_schemas(about, plan)))
    with contextlib.suppress(OSError):
        os.utime(answer)  # the ones that are used are kept
    return argv.read_plan(plan)


def _mapped(said: Path) -> mmap.mmap | bytes:
    """A file that no run can reach, without a copy of it in memory. Raises NotWhole for one that nobody would take."""
    size = said.stat().st_size
    if size > SAID_MOST:
        raise NotWhole(
            f"what terraform said of its plan has {size} bytes, and {SAID_MOST} are the most that are read ({said.name})"
        )
    with said.open("rb") as file:  # it is let go of with the last piece that somebody holds
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""


def _decoded(raw: mmap.mmap | bytes, kind: type[T], said: Path) -> T:
    """What terraform said. Raises NotWhole: on a full disk the end of it is missing, though terraform ended well."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise NotWhole(
            f"what terraform said of its plan is not whole ({said.name}): the listener's disk may be full"
        ) from None
