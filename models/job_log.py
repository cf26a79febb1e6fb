from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model

from models.agent import Agent
from models.attempt import Attempt
from models.base import InstantField, now
from models.job import ActorKind, Job, JobStatus
from models.workspace import DEFAULT_WORKSPACE


class JobLogType(StrEnum):
    STATUS_CHANGE = "STATUS_CHANGE"
    AGENT_REQUEST = "AGENT_REQUEST"
    AGENT_RESPONSE = "AGENT_RESPONSE"
    AGENT_PROGRESS = "AGENT_PROGRESS"
    VALIDATOR_REQUEST = "VALIDATOR_REQUEST"
    VALIDATOR_RESPONSE = "VALIDATOR_RESPONSE"
    VERDICT = "VERDICT"
    REVIEW = "REVIEW"
    NOTE = "NOTE"
    CONFIG_CHANGE = "CONFIG_CHANGE"


class JobLog(Model):
    """One entry of the append-only log; its key is the position in the event stream.

    `hash` is over all that it says and over the hash of the job's entry before it.
    """

    seq: fields.Field[int] = fields.BigIntField(primary_key=True)
    type = fields.CharEnumField(JobLogType, max_length=24, description="JobLogType")
    status = fields.CharEnumField(JobStatus, max_length=32, description="JobStatus")
    message = fields.TextField(null=True)
    payload_json = fields.TextField(null=True)
    payload_truncated = fields.BooleanField(default=False)
    actor_kind = fields.CharEnumField(ActorKind, max_length=16, description="ActorKind")
    actor_id = fields.CharField(max_length=200, null=True)
    actor_name = fields.CharField(max_length=200)
    created_at = InstantField(default=now)
    workspace_id = fields.IntField(default=DEFAULT_WORKSPACE)
    hash = fields.CharField(max_length=64, default="")

    job: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.RESTRICT
    )
    job_id: UUID
    attempt: fields.ForeignKeyNullableRelation[Attempt] = fields.ForeignKeyField(
        "models.Attempt", related_name=False, null=True, on_delete=fields.RESTRICT
    )
    attempt_id: UUID | None
    agent: fields.ForeignKeyNullableRelation[Agent] = fields.ForeignKeyField(
        "models.Agent", related_name=False, null=True, on_delete=fields.RESTRICT
    )
    agent_id: UUID | None

    class Meta(Model.Meta):
        table = "job_logs"
        table_description = "The audit log and event stream"
        indexes = (
            Index(fields=("job_id", "seq"), name="ix_job_logs_job"),
            Index(fields=("workspace_id", "seq"), name="ix_job_logs_workspace"),
            Index(fields=("attempt_id",), name="ix_job_logs_attempt"),
            Index(fields=("agent_id",), name="ix_job_logs_agent"),
        )
