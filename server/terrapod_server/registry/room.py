"""The room of what terraform downloads from a registry: private modules."""

from terrapod_server.kit.room import Room
from terrapod_server.registry.modules import api, model, protocol

ROOM = Room(
    name="registry",
    tag=("modules", "private modules"),
    models=("modules.model",),
    sealed=model.SEALED,
    resources=api.RESOURCES,
    endpoints=(*api.ENDPOINTS, *protocol.ENDPOINTS),
    things=api.THINGS,
    discovery={"modules.v1": "/api/v2/registry/modules/"},
)
