"""Writes the documents that are made of declarations."""

from pathlib import Path

from terrapod_server.app import ENDPOINTS
from terrapod_server.kit.api import members, permissions

DOCS = Path(__file__).parents[1] / "docs"
(DOCS / "permissions.md").write_text(permissions.page(ENDPOINTS))
(DOCS / "request-attributes.md").write_text(members.page(ENDPOINTS))
