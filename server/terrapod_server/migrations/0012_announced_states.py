from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0011_signed_engines")]

    initial = False

    operations = [
        ops.AddField(
            model_name="StateVersion",
            name="bytes_lineage",
            field=fields.CharField(null=True, max_length=255),
        ),
        ops.AddField(
            model_name="StateVersion",
            name="bytes_serial",
            field=fields.BigIntField(null=True),
        ),
    ]
