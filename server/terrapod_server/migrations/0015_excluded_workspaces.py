from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0014_readers")]

    initial = False

    operations = [
        ops.CreateModel(
            name="PoolExcluded",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("pool_id", fields.CharField(max_length=40)),
                ("workspace_id", fields.CharField(db_index=True, max_length=40)),
            ],
            options={
                "table": "agent_pool_excluded",
                "app": "terrapod",
                "unique_together": (("pool_id", "workspace_id"),),
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
    ]
