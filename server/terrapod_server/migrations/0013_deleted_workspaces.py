from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0012_announced_states"), ("terrapod", "0012_encryption_keys")]

    initial = False

    operations = [
        ops.CreateModel(
            name="DeletedWorkspace",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("name", fields.CharField(max_length=90)),
                ("deleted_by_id", fields.CharField(default="", max_length=40)),
                ("deleted_by_name", fields.CharField(default="", max_length=254)),
                ("deleted_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("sweep_at", fields.DatetimeField(null=True, db_index=True, auto_now=False, auto_now_add=False)),
            ],
            options={"table": "deleted_workspace", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="KeptState",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(db_index=True, max_length=40)),
                ("serial", fields.BigIntField()),
                ("lineage", fields.CharField(default="", max_length=255)),
                ("md5", fields.CharField(max_length=32)),
                ("sha256", fields.CharField(max_length=64)),
                ("key", fields.CharField(max_length=200)),
                ("size", fields.BigIntField()),
                ("is_late", fields.BooleanField(default=False)),
                ("kept_at", fields.DatetimeField(db_index=True, auto_now=False, auto_now_add=True)),
            ],
            options={"table": "kept_state", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
    ]
