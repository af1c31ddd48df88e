"""The room of variables."""

from terrapod_server.kit.room import Room
from terrapod_server.variables import actions, api, model
from terrapod_server.workspaces.ports import ON_DELETION

ROOM = Room(
    name="variables",
    tag=("variables", "variables of workspaces"),
    models=("model",),
    sealed=model.SEALED,
    resources=api.RESOURCES,
    endpoints=api.ENDPOINTS,
    provides=(ON_DELETION.by(actions.delete_for_workspace),),
)
