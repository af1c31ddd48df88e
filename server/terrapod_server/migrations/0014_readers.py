from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0013_deleted_workspaces")]

    initial = False

    operations = [
        ops.AddField(
            model_name="Run",
            name="awaited_read",
            field=fields.CharField(default="", db_default="", max_length=3),
        ),
        ops.AddField(
            model_name="Run",
            name="is_terraform",
            field=fields.BooleanField(default=False, db_default=False),
        ),
    ]
