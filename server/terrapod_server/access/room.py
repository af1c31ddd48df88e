"""The room of roles and who has them."""

from terrapod_server.access import api
from terrapod_server.kit.room import Room

ROOM = Room(
    name="access",
    tag=("access", "roles and who has them"),
    models=("model",),
    resources=api.RESOURCES,
    endpoints=api.ENDPOINTS,
)
