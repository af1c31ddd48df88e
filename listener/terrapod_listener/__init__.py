"""The listener: joins a pool, waits for runs, does the work, streams the logs back."""

from importlib.metadata import version

import terrapod_shared  # noqa: F401  before anything imports httpx

__version__ = version("terrapod")
