"""Tables of people and of what they show to be let in."""

from tortoise import fields
from tortoise.models import Model


class User(Model):
    """A person, or the first administrator that a new server makes."""

    id = fields.CharField(primary_key=True, max_length=40)
    email = fields.CharField(max_length=254, unique=True)  #: lower case
    display_name = fields.CharField(max_length=254, default="")
    is_active = fields.BooleanField(default=True)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    is_admin = False  #: whether some provider's word makes it a platform admin; set where it is shown

    class Meta:
        table = "user_account"


class ApiToken(Model):
    """A bearer token; only the SHA-256 of its text is kept. Limits: to reading, and to one workspace."""

    id = fields.CharField(primary_key=True, max_length=40)
    user_id = fields.CharField(max_length=40, db_index=True)
    provider = fields.CharField(max_length=63, default="local")  #: whose word the token's rights rest on
    hash = fields.CharField(max_length=64, unique=True)
    description = fields.CharField(max_length=254, default="")
    created_at = fields.DatetimeField(auto_now_add=True)
    last_used_at = fields.DatetimeField(null=True)
    expired_at = fields.DatetimeField(null=True)
    read_only = fields.BooleanField(default=False)
    workspace_id = fields.CharField(max_length=40, default="")

    text: str | None = None  #: the token itself, in the answer that makes it and nowhere else

    class Meta:
        table = "api_token"
