"""Tables of people and of what they show to be let in."""

from typing import Any

from tortoise import fields

from terrapod_server.kit.table import Table


class User(Table):
    """A person, or the first administrator that a new server makes."""

    id = fields.CharField(primary_key=True, max_length=40)
    email = fields.CharField(max_length=254, unique=True)  #: lower case
    display_name = fields.CharField(max_length=254, default="")
    is_active = fields.BooleanField(default=True)
    password_hash = fields.CharField(max_length=255, default="", db_default="")  #: Argon2id; empty: no password here
    last_login_at = fields.DatetimeField(null=True)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    is_admin = False  #: whether some provider's word makes it a platform admin; set where it is shown

    @property
    def has_password(self) -> bool:
        return bool(self.password_hash)

    class Meta:
        table = "user_account"


class ApiToken(Table):
    """A bearer token; only the SHA-256 of its text is kept. Limits: to reading, and to one workspace."""

    id = fields.CharField(primary_key=True, max_length=40)
    user_id = fields.CharField(max_length=40, db_index=True)
    provider = fields.CharField(max_length=63, default="local", db_default="local")  #: whose word its rights rest on
    hash = fields.CharField(max_length=64, unique=True)
    description = fields.CharField(max_length=254, default="")
    created_at = fields.DatetimeField(auto_now_add=True)
    last_used_at = fields.DatetimeField(null=True)
    expired_at = fields.DatetimeField(null=True)
    read_only = fields.BooleanField(default=False, db_default=False)
    workspace_id = fields.CharField(max_length=40, default="", db_default="")

    text: str | None = None  #: the token itself, in the answer that makes it and nowhere else

    class Meta:
        table = "api_token"


class Session(Table):
    """A person who is signed in; only the SHA-256 of the token is kept."""

    id = fields.CharField(primary_key=True, max_length=40)
    user_id = fields.CharField(max_length=40, db_index=True)
    hash = fields.CharField(max_length=64, unique=True)
    hint = fields.CharField(max_length=8)  #: the token's last letters, by which its owner knows it
    provider = fields.CharField(max_length=63)
    roles: Any = fields.JSONField(default=list)  #: those that the provider's claims gave
    address = fields.CharField(max_length=64, default="")
    user_agent = fields.CharField(max_length=254, default="")
    created_at = fields.DatetimeField()
    last_used_at = fields.DatetimeField()
    expires_at = fields.DatetimeField(db_index=True)

    class Meta:
        table = "session"


class UserIdentity(Table):
    """Who a provider's subject is here. The id is the SHA-256 of both, so that one pair has one row."""

    id = fields.CharField(primary_key=True, max_length=64)
    user_id = fields.CharField(max_length=40, db_index=True)
    provider = fields.CharField(max_length=63)
    subject = fields.CharField(max_length=255)
    roles: Any = fields.JSONField(default=list)  #: those that the claims of the last sign-in gave
    created_at = fields.DatetimeField(auto_now_add=True)
    last_login_at = fields.DatetimeField()

    class Meta:
        table = "user_identity"


class OneTime(Table):
    """Something that is good once; the id is the SHA-256 of its kind and secret."""

    id = fields.CharField(primary_key=True, max_length=64)
    user_id = fields.CharField(max_length=40, default="", db_index=True)
    data: Any = fields.JSONField(default=dict)
    expires_at = fields.DatetimeField(db_index=True)

    class Meta:
        table = "one_time"
