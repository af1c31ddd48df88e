from typing import Any

from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops

#: What the ORM loses where SQLite has to make the table anew, as it was.
_INDEXES = (
    'CREATE INDEX IF NOT EXISTS "idx_run_event_run_id_180ace" ON "run_event" ("run_id")',
    'CREATE INDEX IF NOT EXISTS "idx_run_event_workspa_6c7b2a" ON "run_event" ("workspace_id", "id")',
)


async def _index_again(_apps: Any, editor: Any) -> None:
    client = editor.client
    if client.capabilities.dialect == "sqlite":
        for statement in _INDEXES:
            await client.execute_query(statement)


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0018_schema_version")]

    initial = False

    operations = [
        ops.CreateModel(
            name="Outbox",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("event_id", fields.BigIntField()),
                ("outlet", fields.CharField(max_length=80)),
                ("key", fields.CharField(max_length=40)),
                ("due_at", fields.FloatField()),
                ("attempts", fields.IntField(default=0, db_default=0)),
                ("leased_until", fields.FloatField(default=0.0, db_default=0.0)),
                ("failed_at", fields.FloatField(null=True)),
            ],
            options={
                "table": "outbox",
                "app": "terrapod",
                "unique_together": (("event_id", "outlet"),),
                "indexes": [
                    Index(fields=["outlet", "id"]),
                    Index(fields=["outlet", "key", "id"]),
                    Index(fields=["outlet", "leased_until"]),
                ],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.AlterField(
            model_name="RunEvent",
            name="run_id",
            field=fields.CharField(null=True, db_index=True, max_length=40),
        ),
        ops.RunPython(_index_again),
    ]
