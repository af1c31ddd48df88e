"""Tables of state versions and of the outputs that were read from them."""

from typing import Any

from tortoise import fields

from terrapod_server.kit.table import Table
from terrapod_server.store.sealed import SealedColumn, SealedObjects


class StateVersion(Table):
    """A state. `pending` until its bytes are here; the newest `finalized` one is the current."""

    id = fields.CharField(primary_key=True, max_length=40)
    workspace_id = fields.CharField(max_length=40)
    status = fields.CharField(max_length=12, default="pending")  #: pending, finalized, discarded
    #: As they were announced; clients count by them.
    serial = fields.BigIntField()
    lineage = fields.CharField(max_length=255, default="")
    #: As the bytes say; null in rows of before, where they are the same.
    bytes_serial: int | None = fields.BigIntField(null=True)
    bytes_lineage: Any = fields.CharField(max_length=255, null=True)
    md5 = fields.CharField(max_length=32)
    sha256 = fields.CharField(max_length=64, default="")
    key = fields.CharField(max_length=200, default="")  #: of the bytes in the store
    size = fields.BigIntField(default=0)
    forced = fields.BooleanField(default=False)
    #: What it took the place of by force, though its serial or lineage did not follow: id, serial, lineage, md5.
    replaced: Any = fields.JSONField(null=True)
    run_id = fields.CharField(max_length=40, null=True)
    created_by_id = fields.CharField(max_length=40, default="")
    terraform_version = fields.CharField(max_length=40, default="")
    resources: Any = fields.JSONField(default=list)
    modules: Any = fields.JSONField(default=dict)
    providers: Any = fields.JSONField(default=dict)
    resource_count = fields.IntField(default=0)
    #: Why resources and the values of outputs were not read; NULL where they were.
    resources_error = fields.CharField(max_length=255, null=True)
    intermediate = fields.BooleanField(default=False)
    has_json = fields.BooleanField(default=False)
    created_at = fields.DatetimeField(auto_now_add=True)
    finalized_at = fields.DatetimeField(null=True)

    class Meta:
        table = "state_version"
        indexes = (("workspace_id", "status", "id"), ("workspace_id", "id"))

    @property
    def serial_in_bytes(self) -> int:
        """What terraform counts from."""
        return self.serial if self.bytes_serial is None else self.bytes_serial

    @property
    def lineage_in_bytes(self) -> str:
        return self.lineage if self.bytes_lineage is None else self.bytes_lineage


class KeptState(Table):
    """The last state of a workspace that was deleted, or one that came late and waited; no API reaches it.

    The bytes lie sealed in the store at `key`. The id is the one it had.
    """

    id = fields.CharField(primary_key=True, max_length=40)
    workspace_id = fields.CharField(max_length=40, db_index=True)
    serial = fields.BigIntField()
    lineage = fields.CharField(max_length=255, default="")
    md5 = fields.CharField(max_length=32)
    sha256 = fields.CharField(max_length=64)
    key = fields.CharField(max_length=200)
    size = fields.BigIntField()
    is_late = fields.BooleanField(default=False)  #: it was never current
    kept_at = fields.DatetimeField(auto_now_add=True, db_index=True)

    class Meta:
        table = "kept_state"


class StateOutput(Table):
    """An output of a state. `value` is JSON, sealed under `output <id>`."""

    id = fields.CharField(primary_key=True, max_length=40)
    state_version_id = fields.CharField(max_length=40, db_index=True)
    workspace_id = fields.CharField(max_length=40, db_index=True)
    name = fields.CharField(max_length=255)
    type = fields.CharField(max_length=20)
    #: In a list of one: the ORM takes a bare string for JSON text.
    detailed_type: Any = fields.JSONField(default=list)
    sensitive = fields.BooleanField(default=False)
    value = fields.BinaryField()

    #: The value in clear, as JSON text, or None where it may not be shown; set by `actions.opened`.
    shown: Any = None

    class Meta:
        table = "state_output"


#: What of these tables is encrypted.
SEALED = (SealedColumn("state_output", "value", "output {id}"), SealedObjects("state_version", "key"))
