from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0012_announced_states"), ("terrapod", "0012_encryption_keys")]

    initial = False

    operations = [
        ops.AddField(
            model_name="StateVersion",
            name="resources_error",
            field=fields.CharField(null=True, max_length=255),
        ),
    ]
