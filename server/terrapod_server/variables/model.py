"""Table of variables; every value is sealed, sensitive or not."""

from tortoise import fields

from terrapod_server.kit.table import Table
from terrapod_server.store.sealed import SealedColumn


class Variable(Table):
    """`value` is sealed under `variable <id>`."""

    id = fields.CharField(primary_key=True, max_length=40)
    workspace_id = fields.CharField(max_length=40)
    key = fields.CharField(max_length=255)
    category = fields.CharField(max_length=10)
    value = fields.BinaryField()
    description = fields.TextField(default="")
    hcl = fields.BooleanField(default=False)
    sensitive = fields.BooleanField(default=False)
    version_id = fields.CharField(max_length=40)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    #: The value in clear, set by `actions.opened`; None where it may not be shown.
    shown: str | None = None

    class Meta:
        table = "variable"
        unique_together = (("workspace_id", "category", "key"),)


#: What of these tables is encrypted.
SEALED = (SealedColumn("variable", "value", "variable {id}"),)
