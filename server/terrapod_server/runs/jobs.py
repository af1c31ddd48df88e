"""What the runs room does every so often."""

from terrapod_server.kit.services import Services
from terrapod_server.kit.work.periodic import Job
from terrapod_server.runs import deleted, engines, leases, logs


async def _purge_outbox(services: Services) -> None:
    await services.outbox.purge()


#: What they do, they do by guarded statements, and a log that two of them seal is the same twice.
JOBS = (
    Job("sweep leases", 2, leases.sweep),
    Job("settle engines", 5, engines.settle_waiting),
    Job("seal logs", 30, logs.seal_left),
    Job("clear deleted workspaces", 5, deleted.sweep),
    Job("purge outbox", 3600, _purge_outbox),
)
