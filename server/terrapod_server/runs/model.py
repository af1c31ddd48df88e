"""Tables of runs, of their two phases with the leases, and of what happened to them."""

from datetime import datetime
from typing import Any

from tortoise import fields

from terrapod_server.kit.table import Table
from terrapod_server.runs.states import FINAL, Status
from terrapod_server.store.sealed import SealedColumn


class Run(Table):
    """A run. `status` is written by `change.Change.fire` and by nothing else."""

    id = fields.CharField(primary_key=True, max_length=40)
    workspace_id = fields.CharField(max_length=40)
    configuration_version_id = fields.CharField(max_length=40, db_index=True)
    pool_id = fields.CharField(max_length=40)
    status: Any = fields.CharEnumField(Status, default=Status.PENDING, max_length=24)
    message = fields.TextField(default="")
    source = fields.CharField(max_length=40, default="tfe-api")
    #: Whether the terraform CLI began it, with whichever backend: it follows the run.
    is_terraform = fields.BooleanField(default=False, db_default=False)
    is_destroy = fields.BooleanField(default=False)
    plan_only = fields.BooleanField(default=False)
    save_plan = fields.BooleanField(default=False)
    auto_apply = fields.BooleanField(default=False)
    refresh = fields.BooleanField(default=True)
    refresh_only = fields.BooleanField(default=False)
    allow_empty_apply = fields.BooleanField(default=False)
    allow_config_generation = fields.BooleanField(default=False)
    target_addrs: Any = fields.JSONField(default=list)
    replace_addrs: Any = fields.JSONField(default=list)
    #: JSON list of {key, value}, sealed under `run <id>`: values may be secrets.
    variables = fields.BinaryField(default=b"")
    engine_tool = fields.CharField(max_length=10, default="terraform")
    #: Exact; empty until it is known, and kept from then on.
    engine_version = fields.CharField(max_length=40)
    #: What was asked for: exact, partial, a constraint or `latest`.
    engine_wanted = fields.CharField(max_length=40, default="", db_default="")
    #: No release site can give it now: only listeners that announced exactly this engine can run it.
    engine_is_local = fields.BooleanField(default=False)
    working_directory = fields.CharField(max_length=1024, default="")
    resource_cpu = fields.CharField(max_length=20, default="")
    resource_memory = fields.CharField(max_length=20, default="")
    structured = fields.BooleanField(default=False)
    #: For what its apply waits where nobody confirms it; see `readers`.
    awaited_read = fields.CharField(max_length=3, default="", db_default="")
    #: Whether it is the one apply-capable run of its workspace that is active.
    holds_queue = fields.BooleanField(default=False)
    has_changes = fields.BooleanField(default=False)
    error_message = fields.TextField(default="")
    status_message = fields.TextField(default="")
    cancel_requested = fields.CharField(max_length=12, default="")  #: "", cancel, force-cancel
    canceled_at: datetime | None = fields.DatetimeField(null=True)
    force_cancel_available_at: datetime | None = fields.DatetimeField(null=True)
    force_canceled_at: datetime | None = fields.DatetimeField(null=True)
    status_timestamps: Any = fields.JSONField(default=dict)
    created_by_id = fields.CharField(max_length=40, default="")
    created_by_token = fields.CharField(max_length=40, default="")
    request_hash = fields.CharField(max_length=64, default="")
    confirmed_by_id = fields.CharField(max_length=40, default="")
    confirmed_by_token = fields.CharField(max_length=40, default="")
    confirmed_at: datetime | None = fields.DatetimeField(null=True)
    created_at = fields.DatetimeField(auto_now_add=True)

    #: Raised by the database at each change; see `kit.db.row_versions`.
    revision = fields.BigIntField(default=0, db_default=0)

    #: Which runs a list that is not filtered holds depends on this alone.
    counted = ("workspace_id",)

    class Meta:
        table = "run"
        indexes = (
            ("workspace_id", "id"),
            ("workspace_id", "plan_only", "status", "id"),
            ("workspace_id", "holds_queue"),
            ("status", "id"),
        )

    @property
    def tail(self) -> str:
        return self.id.partition("-")[2]

    @property
    def plan_id(self) -> str:
        return f"plan-{self.tail}"

    @property
    def apply_id(self) -> str:
        return f"apply-{self.tail}"

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


class Phase(Table):
    """The plan or the apply of a run, with its lease.

    `lease_until` is in seconds of the clock that judges leases; of a phase that
    is ready it is the time before which nobody is offered it. `lease_state`:
    `none`, `ready` (waits for a listener), `offered`, `leased`, `held` (its
    listener is lost, and only it may end the apply), `ended`, `gone` (the
    workspace was deleted, and there is no run; its listener has not let go).
    """

    id = fields.CharField(primary_key=True, max_length=40)
    run_id = fields.CharField(max_length=40, db_index=True)
    workspace_id = fields.CharField(max_length=40, db_index=True)
    pool_id = fields.CharField(max_length=40)
    kind = fields.CharField(max_length=5)
    status = fields.CharField(max_length=12, default="pending")
    status_timestamps: Any = fields.JSONField(default=dict)
    lease_state = fields.CharField(max_length=8, default="none")
    lease_number = fields.IntField(default=0)
    lease_listener_id: Any = fields.CharField(max_length=40, null=True)
    lease_until = fields.FloatField(default=0.0)
    lease_step = fields.CharField(max_length=20, default="")
    lost_count = fields.IntField(default=0)
    exit_code: int | None = fields.IntField(null=True)
    digests: Any = fields.JSONField(default=dict)
    resource_additions = fields.IntField(default=0)
    resource_changes = fields.IntField(default=0)
    resource_destructions = fields.IntField(default=0)
    resource_imports = fields.IntField(default=0)
    generated_configuration = fields.BooleanField(default=False)
    #: Size of the raw log once the phase is over; -1 before.
    log_size = fields.BigIntField(default=-1)
    log_sealed = fields.BooleanField(default=False)

    #: Copied from the run by `actions.phases_of`, for the API.
    has_changes: bool = False

    class Meta:
        table = "run_phase"
        indexes = (
            ("pool_id", "lease_state", "id"),
            ("lease_listener_id", "lease_state"),
            ("lease_state", "lease_until"),
        )

    @property
    def is_over(self) -> bool:
        return self.status in OVER


OVER = frozenset({"finished", "errored", "canceled", "unreachable"})


class RunEvent(Table):
    """What happened to a run, or to a workspace alone; written by `change.write` and by nothing else."""

    id = fields.BigIntField(primary_key=True, generated=True)
    run_id: Any = fields.CharField(max_length=40, db_index=True, null=True)
    workspace_id = fields.CharField(max_length=40)
    event = fields.CharField(max_length=20)
    status = fields.CharField(max_length=24)
    user_id = fields.CharField(max_length=40, default="")
    description = fields.TextField(default="")
    at = fields.DatetimeField(auto_now_add=True)

    class Meta:
        table = "run_event"
        indexes = (("workspace_id", "id"),)


#: What of these tables is encrypted.
SEALED = (SealedColumn("run", "variables", "run {id}"),)
