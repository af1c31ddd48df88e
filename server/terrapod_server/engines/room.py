"""The room of the cache of terraform and tofu binaries."""

from terrapod_server.engines import api, model
from terrapod_server.kit.room import Room

ROOM = Room(
    name="engines",
    tag=("engines", "the cache of terraform and tofu"),
    models=("model",),
    sealed=model.SEALED,
    resources=api.RESOURCES,
    endpoints=api.ENDPOINTS,
)
