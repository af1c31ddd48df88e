import functools
from json import dumps, loads

from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0006_audit")]

    initial = False

    operations = [
        ops.CreateModel(
            name="OneTime",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=64)),
                ("user_id", fields.CharField(default="", db_index=True, max_length=40)),
                (
                    "data",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("expires_at", fields.DatetimeField(db_index=True, auto_now=False, auto_now_add=False)),
            ],
            options={"table": "one_time", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Session",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("user_id", fields.CharField(db_index=True, max_length=40)),
                ("hash", fields.CharField(unique=True, max_length=64)),
                ("hint", fields.CharField(max_length=8)),
                ("provider", fields.CharField(max_length=63)),
                (
                    "roles",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("address", fields.CharField(default="", max_length=64)),
                ("user_agent", fields.CharField(default="", max_length=254)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("last_used_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("expires_at", fields.DatetimeField(db_index=True, auto_now=False, auto_now_add=False)),
            ],
            options={"table": "session", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="UserIdentity",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=64)),
                ("user_id", fields.CharField(db_index=True, max_length=40)),
                ("provider", fields.CharField(max_length=63)),
                ("subject", fields.CharField(max_length=255)),
                (
                    "roles",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("last_login_at", fields.DatetimeField(auto_now=False, auto_now_add=False)),
            ],
            options={"table": "user_identity", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.AddField(
            model_name="User",
            name="last_login_at",
            field=fields.DatetimeField(null=True, auto_now=False, auto_now_add=False),
        ),
        ops.AddField(
            model_name="User",
            name="password_hash",
            field=fields.CharField(default="", db_default="", max_length=255),
        ),
    ]
