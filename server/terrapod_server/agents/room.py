"""The room of pools and their listeners, of what listeners call, and of late states."""

from terrapod_server.agents import api, jobs, model, pools, waits
from terrapod_server.agents.late import actions as late_actions
from terrapod_server.agents.late import api as late
from terrapod_server.agents.protocol import deliveries
from terrapod_server.kit.room import Room
from terrapod_server.kit.services import Services
from terrapod_server.runs import ports as runs
from terrapod_server.workspaces import ports as workspaces


async def _start(_services: Services) -> None:
    await pools.ensure_default_pool()


async def _stop(_services: Services) -> None:
    await deliveries.settle()


ROOM = Room(
    name="agents",
    tag=("pools", "pools and their listeners, and what listeners call; late states"),
    models=("model",),
    sealed=model.SEALED,
    resources=(*api.RESOURCES, *late.RESOURCES),
    extends=(*api.EXTENSIONS, waits.EXTENSION, late.EXTENSION),
    endpoints=(*api.ENDPOINTS, *late.ENDPOINTS),
    things=(*api.THINGS, *late.THINGS),
    jobs=jobs.JOBS,
    provides=(
        workspaces.POOLS.by(pools),
        workspaces.ON_DELETION.by(pools.delete_for_workspace),
        workspaces.ON_DELETION.by(late_actions.delete_for_workspace),
        runs.POOLS.by(pools),
        runs.WAITS.by(waits),
    ),
    start=_start,
    stop=_stop,
)
