from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index

from models.agent import Agent
from models.base import InstantField, Table
from models.job import Job


class AttemptState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    LOST = "LOST"


class Attempt(Table):
    """One execution of a job by one agent.

    `responded_at` says that the agent's response is on record: the checkpoint
    behind which the agent is never asked again. `resumptions` counts how often it was gone
    on with after its process had ended: a job that ends its process must not do so for ever.
    It begins anew with each look at a long call that its process survives.
    """

    number = fields.IntField()
    state = fields.CharEnumField(AttemptState, max_length=16, description="AttemptState")
    agent_snapshot_json = fields.TextField()
    feedback_json = fields.TextField(default="[]")
    criteria_version = fields.IntField()
    resumptions = fields.IntField(default=0)
    idempotency_key = fields.CharField(max_length=200, null=True)
    traceparent = fields.CharField(max_length=64, null=True)
    input_tokens: fields.Field[int] = fields.BigIntField(default=0)
    output_tokens: fields.Field[int] = fields.BigIntField(default=0)
    cost_micros: fields.Field[int] = fields.BigIntField(default=0)
    reserved_tokens: fields.Field[int] = fields.BigIntField(default=0)
    reserved_micros: fields.Field[int] = fields.BigIntField(default=0)
    request_json = fields.TextField(null=True)
    response_json = fields.TextField(null=True)
    http_status = fields.IntField(null=True)
    latency_ms = fields.IntField(null=True)
    error_json = fields.TextField(null=True)
    started_at = InstantField(null=True)
    responded_at = InstantField(null=True)
    finished_at = InstantField(null=True)

    job: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.RESTRICT
    )
    job_id: UUID
    agent: fields.ForeignKeyRelation[Agent] = fields.ForeignKeyField(
        "models.Agent", related_name=False, on_delete=fields.RESTRICT
    )
    agent_id: UUID

    class Meta(Table.Meta):
        abstract = False
        table = "attempts"
        table_description = "Executions of jobs"
        unique_together = (("job", "number"),)
        indexes = (Index(fields=("agent_id", "created_at", "id"), name="ix_attempts_agent"),)
