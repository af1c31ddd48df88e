"""What the agents room does every so often."""

import logging
import time
from datetime import timedelta

from terrapod_server.agents import listeners, nonces
from terrapod_server.agents.protocol import dispatch
from terrapod_server.kit.caller import Deed
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.periodic import Job
from terrapod_shared import clock

log = logging.getLogger(__name__)
#: For so long a server hears its listeners before it forgets any.
_HEARING_S = 3600.0
_SINCE = "listeners are heard since"


async def forget_listeners(services: Services) -> None:
    """Removes listeners that have been offline for the days of `listeners.forget_after`.

    Not within an hour of a start: a server that was down for as long, or whose database was restored from a backup,
    first hears who is there.
    """
    days = services.config.listeners.forget_after
    since = services.remembered.setdefault(_SINCE, time.monotonic())
    if not days or time.monotonic() - since < _HEARING_S:
        return
    for row in await listeners.forget(clock.now() - timedelta(days=days)):
        log.warning("listener %s (%s) was offline for over %s days and is forgotten", row.name, row.id, days)
        deed = Deed(
            actor_kind="server", actor="terrapod-server", method="DELETE", path="/api/v2/listeners/{listener}",
            resource_type="listeners", resource_id=row.id, status=204, program=f"listeners.forget_after = {days}",
        )  # fmt: skip
        services.recorder.note(deed)
        await services.bus.publish(f"listener:{row.id}")


JOBS = (
    Job("purge nonces", 30, nonces.purge),
    Job("forget listeners", 600, forget_listeners),
    Job("write down idle listeners", 2, dispatch.write_down),
)
