"""Table of configuration versions; the archive itself is in the store."""

from typing import Any

from tortoise import fields

from terrapod_server.kit.table import Table
from terrapod_server.store.sealed import SealedObjects


class ConfigurationVersion(Table):
    """An uploaded folder. `sha256` is of the archive as it was sent."""

    id = fields.CharField(primary_key=True, max_length=40)
    workspace_id = fields.CharField(max_length=40)
    status = fields.CharField(max_length=20, default="pending")  #: pending, uploaded, archived, errored
    source = fields.CharField(max_length=40, default="tfe-api")
    speculative = fields.BooleanField(default=False)
    provisional = fields.BooleanField(default=False)
    auto_queue_runs = fields.BooleanField(default=True)
    error_message = fields.TextField(default="")
    size = fields.BigIntField(default=0)
    sha256 = fields.CharField(max_length=64, default="")
    stored_key = fields.CharField(max_length=200, default="")
    created_by_id = fields.CharField(max_length=40, default="")
    status_timestamps: Any = fields.JSONField(default=dict)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "configuration_version"
        indexes = (("workspace_id", "id"),)


#: What of this table is encrypted.
SEALED = (SealedObjects("configuration_version", "stored_key"),)
