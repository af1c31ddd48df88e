"""The room of runs, plans, applies and logs."""

from terrapod_server.configs import ports as configs
from terrapod_server.identity import ports as identity
from terrapod_server.kit.room import Room
from terrapod_server.kit.services import Services
from terrapod_server.runs import actions, api, deleted, jobs, leases, model, pages, ports
from terrapod_server.states import ports as states
from terrapod_server.workspaces import ports as workspaces


async def _start(_services: Services) -> None:
    await leases.on_start()


ROOM = Room(
    name="runs",
    tag=("runs", "runs, plans, applies and logs"),
    models=("model",),
    sealed=model.SEALED,
    resources=api.RESOURCES,
    endpoints=api.ENDPOINTS,
    pages=pages.PAGES,
    things=api.THINGS,
    jobs=jobs.JOBS,
    needs=(ports.POOLS, ports.WAITS),
    provides=(
        identity.LEASES.by(leases),
        workspaces.RUNS.by(actions),
        workspaces.BEFORE_DELETION.by(deleted.before_workspace_deleted),
        workspaces.ON_DELETION.by(deleted.on_workspace_deleted),
        workspaces.REMOVE_FILES.by(deleted.clear),
        configs.RUNS.by(actions),
        states.RUNS.by(actions),
    ),
    start=_start,
)
