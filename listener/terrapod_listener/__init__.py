"""The listener: joins a pool, waits for runs, does the work, streams the logs back."""

from importlib.metadata import version

__version__ = version("terrapod")
