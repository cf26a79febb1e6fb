from __future__ import annotations

from enum import StrEnum

from tortoise import fields
from tortoise.indexes import Index

from models.base import InstantField, Table, now
from models.workspace import DEFAULT_WORKSPACE


class AgentAvailability(StrEnum):
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    DISABLED = "DISABLED"


class Agent(Table):
    """An HTTP endpoint that does jobs."""

    name = fields.CharField(max_length=200)
    description = fields.TextField()
    endpoint_url = fields.CharField(max_length=2000)
    input_schema_json = fields.TextField(default="{}")
    output_schema_json = fields.TextField(default="{}")
    timeout_seconds = fields.IntField(default=60)
    max_concurrency = fields.IntField(default=10)
    idempotent = fields.BooleanField(default=False)
    accepts_feedback = fields.BooleanField(default=False)
    retry_json = fields.TextField(null=True)
    rate_per_minute = fields.IntField(null=True)
    max_call_tokens: fields.Field[int | None] = fields.BigIntField(null=True)
    max_call_micros: fields.Field[int | None] = fields.BigIntField(null=True)
    availability = fields.CharEnumField(
        AgentAvailability,
        max_length=16,
        default=AgentAvailability.ACTIVE,
        description="AgentAvailability",
    )
    auth_header_sealed = fields.TextField(null=True)
    signing_secret_sealed = fields.TextField()
    version = fields.IntField(default=1)
    updated_at = InstantField(default=now)
    workspace_id = fields.IntField(default=DEFAULT_WORKSPACE)

    class Meta(Table.Meta):
        abstract = False
        table = "agents"
        table_description = "Endpoints that do jobs"
        unique_together = (("workspace_id", "name"),)
        indexes = (Index(fields=("workspace_id", "created_at", "id"), name="ix_agents_listed"),)
