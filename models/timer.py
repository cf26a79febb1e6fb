from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index

from models.base import InstantField, Table
from models.job import Job


class TimerKind(StrEnum):
    START = "START"
    EXPIRE = "EXPIRE"


class Timer(Table):
    """A moment at which something is to become of a job; gone when it has."""

    kind = fields.CharEnumField(TimerKind, max_length=16, description="TimerKind")
    at = InstantField()

    job: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.CASCADE
    )
    job_id: UUID

    class Meta(Table.Meta):
        abstract = False
        table = "timers"
        table_description = "What is to happen to jobs, and when"
        unique_together = (("job", "kind"),)
        indexes = (Index(fields=("at", "id"), name="ix_timers_at"),)
