from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0007_sign_in")]

    initial = False

    operations = [
        ops.AddField(
            model_name="Module",
            name="revision",
            field=fields.BigIntField(default=0, db_default=0),
        ),
        ops.AddField(
            model_name="Pool",
            name="revision",
            field=fields.BigIntField(default=0, db_default=0),
        ),
        ops.AddField(
            model_name="Run",
            name="revision",
            field=fields.BigIntField(default=0, db_default=0),
        ),
        ops.AddField(
            model_name="Workspace",
            name="revision",
            field=fields.BigIntField(default=0, db_default=0),
        ),
    ]
