"""Writes the documents that are made of declarations."""

from pathlib import Path

from terrapod_server.app import ENDPOINTS
from terrapod_server.kit import permissions

(Path(__file__).parents[1] / "docs" / "permissions.md").write_text(permissions.page(ENDPOINTS))
