from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0017_wanted_engines")]

    initial = False

    operations = [
        ops.CreateModel(
            name="SchemaVersion",
            fields=[
                ("id", fields.IntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("number", fields.IntField()),
                ("oldest", fields.IntField()),
                ("program", fields.CharField(max_length=64)),
            ],
            options={"table": "schema_version", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
    ]
