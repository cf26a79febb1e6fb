from __future__ import annotations

from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model


class PrunedLog(Model):
    """The stretch of the log in which retention removed a job's entries.

    Kept for good, so that who resumes from before it can be told. `head` is the hash of the last
    of them, which what came after follows from.
    """

    job_id = fields.UUIDField(primary_key=True)
    from_seq: fields.Field[int] = fields.BigIntField()
    until_seq: fields.Field[int] = fields.BigIntField()
    head = fields.CharField(max_length=64, default="")

    class Meta(Model.Meta):
        table = "pruned_logs"
        table_description = "What retention removed from the log"
        indexes = (Index(fields=("until_seq",), name="ix_pruned_logs_until"),)
