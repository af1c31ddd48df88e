"""Tables of the audit log: entries, and signed lists of where their chains end."""

from tortoise import fields

from terrapod_server.kit.table import Table


class AuditEntry(Table):
    """One request; what its columns mean is said at `rules.Entry`."""

    id = fields.CharField(primary_key=True, max_length=40)
    chain = fields.CharField(max_length=40)
    number = fields.BigIntField()
    at = fields.BigIntField()
    actor_kind = fields.CharField(max_length=10)
    actor_id = fields.CharField(max_length=64)
    actor = fields.CharField(max_length=254)
    token_id = fields.CharField(max_length=64)
    address = fields.CharField(max_length=64)
    action = fields.CharField(max_length=10)
    path = fields.CharField(max_length=200)
    resource_type = fields.CharField(max_length=64)
    resource_id = fields.CharField(max_length=128)
    workspace_id = fields.CharField(max_length=40)
    status = fields.IntField()
    request_id = fields.CharField(max_length=64)
    user_agent = fields.CharField(max_length=200)
    duration_us = fields.BigIntField()
    repeats = fields.IntField()
    mac = fields.CharField(max_length=64)

    class Meta:
        table = "audit_entry"
        unique_together = (("chain", "number"),)
        indexes = (("actor", "id"), ("resource_type", "id"), ("action", "id"))


class AuditCheckpoint(Table):
    """The heads of all chains at a time, signed; the newest counts, a few older ones are kept."""

    id = fields.BigIntField(primary_key=True)
    document = fields.TextField()  #: JSON of `heads.Heads`; exactly these bytes are signed
    signature = fields.CharField(max_length=128)

    class Meta:
        table = "audit_checkpoint"
