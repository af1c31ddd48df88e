"""The room of state versions and outputs."""

from terrapod_server.kit.room import Room
from terrapod_server.states import actions, api, model, ports
from terrapod_server.workspaces.ports import BEFORE_DELETION, ON_DELETION

ROOM = Room(
    name="states",
    tag=("states", "state versions and outputs"),
    models=("model",),
    sealed=model.SEALED,
    resources=api.RESOURCES,
    extends=(api.EXTENSION,),
    endpoints=api.ENDPOINTS,
    things=api.THINGS,
    needs=(ports.RUNS,),
    provides=(BEFORE_DELETION.by(actions.before_workspace_deleted), ON_DELETION.by(actions.delete_for_workspace)),
)
