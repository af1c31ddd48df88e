"""The room of workspaces, and of the one organization and project."""

from terrapod_server.kit.room import Room
from terrapod_server.workspaces import api, organization, ports

ROOM = Room(
    name="workspaces",
    tag=("workspaces", "workspaces with their labels and locks; the one organization and project"),
    models=("model",),
    resources=(*organization.RESOURCES, *api.RESOURCES),
    endpoints=(*organization.ENDPOINTS, *api.ENDPOINTS),
    things=api.THINGS,
    needs=(ports.RUNS, ports.POOLS, ports.BEFORE_DELETION, ports.ON_DELETION, ports.REMOVE_FILES),
)
