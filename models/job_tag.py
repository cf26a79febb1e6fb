from __future__ import annotations

from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index

from models.base import Table
from models.job import Job


class JobTag(Table):
    """One tag of one job: rows, so that a filter by tag is an index look-up everywhere."""

    tag = fields.CharField(max_length=100)

    job: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.CASCADE
    )
    job_id: UUID

    class Meta(Table.Meta):
        abstract = False
        table = "job_tags"
        table_description = "Tags of jobs"
        unique_together = (("job", "tag"),)
        indexes = (Index(fields=("tag", "job_id"), name="ix_job_tags_tag"),)
