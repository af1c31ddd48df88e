import functools
from json import dumps, loads
from typing import Any

from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


async def _carry_over(_apps: Any, editor: Any) -> None:
    """Administrators keep their rights, and labels of pools can be searched."""
    client = editor.client
    await client.execute_script(
        "INSERT INTO role_assignment (provider, email, role, created_at) "
        "SELECT 'local', email, 'admin', created_at FROM user_account WHERE is_admin"
    )
    for pool in await client.execute_query_dict("SELECT id, labels FROM agent_pool"):
        labels = pool["labels"]
        for key, value in (loads(labels) if isinstance(labels, str) else labels).items():
            marks = "$1, $2, $3" if client.capabilities.dialect == "postgres" else "?, ?, ?"
            await client.execute_query(
                f"INSERT INTO agent_pool_label (pool_id, key, value) VALUES ({marks})",  # noqa: S608
                [pool["id"], key, value],
            )


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0001_initial")]

    initial = False

    operations = [
        ops.CreateModel(
            name="PoolLabel",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("pool_id", fields.CharField(max_length=40)),
                ("key", fields.CharField(max_length=254)),
                ("value", fields.CharField(max_length=254)),
            ],
            options={
                "table": "agent_pool_label",
                "app": "terrapod",
                "unique_together": (("pool_id", "key"),),
                "indexes": [Index(fields=["key", "value", "pool_id"])],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Role",
            fields=[
                ("name", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=63)),
                ("description", fields.TextField(default="", unique=False)),
                ("level", fields.CharField(max_length=10)),
                (
                    "allow_labels",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "allow_names",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "deny_labels",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "deny_names",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("updated_at", fields.DatetimeField(auto_now=True, auto_now_add=False)),
            ],
            options={"table": "role", "app": "terrapod", "pk_attr": "name"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="RoleAssignment",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("provider", fields.CharField(max_length=63)),
                ("email", fields.CharField(max_length=254)),
                ("role", fields.CharField(db_index=True, max_length=63)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "role_assignment",
                "app": "terrapod",
                "unique_together": (("provider", "email", "role"),),
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.AddField(
            model_name="ApiToken",
            name="provider",
            field=fields.CharField(default="local", db_default="local", max_length=63),
        ),
        ops.AddField(
            model_name="ApiToken",
            name="read_only",
            field=fields.BooleanField(default=False, db_default=False),
        ),
        ops.AddField(
            model_name="ApiToken",
            name="workspace_id",
            field=fields.CharField(default="", db_default="", max_length=40),
        ),
        ops.RunPython(_carry_over),
        ops.RemoveField(model_name="User", name="is_admin"),
    ]
