import functools
from json import dumps, loads

from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops

from terrapod_server.runs.states import Status


class Migration(migrations.Migration):
    initial = True

    operations = [
        ops.CreateModel(
            name="ApiToken",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("user_id", fields.CharField(db_index=True, max_length=40)),
                ("hash", fields.CharField(unique=True, max_length=64)),
                ("description", fields.CharField(default="", max_length=254)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("last_used_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("expired_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={"table": "api_token", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Authority",
            fields=[
                ("id", fields.IntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("certificate", fields.TextField(unique=False)),
                ("key", fields.BinaryField()),
                ("work_key", fields.BinaryField()),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={"table": "authority", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="ConfigurationVersion",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(max_length=40)),
                ("status", fields.CharField(default="pending", max_length=20)),
                ("source", fields.CharField(default="tfe-api", max_length=40)),
                ("speculative", fields.BooleanField(default=False)),
                ("provisional", fields.BooleanField(default=False)),
                ("auto_queue_runs", fields.BooleanField(default=True)),
                ("error_message", fields.TextField(default="", unique=False)),
                ("size", fields.BigIntField(default=0)),
                ("sha256", fields.CharField(default="", max_length=64)),
                ("stored_key", fields.CharField(default="", max_length=200)),
                ("created_by_id", fields.CharField(default="", max_length=40)),
                (
                    "status_timestamps",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "configuration_version",
                "app": "terrapod",
                "indexes": [Index(fields=["workspace_id", "id"])],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="EngineFile",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("tool", fields.CharField(max_length=10)),
                ("version", fields.CharField(max_length=40)),
                ("os", fields.CharField(max_length=10)),
                ("arch", fields.CharField(max_length=10)),
                ("sha256", fields.CharField(max_length=64)),
                ("size", fields.BigIntField()),
                ("source", fields.CharField(default="fetched", max_length=20)),
                ("cached_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("last_used_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "engine_file",
                "app": "terrapod",
                "unique_together": (("tool", "version", "os", "arch"),),
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="JoinToken",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("pool_id", fields.CharField(db_index=True, max_length=40)),
                ("hash", fields.CharField(unique=True, max_length=64)),
                ("description", fields.CharField(default="", max_length=254)),
                ("max_uses", fields.IntField(null=True, default=1)),
                ("use_count", fields.IntField(default=0)),
                ("revoked", fields.BooleanField(default=False)),
                ("expires_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("last_used_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("created_by_id", fields.CharField(default="", max_length=40)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={"table": "join_token", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="LateState",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(db_index=True, max_length=40)),
                ("run_id", fields.CharField(max_length=40)),
                ("lease_number", fields.IntField()),
                ("listener_id", fields.CharField(max_length=40)),
                ("serial", fields.BigIntField()),
                ("lineage", fields.CharField(default="", max_length=255)),
                ("md5", fields.CharField(max_length=32)),
                ("key", fields.CharField(max_length=200)),
                ("sha256", fields.CharField(max_length=64)),
                ("size", fields.BigIntField()),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "late_state",
                "app": "terrapod",
                "unique_together": (("run_id", "lease_number"),),
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Listener",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("pool_id", fields.CharField(db_index=True, max_length=40)),
                ("name", fields.CharField(unique=True, max_length=90)),
                ("public_key", fields.CharField(max_length=64)),
                ("sealing_key", fields.CharField(default="", max_length=64)),
                ("certificate_serial", fields.CharField(max_length=64)),
                ("certificate_until", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("revoked_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("allow_rejoin", fields.BooleanField(default=False)),
                ("last_seen_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("capacity", fields.IntField(default=1)),
                ("free_slots", fields.IntField(default=0)),
                ("version", fields.CharField(default="", max_length=40)),
                ("isolation", fields.CharField(default="", max_length=20)),
                ("os", fields.CharField(default="linux", max_length=20)),
                ("arch", fields.CharField(default="amd64", max_length=20)),
                (
                    "local_engines",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "spooled",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("draining", fields.BooleanField(default=False)),
                ("drain_requested", fields.BooleanField(default=False)),
                (
                    "runner_definitions",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={"table": "listener", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Nonce",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=110)),
                ("at", fields.DatetimeField(db_index=True, auto_now=False, auto_now_add=True)),
            ],
            options={"table": "listener_nonce", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Phase",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("run_id", fields.CharField(db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(db_index=True, max_length=40)),
                ("pool_id", fields.CharField(max_length=40)),
                ("kind", fields.CharField(max_length=5)),
                ("status", fields.CharField(default="pending", max_length=12)),
                (
                    "status_timestamps",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("lease_state", fields.CharField(default="none", max_length=8)),
                ("lease_number", fields.IntField(default=0)),
                ("lease_listener_id", fields.CharField(null=True, max_length=40)),
                ("lease_until", fields.FloatField(default=0.0)),
                ("lease_step", fields.CharField(default="", max_length=20)),
                ("lost_count", fields.IntField(default=0)),
                ("exit_code", fields.IntField(null=True)),
                (
                    "digests",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("resource_additions", fields.IntField(default=0)),
                ("resource_changes", fields.IntField(default=0)),
                ("resource_destructions", fields.IntField(default=0)),
                ("resource_imports", fields.IntField(default=0)),
                ("generated_configuration", fields.BooleanField(default=False)),
                ("log_size", fields.BigIntField(default=-1)),
                ("log_sealed", fields.BooleanField(default=False)),
            ],
            options={
                "table": "run_phase",
                "app": "terrapod",
                "indexes": [
                    Index(fields=["pool_id", "lease_state", "id"]),
                    Index(fields=["lease_listener_id", "lease_state"]),
                    Index(fields=["lease_state", "lease_until"]),
                ],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Pool",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("name", fields.CharField(unique=True, max_length=90)),
                ("description", fields.TextField(default="", unique=False)),
                ("organization_scoped", fields.BooleanField(default=True)),
                ("allow_server_keys", fields.BooleanField(default=False)),
                ("service_account_name", fields.CharField(default="", max_length=254)),
                (
                    "labels",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("owner_id", fields.CharField(default="", max_length=40)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={"table": "agent_pool", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="PoolWorkspace",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("pool_id", fields.CharField(max_length=40)),
                ("workspace_id", fields.CharField(db_index=True, max_length=40)),
            ],
            options={
                "table": "agent_pool_workspace",
                "app": "terrapod",
                "unique_together": (("pool_id", "workspace_id"),),
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="RemoteStateConsumer",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("workspace_id", fields.CharField(max_length=40)),
                ("consumer_id", fields.CharField(db_index=True, max_length=40)),
            ],
            options={
                "table": "remote_state_consumer",
                "app": "terrapod",
                "unique_together": (("workspace_id", "consumer_id"),),
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Repeat",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=64)),
                ("request", fields.CharField(max_length=64)),
                ("status", fields.IntField(default=0)),
                ("body", fields.BinaryField(default=b"")),
                ("created_at", fields.DatetimeField(db_index=True, auto_now=False, auto_now_add=True)),
            ],
            options={"table": "repeat", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Run",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(max_length=40)),
                ("configuration_version_id", fields.CharField(db_index=True, max_length=40)),
                ("pool_id", fields.CharField(max_length=40)),
                (
                    "status",
                    fields.CharEnumField(
                        default=Status.PENDING,
                        description="PENDING: pending\nPLAN_QUEUED: plan_queued\nPLANNING: planning\nPLANNED: planned\nPLANNED_AND_SAVED: planned_and_saved\nPLANNED_AND_FINISHED: planned_and_finished\nCONFIRMED: confirmed\nAPPLY_QUEUED: apply_queued\nAPPLYING: applying\nAPPLIED: applied\nDISCARDED: discarded\nCANCELED: canceled\nERRORED: errored",
                        enum_type=Status,
                        max_length=24,
                    ),
                ),
                ("message", fields.TextField(default="", unique=False)),
                ("source", fields.CharField(default="tfe-api", max_length=40)),
                ("is_destroy", fields.BooleanField(default=False)),
                ("plan_only", fields.BooleanField(default=False)),
                ("save_plan", fields.BooleanField(default=False)),
                ("auto_apply", fields.BooleanField(default=False)),
                ("refresh", fields.BooleanField(default=True)),
                ("refresh_only", fields.BooleanField(default=False)),
                ("allow_empty_apply", fields.BooleanField(default=False)),
                ("allow_config_generation", fields.BooleanField(default=False)),
                (
                    "target_addrs",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "replace_addrs",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("variables", fields.BinaryField(default=b"")),
                ("engine_tool", fields.CharField(default="terraform", max_length=10)),
                ("engine_version", fields.CharField(max_length=40)),
                ("engine_is_local", fields.BooleanField(default=False)),
                ("working_directory", fields.CharField(default="", max_length=1024)),
                ("resource_cpu", fields.CharField(default="", max_length=20)),
                ("resource_memory", fields.CharField(default="", max_length=20)),
                ("structured", fields.BooleanField(default=False)),
                ("holds_queue", fields.BooleanField(default=False)),
                ("has_changes", fields.BooleanField(default=False)),
                ("error_message", fields.TextField(default="", unique=False)),
                ("status_message", fields.TextField(default="", unique=False)),
                ("cancel_requested", fields.CharField(default="", max_length=12)),
                ("canceled_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("force_cancel_available_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("force_canceled_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                (
                    "status_timestamps",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("created_by_id", fields.CharField(default="", max_length=40)),
                ("created_by_token", fields.CharField(default="", max_length=40)),
                ("request_hash", fields.CharField(default="", max_length=64)),
                ("confirmed_by_id", fields.CharField(default="", max_length=40)),
                ("confirmed_by_token", fields.CharField(default="", max_length=40)),
                ("confirmed_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "run",
                "app": "terrapod",
                "indexes": [
                    Index(fields=["workspace_id", "id"]),
                    Index(fields=["workspace_id", "plan_only", "status", "id"]),
                    Index(fields=["workspace_id", "holds_queue"]),
                    Index(fields=["status", "id"]),
                ],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="RunEvent",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("run_id", fields.CharField(db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(max_length=40)),
                ("event", fields.CharField(max_length=20)),
                ("status", fields.CharField(max_length=24)),
                ("user_id", fields.CharField(default="", max_length=40)),
                ("description", fields.TextField(default="", unique=False)),
                ("at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "run_event",
                "app": "terrapod",
                "indexes": [Index(fields=["workspace_id", "id"])],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="StateOutput",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("state_version_id", fields.CharField(db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(db_index=True, max_length=40)),
                ("name", fields.CharField(max_length=255)),
                ("type", fields.CharField(max_length=20)),
                (
                    "detailed_type",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("sensitive", fields.BooleanField(default=False)),
                ("value", fields.BinaryField()),
            ],
            options={"table": "state_output", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="StateVersion",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(max_length=40)),
                ("status", fields.CharField(default="pending", max_length=12)),
                ("serial", fields.BigIntField()),
                ("lineage", fields.CharField(default="", max_length=255)),
                ("md5", fields.CharField(max_length=32)),
                ("sha256", fields.CharField(default="", max_length=64)),
                ("key", fields.CharField(default="", max_length=200)),
                ("size", fields.BigIntField(default=0)),
                ("forced", fields.BooleanField(default=False)),
                ("run_id", fields.CharField(null=True, max_length=40)),
                ("created_by_id", fields.CharField(default="", max_length=40)),
                ("terraform_version", fields.CharField(default="", max_length=40)),
                (
                    "resources",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "modules",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "providers",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("resource_count", fields.IntField(default=0)),
                ("intermediate", fields.BooleanField(default=False)),
                ("has_json", fields.BooleanField(default=False)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("finalized_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "state_version",
                "app": "terrapod",
                "indexes": [Index(fields=["workspace_id", "status", "id"]), Index(fields=["workspace_id", "id"])],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="User",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("email", fields.CharField(unique=True, max_length=254)),
                ("display_name", fields.CharField(default="", max_length=254)),
                ("is_active", fields.BooleanField(default=True)),
                ("is_admin", fields.BooleanField(default=False)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("updated_at", fields.DatetimeField(auto_now=True, auto_now_add=False)),
            ],
            options={"table": "user_account", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Variable",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("workspace_id", fields.CharField(max_length=40)),
                ("key", fields.CharField(max_length=255)),
                ("category", fields.CharField(max_length=10)),
                ("value", fields.BinaryField()),
                ("description", fields.TextField(default="", unique=False)),
                ("hcl", fields.BooleanField(default=False)),
                ("sensitive", fields.BooleanField(default=False)),
                ("version_id", fields.CharField(max_length=40)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("updated_at", fields.DatetimeField(auto_now=True, auto_now_add=False)),
            ],
            options={
                "table": "variable",
                "app": "terrapod",
                "unique_together": (("workspace_id", "category", "key"),),
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Workspace",
            fields=[
                ("id", fields.CharField(primary_key=True, unique=True, db_index=True, max_length=40)),
                ("name", fields.CharField(unique=True, max_length=90)),
                ("description", fields.TextField(default="", unique=False)),
                ("execution_mode", fields.CharField(default="remote", max_length=10)),
                ("execution_backend", fields.CharField(default="terraform", max_length=10)),
                ("terraform_version", fields.CharField(default="latest", max_length=40)),
                ("working_directory", fields.CharField(default="", max_length=1024)),
                ("auto_apply", fields.BooleanField(default=False)),
                ("auto_apply_run_trigger", fields.BooleanField(default=False)),
                ("agent_pool_id", fields.CharField(null=True, db_index=True, max_length=40)),
                ("allow_destroy_plan", fields.BooleanField(default=True)),
                ("assessments_enabled", fields.BooleanField(default=False)),
                ("file_triggers_enabled", fields.BooleanField(default=True)),
                ("global_remote_state", fields.BooleanField(default=False)),
                ("queue_all_runs", fields.BooleanField(default=False)),
                ("speculative_enabled", fields.BooleanField(default=True)),
                ("structured_run_output_enabled", fields.BooleanField(default=True)),
                ("source", fields.CharField(default="tfe-api", max_length=40)),
                ("source_name", fields.CharField(default="", max_length=254)),
                ("source_url", fields.CharField(default="", max_length=1024)),
                (
                    "trigger_prefixes",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                (
                    "trigger_patterns",
                    fields.JSONField(
                        default=list, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("resource_cpu", fields.CharField(default="1", max_length=20)),
                ("resource_memory", fields.CharField(default="2Gi", max_length=20)),
                ("vcs_repo_url", fields.CharField(default="", max_length=1024)),
                ("vcs_branch", fields.CharField(default="", max_length=254)),
                ("drift_detection_enabled", fields.BooleanField(default=False)),
                ("drift_detection_interval_seconds", fields.IntField(default=86400)),
                (
                    "labels",
                    fields.JSONField(
                        default=dict, encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads
                    ),
                ),
                ("owner_id", fields.CharField(default="", max_length=40)),
                ("owner_email", fields.CharField(default="", max_length=254)),
                ("locked", fields.BooleanField(default=False)),
                ("lock_reason", fields.CharField(default="", max_length=1024)),
                ("locked_by_id", fields.CharField(null=True, max_length=40)),
                ("locked_by_name", fields.CharField(default="", max_length=254)),
                ("locked_at", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("run_lock_id", fields.CharField(null=True, max_length=40)),
                ("current_run_id", fields.CharField(null=True, max_length=40)),
                ("current_state_version_id", fields.CharField(null=True, max_length=40)),
                ("resource_count", fields.IntField(default=0)),
                ("created_at", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("updated_at", fields.DatetimeField(auto_now=True, auto_now_add=False)),
            ],
            options={"table": "workspace", "app": "terrapod", "pk_attr": "id"},
            bases=["Model"],
        ),
        ops.CreateModel(
            name="WorkspaceLabel",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("workspace_id", fields.CharField(max_length=40)),
                ("key", fields.CharField(max_length=254)),
                ("value", fields.CharField(max_length=254)),
            ],
            options={
                "table": "workspace_label",
                "app": "terrapod",
                "unique_together": (("workspace_id", "key"),),
                "indexes": [Index(fields=["key", "value", "workspace_id"])],
                "pk_attr": "id",
            },
            bases=["Model"],
        ),
    ]
