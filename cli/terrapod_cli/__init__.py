"""The command line for people and scripts: `terrapod`."""

import terrapod_shared  # noqa: F401  before anything imports httpx
