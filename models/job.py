from __future__ import annotations

from enum import IntEnum, StrEnum
from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index

from models.agent import Agent
from models.base import InstantField, Table, now
from models.workspace import DEFAULT_WORKSPACE


class JobStatus(StrEnum):
    PENDING = "PENDING"
    ASSIGNED = "ASSIGNED"
    IN_EXECUTION = "IN_EXECUTION"
    RESUBMISSION_REQUIRED = "RESUBMISSION_REQUIRED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"


class JobPhase(StrEnum):
    """How far an execution is; only while IN_EXECUTION."""

    QUEUED = "QUEUED"
    CALLING_AGENT = "CALLING_AGENT"
    AWAITING_AGENT = "AWAITING_AGENT"
    CHECKING_OUTPUT = "CHECKING_OUTPUT"
    VALIDATING = "VALIDATING"
    AWAITING_REVIEW = "AWAITING_REVIEW"
    RETRY_WAIT = "RETRY_WAIT"


class StatusReason(StrEnum):
    CREATED = "CREATED"
    ASSIGNED_MANUALLY = "ASSIGNED_MANUALLY"
    ASSIGNED_AUTOMATICALLY = "ASSIGNED_AUTOMATICALLY"
    UNASSIGNED = "UNASSIGNED"
    EXECUTION_REQUESTED = "EXECUTION_REQUESTED"
    VERDICT_PASSED = "VERDICT_PASSED"
    VERDICT_FAILED = "VERDICT_FAILED"
    OUTPUT_SCHEMA_INVALID = "OUTPUT_SCHEMA_INVALID"
    AGENT_ERROR = "AGENT_ERROR"
    AGENT_TIMEOUT = "AGENT_TIMEOUT"
    AGENT_UNREACHABLE = "AGENT_UNREACHABLE"
    AGENT_REJECTED = "AGENT_REJECTED"
    VALIDATOR_ERROR = "VALIDATOR_ERROR"
    WORKER_LOST = "WORKER_LOST"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    EXPIRED = "EXPIRED"
    RESUBMISSION_REQUESTED = "RESUBMISSION_REQUESTED"
    REVIEW_APPROVED = "REVIEW_APPROVED"
    REVIEW_REJECTED = "REVIEW_REJECTED"
    FORCED = "FORCED"
    REOPENED = "REOPENED"
    CANCELLED_BY_USER = "CANCELLED_BY_USER"
    DEPENDENCY_CANCELLED = "DEPENDENCY_CANCELLED"


class CompletionMode(StrEnum):
    """What a completed job was signed off by."""

    VALIDATED = "VALIDATED"
    REVIEWED = "REVIEWED"
    FORCED = "FORCED"


class JobPriority(IntEnum):
    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3


class DependencyPolicy(StrEnum):
    """What becomes of a job when one that it waits for is cancelled."""

    BLOCK = "BLOCK"
    CANCEL = "CANCEL"
    IGNORE = "IGNORE"


class ActorKind(StrEnum):
    USER = "USER"
    API_KEY = "API_KEY"
    AGENT = "AGENT"
    SYSTEM = "SYSTEM"


class Job(Table):
    """A piece of work with acceptance criteria.

    `armed` says that it starts by itself when `run_at` and its dependencies allow.
    `dependency_count` is how many it has, done or not: most have none to ask for.
    `first_attempt` is the first of the attempts that one request for an execution led to,
    `agent_attempts` are those of them that its present agent had, and `fallbacks_used` says
    how far down the ladder of agents they came. Costs are in millionths of a dollar.
    `log_head` is the hash of the job's newest log entry.
    """

    name = fields.CharField(max_length=200)
    description = fields.TextField()
    input_json = fields.TextField(default="null")
    acceptance_criteria = fields.TextField()
    criteria_version = fields.IntField(default=1)

    status = fields.CharEnumField(JobStatus, max_length=32, description="JobStatus")
    phase = fields.CharEnumField(JobPhase, max_length=32, null=True, description="JobPhase")
    status_reason = fields.CharEnumField(StatusReason, max_length=40, description="StatusReason")
    status_message = fields.TextField(null=True)
    status_changed_at = InstantField()
    completion_mode = fields.CharEnumField(
        CompletionMode, max_length=16, null=True, description="CompletionMode"
    )
    result_json = fields.TextField(null=True)

    priority = fields.IntEnumField(
        JobPriority, default=JobPriority.NORMAL, description="JobPriority"
    )
    run_at = InstantField(null=True)
    due_at = InstantField(null=True)
    expires_at = InstantField(null=True)
    auto_execute = fields.BooleanField(default=False)
    armed = fields.BooleanField(default=False)
    dependency_count = fields.IntField(default=0)
    dependency_policy = fields.CharEnumField(
        DependencyPolicy,
        max_length=16,
        default=DependencyPolicy.BLOCK,
        description="DependencyPolicy",
    )
    retry_json = fields.TextField(null=True)
    budget_json = fields.TextField(null=True)
    input_tokens: fields.Field[int] = fields.BigIntField(default=0)
    output_tokens: fields.Field[int] = fields.BigIntField(default=0)
    cost_micros: fields.Field[int] = fields.BigIntField(default=0)
    judge_cost_micros: fields.Field[int] = fields.BigIntField(default=0)

    attempt_count = fields.IntField(default=0)
    first_attempt = fields.IntField(default=1)
    agent_attempts = fields.IntField(default=0)
    fallbacks_used = fields.IntField(default=0)
    version = fields.IntField(default=1)
    log_head = fields.CharField(max_length=64, default="")
    created_by_kind = fields.CharEnumField(ActorKind, max_length=16, description="ActorKind")
    created_by_id = fields.CharField(max_length=200)
    created_by_name = fields.CharField(max_length=200)
    updated_at = InstantField(default=now)
    archived_at = InstantField(null=True)
    workspace_id = fields.IntField(default=DEFAULT_WORKSPACE)

    agent: fields.ForeignKeyNullableRelation[Agent] = fields.ForeignKeyField(
        "models.Agent", related_name=False, null=True, on_delete=fields.RESTRICT
    )
    agent_id: UUID | None

    class Meta(Table.Meta):
        abstract = False
        table = "jobs"
        table_description = "Work with acceptance criteria"
        indexes = (
            Index(fields=("workspace_id", "created_at", "id"), name="ix_jobs_by_created"),
            Index(fields=("workspace_id", "updated_at", "id"), name="ix_jobs_by_updated"),
            Index(fields=("workspace_id", "due_at", "id"), name="ix_jobs_by_due"),
            Index(
                fields=("workspace_id", "priority", "created_at", "id"), name="ix_jobs_by_priority"
            ),
            Index(fields=("workspace_id", "status", "created_at", "id"), name="ix_jobs_by_status"),
            Index(fields=("agent_id", "created_at", "id"), name="ix_jobs_agent"),
            Index(
                fields=("workspace_id", "created_by_id", "created_at", "id"),
                name="ix_jobs_by_creator",
            ),
        )
