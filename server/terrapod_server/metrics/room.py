"""The room of figures for Prometheus."""

from terrapod_server.kit.room import Room
from terrapod_server.metrics import api

ROOM = Room(name="metrics", tag=("server", "the server itself"), endpoints=api.ENDPOINTS)
