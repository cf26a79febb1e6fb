from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index

from models.attempt import Attempt
from models.base import Table
from models.criteria_set import CriteriaSet
from models.job import Job


class CriterionKind(StrEnum):
    LLM = "LLM"
    EXACT = "EXACT"
    CONTAINS = "CONTAINS"
    REGEX = "REGEX"
    JSON_SCHEMA = "JSON_SCHEMA"
    JSON_PATH = "JSON_PATH"
    EXPRESSION = "EXPRESSION"
    LATENCY = "LATENCY"


class VerdictOutcome(StrEnum):
    """INCONCLUSIVE and ERROR never count as FAIL: a broken judge must not reject good work."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"
    SKIPPED = "SKIPPED"


class Verdict(Table):
    """What the judge said of one attempt, criterion by criterion."""

    outcome = fields.CharEnumField(VerdictOutcome, max_length=16, description="VerdictOutcome")
    score = fields.FloatField(null=True)
    summary = fields.TextField()
    results_json = fields.TextField()
    judge_json = fields.TextField()
    cost_micros: fields.Field[int] = fields.BigIntField(default=0)
    input_tokens = fields.IntField(default=0)
    output_tokens = fields.IntField(default=0)
    latency_ms = fields.IntField(default=0)

    job: fields.ForeignKeyRelation[Job] = fields.ForeignKeyField(
        "models.Job", related_name=False, on_delete=fields.RESTRICT
    )
    job_id: UUID
    attempt: fields.ForeignKeyRelation[Attempt] = fields.ForeignKeyField(
        "models.Attempt", related_name=False, on_delete=fields.RESTRICT
    )
    attempt_id: UUID
    criteria_set: fields.ForeignKeyRelation[CriteriaSet] = fields.ForeignKeyField(
        "models.CriteriaSet", related_name=False, on_delete=fields.RESTRICT
    )
    criteria_set_id: UUID

    class Meta(Table.Meta):
        abstract = False
        table = "verdicts"
        table_description = "Judgements of attempts"
        indexes = (
            Index(fields=("job_id", "created_at", "id"), name="ix_verdicts_job"),
            Index(fields=("attempt_id", "created_at", "id"), name="ix_verdicts_attempt"),
            Index(fields=("criteria_set_id",), name="ix_verdicts_criteria"),
        )
