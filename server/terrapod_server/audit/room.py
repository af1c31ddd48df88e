"""The room of the record of changes and refusals."""

import logging

from terrapod_server.audit import api, jobs
from terrapod_server.audit.writer import Writer
from terrapod_server.kit.room import Room
from terrapod_server.kit.services import Services

log = logging.getLogger("terrapod.audit")


async def _start(services: Services) -> None:
    writer = Writer.of(services)
    if writer is not None:
        await writer.start()
    else:
        log.warning("audit.enabled is false: nothing of what is done is recorded")


async def _stop(services: Services) -> None:
    writer = Writer.of(services)
    if writer is not None and writer.is_running:
        await writer.stop()


ROOM = Room(
    name="audit",
    tag=("audit", "the record of changes and refusals"),
    models=("model",),
    resources=api.RESOURCES,
    endpoints=api.ENDPOINTS,
    jobs=jobs.JOBS,
    start=_start,
    stop=_stop,
)
