"""Tables of roles and of who has them."""

from typing import Any

from tortoise import fields

from terrapod_server.kit.table import Table


class Role(Table):
    """A role that an administrator made. Label conditions map a key to a list of values."""

    name = fields.CharField(primary_key=True, max_length=63)
    description = fields.TextField(default="")
    level = fields.CharField(max_length=10)
    allow_labels: Any = fields.JSONField(default=dict)
    allow_names: Any = fields.JSONField(default=list)
    deny_labels: Any = fields.JSONField(default=dict)
    deny_names: Any = fields.JSONField(default=list)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    class Meta:
        table = "role"


class RoleAssignment(Table):
    """The person whom the provider knows by that address has the role, built-in ones included."""

    id = fields.BigIntField(primary_key=True, generated=True)
    provider = fields.CharField(max_length=63)
    email = fields.CharField(max_length=254)  #: lower case
    role = fields.CharField(max_length=63, db_index=True)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "role_assignment"
        unique_together = (("provider", "email", "role"),)
