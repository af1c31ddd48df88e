from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0010_accepts")]

    initial = False

    operations = [
        ops.AddField(
            model_name="EngineFile",
            name="signed_by",
            field=fields.CharField(default="", db_default="", max_length=64),
        ),
    ]
