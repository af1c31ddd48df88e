from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0005_modules")]

    initial = False

    operations = [
        ops.CreateModel(
            name="AuditCheckpoint",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("document", fields.TextField(unique=False)),
                ("signature", fields.CharField(max_length=128)),
            ],
            options={"table": "audit_checkpoint", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("chain", fields.CharField(max_length=40)),
                ("number", fields.BigIntField()),
                ("at", fields.BigIntField()),
                ("actor_kind", fields.CharField(max_length=10)),
                ("actor_id", fields.CharField(max_length=64)),
                ("actor", fields.CharField(max_length=254)),
                ("token_id", fields.CharField(max_length=64)),
                ("address", fields.CharField(max_length=64)),
                ("action", fields.CharField(max_length=10)),
                ("path", fields.CharField(max_length=200)),
                ("resource_type", fields.CharField(max_length=64)),
                ("resource_id", fields.CharField(max_length=128)),
                ("workspace_id", fields.CharField(max_length=40)),
                ("status", fields.IntField()),
                ("request_id", fields.CharField(max_length=64)),
                ("user_agent", fields.CharField(max_length=200)),
                ("duration_us", fields.BigIntField()),
                ("repeats", fields.IntField()),
                ("mac", fields.CharField(max_length=64)),
            ],
            options={
                "table": "audit_entry",
                "app": "terrapod",
                "unique_together": (("chain", "number"),),
                "indexes": [
                    Index(fields=["actor", "id"]),
                    Index(fields=["resource_type", "id"]),
                    Index(fields=["action", "id"]),
                ],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Brake",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=64)),
                ("full_at", fields.FloatField(db_index=True)),
            ],
            options={"table": "brake", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
    ]
