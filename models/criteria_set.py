from __future__ import annotations

from uuid import UUID

from tortoise import fields

from models.base import Table
from models.job import Job


class CriteriaSet(Table):
    """One version of a job's acceptance criteria; never changed, so a verdict stays readable."""

    version = fields.IntField()
    text = fields.TextField()
    items_json = fields.TextField()
    pass_threshold = fields.FloatField()

    job: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.RESTRICT
    )
    job_id: UUID

    class Meta(Table.Meta):
        abstract = False
        table = "criteria_sets"
        table_description = "Versions of acceptance criteria"
        unique_together = (("job", "version"),)
