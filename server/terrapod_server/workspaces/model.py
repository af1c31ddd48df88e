"""Tables of workspaces. Labels stand twice: on the row to be shown, in a table to be searched."""

from datetime import datetime
from typing import Any

from tortoise import fields

from terrapod_server.kit.table import Table


class Workspace(Table):
    """One state and the settings of the runs that change it."""

    id = fields.CharField(primary_key=True, max_length=40)
    name = fields.CharField(max_length=90, unique=True)
    description = fields.TextField(default="")
    execution_mode = fields.CharField(max_length=10, default="remote")
    execution_backend = fields.CharField(max_length=10, default="terraform")
    terraform_version = fields.CharField(max_length=40, default="latest")
    working_directory = fields.CharField(max_length=1024, default="")
    auto_apply = fields.BooleanField(default=False)
    auto_apply_run_trigger = fields.BooleanField(default=False)
    agent_pool_id = fields.CharField(max_length=40, null=True, db_index=True)
    allow_destroy_plan = fields.BooleanField(default=True)
    assessments_enabled = fields.BooleanField(default=False)
    file_triggers_enabled = fields.BooleanField(default=True)
    global_remote_state = fields.BooleanField(default=False)
    queue_all_runs = fields.BooleanField(default=False)
    speculative_enabled = fields.BooleanField(default=True)
    structured_run_output_enabled = fields.BooleanField(default=True)
    source = fields.CharField(max_length=40, default="tfe-api")
    source_name = fields.CharField(max_length=254, default="")
    source_url = fields.CharField(max_length=1024, default="")
    trigger_prefixes: Any = fields.JSONField(default=list)
    trigger_patterns: Any = fields.JSONField(default=list)
    resource_cpu = fields.CharField(max_length=20, default="1")
    resource_memory = fields.CharField(max_length=20, default="2Gi")
    vcs_repo_url = fields.CharField(max_length=1024, default="")
    vcs_branch = fields.CharField(max_length=254, default="")
    drift_detection_enabled = fields.BooleanField(default=False)
    drift_detection_interval_seconds = fields.IntField(default=86_400)
    labels: Any = fields.JSONField(default=dict)
    owner_id = fields.CharField(max_length=40, default="")
    owner_email = fields.CharField(max_length=254, default="")
    #: The manual lock; a run's lock is `run_lock_id`. Neither ever changes the other.
    locked = fields.BooleanField(default=False)
    lock_reason = fields.CharField(max_length=1024, default="")
    locked_by_id = fields.CharField(max_length=40, null=True)
    locked_by_name = fields.CharField(max_length=254, default="")
    locked_at = fields.DatetimeField(null=True)
    #: The run that is confirmed or applies; written by `runs.actions` alone.
    run_lock_id = fields.CharField(max_length=40, null=True)
    #: Why the lock of a run outlives it, and what to check: the state after its apply is unknown. Empty: it does not.
    run_lock_reason = fields.CharField(max_length=1024, default="", db_default="")
    current_run_id = fields.CharField(max_length=40, null=True)
    current_state_version_id = fields.CharField(max_length=40, null=True)
    resource_count = fields.IntField(default=0)
    #: States that came after their lease and wait for an admin's word; written by `agents.late` alone.
    late_state_count = fields.IntField(default=0, db_default=0)
    created_at = fields.DatetimeField(auto_now_add=True)
    updated_at = fields.DatetimeField(auto_now=True)

    #: Raised by the database at each change; see `kit.db.row_versions`.
    revision = fields.BigIntField(default=0, db_default=0)

    #: Which workspaces a caller's list holds depends on these alone.
    counted = ("name", "labels", "owner_id")

    class Meta:
        table = "workspace"


class DeletedWorkspace(Table):
    """A workspace that is gone, while files of it may be left or its last state is kept.

    `sweep_at` is when files are looked for next; null: never again.
    """

    id = fields.CharField(primary_key=True, max_length=40)
    name = fields.CharField(max_length=90)
    deleted_by_id = fields.CharField(max_length=40, default="")
    deleted_by_name = fields.CharField(max_length=254, default="")
    deleted_at = fields.DatetimeField(auto_now_add=True)
    sweep_at: datetime | None = fields.DatetimeField(null=True, db_index=True)

    class Meta:
        table = "deleted_workspace"


class WorkspaceLabel(Table):
    """A label of a workspace, once more, for searches."""

    id = fields.BigIntField(primary_key=True, generated=True)
    workspace_id = fields.CharField(max_length=40)
    key = fields.CharField(max_length=254)
    value = fields.CharField(max_length=254)

    class Meta:
        table = "workspace_label"
        unique_together = (("workspace_id", "key"),)
        indexes = (("key", "value", "workspace_id"),)


class RemoteStateConsumer(Table):
    """`consumer_id` may read the state of `workspace_id` from inside its runs."""

    id = fields.BigIntField(primary_key=True, generated=True)
    workspace_id = fields.CharField(max_length=40)
    consumer_id = fields.CharField(max_length=40, db_index=True)

    class Meta:
        table = "remote_state_consumer"
        unique_together = (("workspace_id", "consumer_id"),)
