from tortoise import migrations
from tortoise.migrations import operations as ops
from models.base import InstantField, now, uuid7
from models.job import DependencyPolicy
from models.queue_entry import QueueState
from models.timer import TimerKind
from tortoise.fields.base import OnDelete
from uuid import uuid4
from tortoise import fields
from tortoise.indexes import Index


class AddFilled(ops.AddField):
    """A column that may not be NULL: rows that are there get its default, at no cost."""

    async def database_forward(self, app_label, old_state, new_state, state_editor=None):
        model = new_state.apps.get_model(f"{app_label}.{self.model_name}")
        field = model._meta.fields_map[self.name]
        without = field.db_default
        field.db_default = field.default
        try:
            await super().database_forward(app_label, old_state, new_state, state_editor)
        finally:
            field.db_default = without


class Migration(migrations.Migration):
    dependencies = [("models", "0001_initial")]

    initial = False

    operations = [
        ops.CreateModel(
            name="AgentGate",
            fields=[
                (
                    "agent_id",
                    fields.UUIDField(primary_key=True, default=uuid4, unique=True, db_index=True),
                ),
                ("failures", fields.IntField(default=0)),
                ("opened", fields.IntField(default=0)),
                ("open_until", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("reason", fields.TextField(null=True, unique=False)),
                ("rate_at", fields.BigIntField(default=0)),
            ],
            options={
                "table": "agent_gates",
                "app": "models",
                "pk_attr": "agent_id",
                "table_description": "Circuit breakers and rates of agents",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="JobDependency",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("alias", fields.CharField(null=True, max_length=100)),
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
                    "depends_on",
                    fields.ForeignKeyField(
                        "models.Job",
                        source_field="depends_on_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
            ],
            options={
                "table": "job_dependencies",
                "app": "models",
                "unique_together": (("job", "depends_on"),),
                "indexes": [Index(fields=["depends_on_id", "id"], name="ix_job_dependencies_on")],
                "pk_attr": "id",
                "table_description": "Jobs that wait for others",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="QueueEntry",
            fields=[
                (
                    "job_id",
                    fields.UUIDField(primary_key=True, default=uuid4, unique=True, db_index=True),
                ),
                ("number", fields.IntField()),
                ("agent_id", fields.UUIDField()),
                ("owner_id", fields.CharField(max_length=200)),
                ("priority", fields.IntField()),
                (
                    "state",
                    fields.CharEnumField(
                        description="QueueState", enum_type=QueueState, max_length=16
                    ),
                ),
                ("rank", fields.BigIntField()),
                ("queued_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("ready_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("worker_id", fields.UUIDField(null=True)),
                ("lost", fields.IntField(default=0)),
                ("failures", fields.IntField(default=0)),
            ],
            options={
                "table": "queue_entries",
                "app": "models",
                "indexes": [
                    Index(fields=["state", "agent_id", "rank"], name="ix_queue_entries_lane"),
                    Index(
                        fields=["owner_id", "agent_id", "priority", "state", "rank"],
                        name="ix_queue_entries_owner",
                    ),
                    Index(fields=["worker_id"], name="ix_queue_entries_worker"),
                ],
                "pk_attr": "job_id",
                "table_description": "Executions to be run",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Timer",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                (
                    "kind",
                    fields.CharEnumField(
                        description="TimerKind", enum_type=TimerKind, max_length=16
                    ),
                ),
                ("at", InstantField(auto_now=False, auto_now_add=False)),
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
                "table": "timers",
                "app": "models",
                "unique_together": (("job", "kind"),),
                "indexes": [Index(fields=["at", "id"], name="ix_timers_at")],
                "pk_attr": "id",
                "table_description": "What is to happen to jobs, and when",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="Worker",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("name", fields.CharField(max_length=200)),
                ("seen_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "workers",
                "app": "models",
                "pk_attr": "id",
                "table_description": "Processes that run executions",
            },
            bases=["Table"],
        ),
        ops.AddField(
            model_name="Agent",
            name="max_call_micros",
            field=fields.BigIntField(null=True),
        ),
        ops.AddField(
            model_name="Agent",
            name="max_call_tokens",
            field=fields.BigIntField(null=True),
        ),
        ops.AddField(
            model_name="Agent",
            name="rate_per_minute",
            field=fields.IntField(null=True),
        ),
        ops.AddField(
            model_name="Agent",
            name="retry_json",
            field=fields.TextField(null=True, unique=False),
        ),
        AddFilled(
            model_name="Attempt",
            name="cost_micros",
            field=fields.BigIntField(default=0),
        ),
        ops.AddField(
            model_name="Attempt",
            name="idempotency_key",
            field=fields.CharField(null=True, max_length=200),
        ),
        AddFilled(
            model_name="Attempt",
            name="input_tokens",
            field=fields.BigIntField(default=0),
        ),
        AddFilled(
            model_name="Attempt",
            name="output_tokens",
            field=fields.BigIntField(default=0),
        ),
        AddFilled(
            model_name="Attempt",
            name="reserved_micros",
            field=fields.BigIntField(default=0),
        ),
        AddFilled(
            model_name="Attempt",
            name="reserved_tokens",
            field=fields.BigIntField(default=0),
        ),
        ops.AddField(
            model_name="Attempt",
            name="traceparent",
            field=fields.CharField(null=True, max_length=64),
        ),
        AddFilled(
            model_name="Job",
            name="agent_attempts",
            field=fields.IntField(default=0),
        ),
        AddFilled(
            model_name="Job",
            name="armed",
            field=fields.BooleanField(default=False),
        ),
        AddFilled(
            model_name="Job",
            name="auto_execute",
            field=fields.BooleanField(default=False),
        ),
        ops.AddField(
            model_name="Job",
            name="budget_json",
            field=fields.TextField(null=True, unique=False),
        ),
        AddFilled(
            model_name="Job",
            name="cost_micros",
            field=fields.BigIntField(default=0),
        ),
        AddFilled(
            model_name="Job",
            name="dependency_count",
            field=fields.IntField(default=0),
        ),
        AddFilled(
            model_name="Job",
            name="dependency_policy",
            field=fields.CharEnumField(
                default=DependencyPolicy.BLOCK,
                description="DependencyPolicy",
                enum_type=DependencyPolicy,
                max_length=16,
            ),
        ),
        ops.AddField(
            model_name="Job",
            name="due_at",
            field=InstantField(null=True, auto_now=False, auto_now_add=False),
        ),
        ops.AddField(
            model_name="Job",
            name="expires_at",
            field=InstantField(null=True, auto_now=False, auto_now_add=False),
        ),
        AddFilled(
            model_name="Job",
            name="fallbacks_used",
            field=fields.IntField(default=0),
        ),
        AddFilled(
            model_name="Job",
            name="first_attempt",
            field=fields.IntField(default=1),
        ),
        AddFilled(
            model_name="Job",
            name="input_tokens",
            field=fields.BigIntField(default=0),
        ),
        AddFilled(
            model_name="Job",
            name="judge_cost_micros",
            field=fields.BigIntField(default=0),
        ),
        AddFilled(
            model_name="Job",
            name="output_tokens",
            field=fields.BigIntField(default=0),
        ),
        ops.AddField(
            model_name="Job",
            name="retry_json",
            field=fields.TextField(null=True, unique=False),
        ),
        ops.AddField(
            model_name="Job",
            name="run_at",
            field=InstantField(null=True, auto_now=False, auto_now_add=False),
        ),
        ops.AddIndex(
            model_name="Job",
            index=Index(fields=["due_at", "id"], name="ix_jobs_due"),
        ),
        AddFilled(
            model_name="Verdict",
            name="cost_micros",
            field=fields.BigIntField(default=0),
        ),
    ]
