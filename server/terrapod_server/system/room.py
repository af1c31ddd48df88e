"""The room of what is about the server itself."""

from terrapod_server.kit.room import Room
from terrapod_server.system import api, ports

ROOM = Room(
    name="system",
    tag=("server", "the server itself"),
    endpoints=api.ENDPOINTS,
    discovery=dict.fromkeys(("tfe.v2", "tfe.v2.1", "tfe.v2.2", "state.v2"), "/api/v2/"),
    needs=(ports.DECLARED,),
)
