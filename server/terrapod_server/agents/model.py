"""Tables of pools, join tokens, listeners and of the authority that certifies them."""

from datetime import datetime
from typing import Any

from tortoise import fields

from terrapod_server.kit.table import Table
from terrapod_server.store.sealed import SealedColumn, SealedObjects


class Pool(Table):
    """Listeners that share work. `organization_scoped`: open to all workspaces."""

    id = fields.CharField(primary_key=True, max_length=40)
    name = fields.CharField(max_length=90, unique=True)
    description = fields.TextField(default="")
    organization_scoped = fields.BooleanField(default=True)
    allow_server_keys = fields.BooleanField(default=False)
    service_account_name = fields.CharField(max_length=254, default="")
    labels: Any = fields.JSONField(default=dict)
    owner_id = fields.CharField(max_length=40, default="")
    created_at = fields.DatetimeField(auto_now_add=True)

    #: Raised by the database at each change; see `kit.db.row_versions`.
    revision = fields.BigIntField(default=0, db_default=0)

    #: Columns by which lists are filtered; see `kit.db.row_versions`.
    counted = ("name", "labels", "owner_id")

    class Meta:
        table = "agent_pool"


class PoolLabel(Table):
    """A label of a pool, once more, for searches."""

    id = fields.BigIntField(primary_key=True, generated=True)
    pool_id = fields.CharField(max_length=40)
    key = fields.CharField(max_length=254)
    value = fields.CharField(max_length=254)

    class Meta:
        table = "agent_pool_label"
        unique_together = (("pool_id", "key"),)
        indexes = (("key", "value", "pool_id"),)


class PoolWorkspace(Table):
    """A workspace that may use a pool which is not open to all."""

    id = fields.BigIntField(primary_key=True, generated=True)
    pool_id = fields.CharField(max_length=40)
    workspace_id = fields.CharField(max_length=40, db_index=True)

    class Meta:
        table = "agent_pool_workspace"
        unique_together = (("pool_id", "workspace_id"),)


class PoolExcluded(Table):
    """A workspace that may not use the pool, whoever else may."""

    id = fields.BigIntField(primary_key=True, generated=True)
    pool_id = fields.CharField(max_length=40)
    workspace_id = fields.CharField(max_length=40, db_index=True)

    class Meta:
        table = "agent_pool_excluded"
        unique_together = (("pool_id", "workspace_id"),)


class JoinToken(Table):
    """A token to join a pool with; only its SHA-256 is kept. `max_uses` null: any number."""

    id = fields.CharField(primary_key=True, max_length=40)
    pool_id = fields.CharField(max_length=40, db_index=True)
    hash = fields.CharField(max_length=64, unique=True)
    description = fields.CharField(max_length=254, default="")
    max_uses: int | None = fields.IntField(null=True, default=1)
    use_count = fields.IntField(default=0)
    revoked = fields.BooleanField(default=False)
    expires_at: datetime | None = fields.DatetimeField(null=True)
    last_used_at: datetime | None = fields.DatetimeField(null=True)
    created_by_id = fields.CharField(max_length=40, default="")
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "join_token"


class Listener(Table):
    """A joined listener. Keys are public ones, raw, base64; the private halves never leave its host."""

    id = fields.CharField(primary_key=True, max_length=40)
    pool_id = fields.CharField(max_length=40, db_index=True)
    name = fields.CharField(max_length=90, unique=True)
    public_key = fields.CharField(max_length=64)
    sealing_key = fields.CharField(max_length=64, default="")
    certificate_serial = fields.CharField(max_length=64)
    certificate_until = fields.DatetimeField()
    revoked_at: datetime | None = fields.DatetimeField(null=True)
    allow_rejoin = fields.BooleanField(default=False)
    last_seen_at: datetime | None = fields.DatetimeField(null=True)
    capacity = fields.IntField(default=1)
    free_slots = fields.IntField(default=0)
    version = fields.CharField(max_length=40, default="")
    isolation = fields.CharField(max_length=20, default="")
    os = fields.CharField(max_length=20, default="linux")
    arch = fields.CharField(max_length=20, default="amd64")
    local_engines: Any = fields.JSONField(default=list)
    spooled: Any = fields.JSONField(default=list)
    #: `wire.Accepts`: which work its host's owner lets it take; null: all.
    accepts: Any = fields.JSONField(null=True)
    draining = fields.BooleanField(default=False)
    drain_requested = fields.BooleanField(default=False)
    runner_definitions: Any = fields.JSONField(default=list)
    created_at = fields.DatetimeField(auto_now_add=True)

    #: Phases that it works on; the same with held applies. Counted where it is shown.
    working: int = 0
    leases: int = 0

    class Meta:
        table = "listener"


class Nonce(Table):
    """A nonce that a signed request has spent; kept for 120 s, for all server processes."""

    id = fields.CharField(primary_key=True, max_length=110)
    at = fields.DatetimeField(auto_now_add=True, db_index=True)

    class Meta:
        table = "listener_nonce"


class Authority(Table):
    """The authority of listeners, and the key that signs work. Private keys are sealed."""

    id = fields.IntField(primary_key=True)
    certificate = fields.TextField()
    key = fields.BinaryField()
    work_key = fields.BinaryField()
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "authority"


class LateState(Table):
    """A state that came after its lease had ended: kept aside for an admin to adopt or drop.

    `status`: `waiting`, `adopted` or `dropped`. The row stays, so that the same
    bytes are no news when a listener sends them again.
    """

    id = fields.CharField(primary_key=True, max_length=40)
    workspace_id = fields.CharField(max_length=40, db_index=True)
    run_id = fields.CharField(max_length=40)
    lease_number = fields.IntField()
    listener_id = fields.CharField(max_length=40)
    serial = fields.BigIntField()
    lineage = fields.CharField(max_length=255, default="")
    md5 = fields.CharField(max_length=32)
    key = fields.CharField(max_length=200)
    sha256 = fields.CharField(max_length=64)
    size = fields.BigIntField()
    status = fields.CharField(max_length=8, default="waiting", db_default="waiting")
    #: What it was adopted as.
    state_version_id = fields.CharField(max_length=40, null=True)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "late_state"
        unique_together = (("run_id", "lease_number"),)


#: What of these tables is encrypted.
SEALED = (
    SealedColumn("authority", "key", "authority key"),
    SealedColumn("authority", "work_key", "authority work"),
    SealedObjects("late_state", "key"),
)
