import functools
from json import dumps, loads

from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0004_generations")]

    initial = False

    operations = [
        ops.CreateModel(
            name="Module",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("name", fields.CharField(max_length=64)),
                ("provider", fields.CharField(max_length=64)),
                ("address", fields.CharField(unique=True, max_length=130)),
                (
                    "labels",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("owner_id", fields.CharField(default="", max_length=40)),
                ("owner_email", fields.CharField(default="", max_length=254)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("updated_at", fields.DatetimeField(auto_now=True, auto_now_add=False)),
            ],
            options={"table": "registry_module", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="ModuleLabel",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("module_id", fields.CharField(max_length=40)),
                ("key", fields.CharField(max_length=254)),
                ("value", fields.CharField(max_length=254)),
            ],
            options={
                "table": "registry_module_label",
                "app": "terrapod",
                "unique_together": (("module_id", "key"),),
                "indexes": [Index(fields=["key", "value", "module_id"])],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="ModuleVersion",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("module_id", fields.CharField(max_length=40)),
                ("version", fields.CharField(max_length=128)),
                ("status", fields.CharField(default="pending", max_length=10)),
                ("commit_sha", fields.CharField(default="", max_length=64)),
                ("size", fields.BigIntField(default=0)),
                ("sha256", fields.CharField(default="", max_length=64)),
                ("stored_key", fields.CharField(default="", max_length=200)),
                ("created_by_id", fields.CharField(default="", max_length=40)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("updated_at", fields.DatetimeField(auto_now=True, auto_now_add=False)),
            ],
            options={
                "table": "registry_module_version",
                "app": "terrapod",
                "unique_together": (("module_id", "version"),),
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
    ]
