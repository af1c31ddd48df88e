"""The room of the keys that the database knows."""

from terrapod_server.kit.room import Room

ROOM = Room(name="encryption", models=("model",))
