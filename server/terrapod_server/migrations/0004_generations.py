from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0003_replaced_states")]

    initial = False

    operations = [
        ops.CreateModel(
            name="Generation",
            fields=[
                ("topic", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=64)),
                ("number", fields.BigIntField(default=0)),
            ],
            options={"table": "generation", "app": "terrapod", "pk_attr": "topic"},
            bases=["Model"],
        ),
    ]
