from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0008_revisions")]

    initial = False

    operations = [
        ops.AddField(
            model_name="LateState",
            name="state_version_id",
            field=fields.CharField(null=True, max_length=40),
        ),
        ops.AddField(
            model_name="LateState",
            name="status",
            field=fields.CharField(default="waiting", db_default="waiting", max_length=8),
        ),
        ops.AddField(
            model_name="Workspace",
            name="late_state_count",
            field=fields.IntField(default=0, db_default=0),
        ),
    ]
