"""What the audit room does every so often."""

import logging
from datetime import timedelta

from terrapod_server.audit import actions
from terrapod_server.audit.writer import Writer
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.periodic import Job

log = logging.getLogger("terrapod.audit")


async def purge(services: Services) -> None:
    days = services.config.audit.retention_days
    writer = Writer.of(services)
    if writer is None or not days:
        return
    removed = await actions.purge(writer.ledger, timedelta(days=days), writer.chain)
    if removed:
        log.info("%s audit entries older than %s days were removed", removed, days)


#: Any process may do it, all at once too: a floor only rises, and each step is one transaction.
JOBS = (Job("purge audit log", 3600, purge),)
