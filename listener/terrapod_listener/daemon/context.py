"""What heartbeats, claims and deliveries of one daemon share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from terrapod_listener.config import Config
from terrapod_listener.daemon.draining import Draining
from terrapod_listener.daemon.jobs import Jobs
from terrapod_listener.daemon.renewal import Renewal
from terrapod_listener.engine.install import Engines
from terrapod_listener.link.client import Server
from terrapod_listener.sandbox.isolation import Isolation
from terrapod_shared import wire


@dataclass(frozen=True)
class Context:
    """Of one daemon, once it knows what its host offers."""

    home: Path
    config: Config
    server: Server
    isolation: Isolation
    engines: Engines
    local_engines: Sequence[wire.LocalEngine]  #: those of the host, as the server is told
    jobs: Jobs
    draining: Draining
    renewal: Renewal
