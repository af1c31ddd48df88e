"""Table of the engines in the cache."""

from tortoise import fields

from terrapod_server.kit.table import Table
from terrapod_server.store.sealed import SealedObjects


class EngineFile(Table):
    """A release's zip. `sha256` is of the zip, as its publisher lists it in a list signed by the key `signed_by`."""

    id = fields.BigIntField(primary_key=True, generated=True)
    tool = fields.CharField(max_length=10)
    version = fields.CharField(max_length=40)
    os = fields.CharField(max_length=10)
    arch = fields.CharField(max_length=10)
    sha256 = fields.CharField(max_length=64)
    size = fields.BigIntField()
    source = fields.CharField(max_length=20, default="fetched")  #: imported, or unsigned: imported so on purpose
    signed_by = fields.CharField(
        max_length=64, default="", db_default=""
    )  #: fingerprint; empty: no signature was checked
    cached_at = fields.DatetimeField(auto_now_add=True)
    last_used_at = fields.DatetimeField(null=True)

    class Meta:
        table = "engine_file"
        unique_together = (("tool", "version", "os", "arch"),)


#: What of this table is encrypted.
SEALED = (SealedObjects("engine_file", "'engines/' || tool || '/' || version || '/' || os || '_' || arch || '.zip'"),)
