"""The control server: speaks the TFE v2 API and hands runs to listeners."""

import terrapod_shared  # noqa: F401  before anything imports httpx
