from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0016_unknown_states")]

    initial = False

    operations = [
        ops.AddField(
            model_name="Run",
            name="engine_wanted",
            field=fields.CharField(default="", db_default="", max_length=40),
        ),
    ]
