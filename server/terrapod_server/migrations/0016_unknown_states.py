from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0015_excluded_workspaces"), ("terrapod", "0013_state_errors")]

    initial = False

    operations = [
        ops.AddField(
            model_name="Workspace",
            name="run_lock_reason",
            field=fields.CharField(default="", db_default="", max_length=1024),
        ),
    ]
