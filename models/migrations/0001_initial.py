from tortoise import migrations
from tortoise.migrations import operations as ops
from models.agent import AgentAvailability
from models.api_key import Role
from models.attempt import AttemptState
from models.base import InstantField, now, uuid7
from models.job import ActorKind, CompletionMode, JobPhase, JobPriority, JobStatus, StatusReason
from models.job_log import JobLogType
from models.verdict import VerdictOutcome
from tortoise.fields.base import OnDelete
from tortoise import fields
from tortoise.indexes import Index


class Migration(migrations.Migration):
    initial = True

    operations = [
        ops.CreateModel(
            name="Agent",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("name", fields.CharField(unique=True, max_length=200)),
                ("description", fields.TextField(unique=False)),
                ("endpoint_url", fields.CharField(max_length=2000)),
                ("input_schema_json", fields.TextField(default="{}", unique=False)),
                ("output_schema_json", fields.TextField(default="{}", unique=False)),
                ("timeout_seconds", fields.IntField(default=60)),
                ("max_concurrency", fields.IntField(default=10)),
                ("idempotent", fields.BooleanField(default=False)),
                ("accepts_feedback", fields.BooleanField(default=False)),
                (
                    "availability",
                    fields.CharEnumField(
                        default=AgentAvailability.ACTIVE,
                        description="AgentAvailability",
                        enum_type=AgentAvailability,
                        max_length=16,
                    ),
                ),
                ("auth_header_sealed", fields.TextField(null=True, unique=False)),
                ("signing_secret_sealed", fields.TextField(unique=False)),
                ("version", fields.IntField(default=1)),
                ("updated_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "agents",
                "app": "models",
                "indexes": [Index(fields=["created_at", "id"], name="ix_agents_created")],
                "pk_attr": "id",
                "table_description": "Endpoints that do jobs",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="ApiKey",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("name", fields.CharField(max_length=200)),
                ("role", fields.CharEnumField(description="Role", enum_type=Role, max_length=16)),
                ("prefix", fields.CharField(max_length=16)),
                ("key_hash", fields.CharField(unique=True, max_length=64)),
                ("revoked_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "api_keys",
                "app": "models",
                "pk_attr": "id",
                "table_description": "Credentials",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="IdempotencyKey",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("viewer_id", fields.CharField(max_length=200)),
                ("key", fields.CharField(max_length=200)),
                ("request_hash", fields.CharField(max_length=64)),
                ("job_id", fields.UUIDField()),
            ],
            options={
                "table": "idempotency_keys",
                "app": "models",
                "unique_together": (("viewer_id", "key"),),
                "indexes": [Index(fields=["created_at"], name="ix_idempotency_created")],
                "pk_attr": "id",
                "table_description": "Mutations already answered",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="Job",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("name", fields.CharField(max_length=200)),
                ("description", fields.TextField(unique=False)),
                ("input_json", fields.TextField(default="null", unique=False)),
                ("acceptance_criteria", fields.TextField(unique=False)),
                ("criteria_version", fields.IntField(default=1)),
                (
                    "status",
                    fields.CharEnumField(
                        description="JobStatus", enum_type=JobStatus, max_length=32
                    ),
                ),
                (
                    "phase",
                    fields.CharEnumField(
                        null=True, description="JobPhase", enum_type=JobPhase, max_length=32
                    ),
                ),
                (
                    "status_reason",
                    fields.CharEnumField(
                        description="StatusReason", enum_type=StatusReason, max_length=40
                    ),
                ),
                ("status_message", fields.TextField(null=True, unique=False)),
                ("status_changed_at", InstantField(auto_now=False, auto_now_add=False)),
                (
                    "completion_mode",
                    fields.CharEnumField(
                        null=True,
                        description="CompletionMode",
                        enum_type=CompletionMode,
                        max_length=16,
                    ),
                ),
                ("result_json", fields.TextField(null=True, unique=False)),
                (
                    "priority",
                    fields.IntEnumField(
                        default=JobPriority.NORMAL,
                        description="JobPriority",
                        enum_type=JobPriority,
                        generated=False,
                    ),
                ),
                ("attempt_count", fields.IntField(default=0)),
                ("version", fields.IntField(default=1)),
                (
                    "created_by_kind",
                    fields.CharEnumField(
                        description="ActorKind", enum_type=ActorKind, max_length=16
                    ),
                ),
                ("created_by_id", fields.CharField(max_length=200)),
                ("created_by_name", fields.CharField(max_length=200)),
                ("updated_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("archived_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                (
                    "agent",
                    fields.ForeignKeyField(
                        "models.Agent",
                        source_field="agent_id",
                        null=True,
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
            ],
            options={
                "table": "jobs",
                "app": "models",
                "indexes": [
                    Index(fields=["created_at", "id"], name="ix_jobs_created"),
                    Index(fields=["updated_at", "id"], name="ix_jobs_updated"),
                    Index(fields=["priority", "created_at", "id"], name="ix_jobs_priority"),
                    Index(fields=["status", "created_at", "id"], name="ix_jobs_status"),
                    Index(fields=["agent_id", "created_at", "id"], name="ix_jobs_agent"),
                    Index(fields=["created_by_id", "created_at", "id"], name="ix_jobs_creator"),
                ],
                "pk_attr": "id",
                "table_description": "Work with acceptance criteria",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="Attempt",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("number", fields.IntField()),
                (
                    "state",
                    fields.CharEnumField(
                        description="AttemptState", enum_type=AttemptState, max_length=16
                    ),
                ),
                ("agent_snapshot_json", fields.TextField(unique=False)),
                ("feedback_json", fields.TextField(default="[]", unique=False)),
                ("criteria_version", fields.IntField()),
                ("resumptions", fields.IntField(default=0)),
                ("request_json", fields.TextField(null=True, unique=False)),
                ("response_json", fields.TextField(null=True, unique=False)),
                ("http_status", fields.IntField(null=True)),
                ("latency_ms", fields.IntField(null=True)),
                ("error_json", fields.TextField(null=True, unique=False)),
                ("started_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("responded_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("finished_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                (
                    "job",
                    fields.ForeignKeyField(
                        "models.Job",
                        source_field="job_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
                (
                    "agent",
                    fields.ForeignKeyField(
                        "models.Agent",
                        source_field="agent_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
            ],
            options={
                "table": "attempts",
                "app": "models",
                "unique_together": (("job", "number"),),
                "indexes": [
                    Index(fields=["agent_id", "created_at", "id"], name="ix_attempts_agent")
                ],
                "pk_attr": "id",
                "table_description": "Executions of jobs",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="CriteriaSet",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("version", fields.IntField()),
                ("text", fields.TextField(unique=False)),
                ("items_json", fields.TextField(unique=False)),
                ("pass_threshold", fields.FloatField()),
                (
                    "job",
                    fields.ForeignKeyField(
                        "models.Job",
                        source_field="job_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
            ],
            options={
                "table": "criteria_sets",
                "app": "models",
                "unique_together": (("job", "version"),),
                "pk_attr": "id",
                "table_description": "Versions of acceptance criteria",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="JobLog",
            fields=[
                (
                    "seq",
                    fields.BigIntField(
                        generated=True, primary_key=True, unique=True, db_index=True
                    ),
                ),
                (
                    "type",
                    fields.CharEnumField(
                        description="JobLogType", enum_type=JobLogType, max_length=24
                    ),
                ),
                (
                    "status",
                    fields.CharEnumField(
                        description="JobStatus", enum_type=JobStatus, max_length=32
                    ),
                ),
                ("message", fields.TextField(null=True, unique=False)),
                ("payload_json", fields.TextField(null=True, unique=False)),
                ("payload_truncated", fields.BooleanField(default=False)),
                (
                    "actor_kind",
                    fields.CharEnumField(
                        description="ActorKind", enum_type=ActorKind, max_length=16
                    ),
                ),
                ("actor_id", fields.CharField(null=True, max_length=200)),
                ("actor_name", fields.CharField(max_length=200)),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                (
                    "job",
                    fields.ForeignKeyField(
                        "models.Job",
                        source_field="job_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
                (
                    "attempt",
                    fields.ForeignKeyField(
                        "models.Attempt",
                        source_field="attempt_id",
                        null=True,
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
                (
                    "agent",
                    fields.ForeignKeyField(
                        "models.Agent",
                        source_field="agent_id",
                        null=True,
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
            ],
            options={
                "table": "job_logs",
                "app": "models",
                "indexes": [
                    Index(fields=["job_id", "seq"], name="ix_job_logs_job"),
                    Index(fields=["attempt_id"], name="ix_job_logs_attempt"),
                    Index(fields=["agent_id"], name="ix_job_logs_agent"),
                ],
                "pk_attr": "seq",
                "table_description": "The audit log and event stream",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="JobTag",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("tag", fields.CharField(max_length=100)),
                (
                    "job",
                    fields.ForeignKeyField(
                        "models.Job",
                        source_field="job_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
            ],
            options={
                "table": "job_tags",
                "app": "models",
                "unique_together": (("job", "tag"),),
                "indexes": [Index(fields=["tag", "job_id"], name="ix_job_tags_tag")],
                "pk_attr": "id",
                "table_description": "Tags of jobs",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="Verdict",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                (
                    "outcome",
                    fields.CharEnumField(
                        description="VerdictOutcome", enum_type=VerdictOutcome, max_length=16
                    ),
                ),
                ("score", fields.FloatField(null=True)),
                ("summary", fields.TextField(unique=False)),
                ("results_json", fields.TextField(unique=False)),
                ("judge_json", fields.TextField(unique=False)),
                ("input_tokens", fields.IntField(default=0)),
                ("output_tokens", fields.IntField(default=0)),
                ("latency_ms", fields.IntField(default=0)),
                (
                    "job",
                    fields.ForeignKeyField(
                        "models.Job",
                        source_field="job_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
                (
                    "attempt",
                    fields.ForeignKeyField(
                        "models.Attempt",
                        source_field="attempt_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
                (
                    "criteria_set",
                    fields.ForeignKeyField(
                        "models.CriteriaSet",
                        source_field="criteria_set_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
            ],
            options={
                "table": "verdicts",
                "app": "models",
                "indexes": [
                    Index(fields=["job_id", "created_at", "id"], name="ix_verdicts_job"),
                    Index(fields=["attempt_id", "created_at", "id"], name="ix_verdicts_attempt"),
                    Index(fields=["criteria_set_id"], name="ix_verdicts_criteria"),
                ],
                "pk_attr": "id",
                "table_description": "Judgements of attempts",
            },
            bases=["Table"],
        ),
    ]
