"""Tables of modules. Labels stand twice: on the row to be shown, in a table to be searched."""

from typing import Any

from tortoise import fields

from terrapod_server.kit.table import Table
from terrapod_server.store.sealed import SealedObjects


class Module(Table):
    """A private module, named by its name and the provider it is for."""

    id = fields.CharField(primary_key=True, max_length=40)
    name = fields.CharField(max_length=64)
    provider = fields.CharField(max_length=64)
    address = fields.CharField(max_length=130, unique=True)  #: `name/provider`
    labels: Any = fields.JSONField(default=dict)
    owner_id = fields.CharField(max_length=40, default="")
    owner_email = fields.CharField(max_length=254, default="")
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    #: Raised by the database at each change; see `kit.db.row_versions`.
    revision = fields.BigIntField(default=0, db_default=0)

    #: Columns by which lists are filtered; see `kit.db.row_versions`.
    counted = ("name", "provider", "address", "labels", "owner_id")

    class Meta:
        table = "registry_module"


class ModuleLabel(Table):
    """A label of a module, once more, for searches."""

    id = fields.BigIntField(primary_key=True, generated=True)
    module_id = fields.CharField(max_length=40)
    key = fields.CharField(max_length=254)
    value = fields.CharField(max_length=254)

    class Meta:
        table = "registry_module_label"
        unique_together = (("module_id", "key"),)
        indexes = (("key", "value", "module_id"),)


class ModuleVersion(Table):
    """A version. `pending` until its archive is here whole, then `ok` for good: its bytes never change."""

    id = fields.CharField(primary_key=True, max_length=40)
    module_id = fields.CharField(max_length=40)
    version = fields.CharField(max_length=128)
    status = fields.CharField(max_length=10, default="pending")
    commit_sha = fields.CharField(max_length=64, default="")
    size = fields.BigIntField(default=0)
    sha256 = fields.CharField(max_length=64, default="")
    stored_key = fields.CharField(max_length=200, default="")
    created_by_id = fields.CharField(max_length=40, default="")
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    class Meta:
        table = "registry_module_version"
        unique_together = (("module_id", "version"),)


#: What of these tables is encrypted.
SEALED = (SealedObjects("registry_module_version", "stored_key"),)
