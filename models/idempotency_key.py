from __future__ import annotations

from tortoise import fields
from tortoise.indexes import Index

from models.base import Table
from models.workspace import DEFAULT_WORKSPACE


class IdempotencyKey(Table):
    """A mutation that was answered, so that its repetition gets the same answer.

    The row is written before the job is: a twin waits for it, on Postgres in the unique
    index. So `job_id` is no foreign key.
    """

    workspace_id = fields.IntField(default=DEFAULT_WORKSPACE)
    viewer_id = fields.CharField(max_length=200)
    key = fields.CharField(max_length=200)
    request_hash = fields.CharField(max_length=64)

    job_id = fields.UUIDField()

    class Meta(Table.Meta):
        abstract = False
        table = "idempotency_keys"
        table_description = "Mutations already answered"
        unique_together = (("workspace_id", "viewer_id", "key"),)
        indexes = (Index(fields=("created_at",), name="ix_idempotency_created"),)
