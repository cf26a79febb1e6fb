from __future__ import annotations

from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index

from models.base import Table
from models.job import Job


class JobDependency(Table):
    """A job that another one waits for; `alias` names its result in the other's input."""

    alias = fields.CharField(max_length=100, null=True)

    job: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.RESTRICT
    )
    job_id: UUID
    depends_on: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.RESTRICT
    )
    depends_on_id: UUID

    class Meta(Table.Meta):
        abstract = False
        table = "job_dependencies"
        table_description = "Jobs that wait for others"
        unique_together = (("job", "depends_on"),)
        indexes = (Index(fields=("depends_on_id", "id"), name="ix_job_dependencies_on"),)
