"""The room of configuration versions."""

from terrapod_server.configs import actions, api, model, ports
from terrapod_server.kit.room import Room
from terrapod_server.workspaces.ports import ON_DELETION

ROOM = Room(
    name="configs",
    tag=("configurations", "configuration versions and their upload"),
    models=("model",),
    sealed=model.SEALED,
    resources=api.RESOURCES,
    endpoints=api.ENDPOINTS,
    things=api.THINGS,
    needs=(ports.RUNS,),
    provides=(ON_DELETION.by(actions.delete_for_workspace),),
)
