from tortoise import fields, migrations
from tortoise.migrations import operations as ops


class Migration(migrations.Migration):
    dependencies = [("terrapod", "0011_signed_engines")]

    initial = False

    operations = [
        ops.CreateModel(
            name="EncryptionKey",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=16)),
                ("proof", fields.BinaryField(default=b"")),
                ("recorded_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("forgotten_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={"table": "encryption_key", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
    ]
