from __future__ import annotations

from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model

from models.base import Table
from models.job import Job


class IdempotencyKey(Table):
    """A mutation that was answered, so that its repetition gets the same answer."""

    viewer_id = fields.CharField(max_length=200)
    key = fields.CharField(max_length=200)
    request_hash = fields.CharField(max_length=64)

    job: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.CASCADE
    )
    job_id: UUID

    class Meta(Model.Meta):
        table = "idempotency_keys"
        table_description = "Mutations already answered"
        unique_together = (("viewer_id", "key"),)
        indexes = (
            Index(fields=("created_at",), name="ix_idempotency_created"),
            Index(fields=("job_id",), name="ix_idempotency_job"),
        )
