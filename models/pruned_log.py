from __future__ import annotations

from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model

from models.job import Job


class PrunedLog(Model):
    """The stretch of the log in which retention removed a job's entries.

    Kept for as long as the job is, so that who resumes from before it can be told.
    """

    from_seq: fields.Field[int] = fields.BigIntField()
    until_seq: fields.Field[int] = fields.BigIntField()

    job: fields.OneToOneRelation[Job] = fields.OneToOneField(
        "models.Job", related_name=False, on_delete=fields.RESTRICT, primary_key=True
    )
    job_id: UUID

    class Meta(Model.Meta):
        table = "pruned_logs"
        table_description = "What retention removed from the log"
        indexes = (Index(fields=("until_seq",), name="ix_pruned_logs_until"),)
