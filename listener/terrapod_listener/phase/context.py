"""What a phase is about and what it works with, from its offer to its end."""

from dataclasses import dataclass
from pathlib import Path

from terrapod_listener.config import Config
from terrapod_listener.engine.install import Engines
from terrapod_listener.link.client import Server
from terrapod_listener.sandbox.isolation import Cell
from terrapod_listener.supervise.journal import Record
from terrapod_shared import wire


@dataclass(frozen=True)
class Context:
    """Of one phase. `cell` is where its programs are started, `record` its part of the journal."""

    home: Path  #: the listener's
    server: Server
    engines: Engines
    config: Config
    work: wire.Work
    cell: Cell
    record: Record

    @property
    def folder(self) -> Path:
        """The run's folder: the same path in plan and apply."""
        return self.home / "work" / self.work.run_id
