"""Tables of people and of what they show to be let in."""

from tortoise import fields
from tortoise.models import Model


class User(Model):
    """A person, or the first administrator that a new server makes."""

    id = fields.CharField(primary_key=True, max_length=40)
    email = fields.CharField(max_length=254, unique=True)  #: lower case
    display_name = fields.CharField(max_length=254, default="")
    is_active = fields.BooleanField(default=True)
    is_admin = fields.BooleanField(default=False)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    class Meta:
        table = "user_account"


class ApiToken(Model):
    """A bearer token; only the SHA-256 of its text is kept."""

    id = fields.CharField(primary_key=True, max_length=40)
    user_id = fields.CharField(max_length=40, db_index=True)
    hash = fields.CharField(max_length=64, unique=True)
    description = fields.CharField(max_length=254, default="")
    created_at = fields.DatetimeField(auto_now_add=True)
    last_used_at = fields.DatetimeField(null=True)
    expired_at = fields.DatetimeField(null=True)

    class Meta:
        table = "api_token"
