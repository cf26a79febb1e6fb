"""Tortoise tables. The innermost layer: imports nothing of ours."""

from models import jsontext, statements
from models.agent import Agent, AgentAvailability
from models.api_key import ApiKey, Role
from models.attempt import Attempt, AttemptState
from models.criteria_set import CriteriaSet
from models.idempotency_key import IdempotencyKey
from models.job import (
    ActorKind,
    CompletionMode,
    Job,
    JobPhase,
    JobPriority,
    JobStatus,
    StatusReason,
)
from models.job_log import JobLog, JobLogType
from models.job_tag import JobTag
from models.verdict import CriterionKind, Verdict, VerdictOutcome

__all__ = [
    "ActorKind",
    "Agent",
    "AgentAvailability",
    "ApiKey",
    "Attempt",
    "AttemptState",
    "CompletionMode",
    "CriteriaSet",
    "CriterionKind",
    "IdempotencyKey",
    "Job",
    "JobLog",
    "JobLogType",
    "JobPhase",
    "JobPriority",
    "JobStatus",
    "JobTag",
    "Role",
    "StatusReason",
    "Verdict",
    "VerdictOutcome",
    "jsontext",
    "statements",
]
