"""Picks the store that the settings name."""

import importlib
from pathlib import Path

from terrapod_server.config.settings import Config
from terrapod_server.store.files import FileStore
from terrapod_server.store.port import Store


def open_store(config: Config) -> Store:
    """The store of the settings, not yet encrypted."""
    if config.storage.kind == "s3":
        # imported only here, only when asked for: the S3 client costs 30 MiB and half a second
        module = importlib.import_module("terrapod_server.store.s3")
        made: Store = module.S3Store(config.storage)
        return made
    root = Path(config.storage.path) if config.storage.path else config.folder / "store"
    return FileStore(root)
