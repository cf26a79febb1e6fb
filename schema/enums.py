"""Enums of the tables and services, shown to clients as they are."""

from __future__ import annotations

import strawberry

from models import (
    ActorKind,
    AgentAvailability,
    AttemptState,
    CompletionMode,
    CriterionKind,
    DependencyPolicy,
    JobLogType,
    JobPhase,
    JobPriority,
    JobStatus,
    Role,
    StatusReason,
    VerdictOutcome,
    WebhookDeliveryState,
)
from services.circuits import CircuitState
from services.errors import ErrorCode
from services.reading import JobOrderField, OrderDirection
from services.rules import JobAction

strawberry.enum(JobStatus, description="Where a job stands.")
strawberry.enum(JobPhase, description="How far an execution is; only while IN_EXECUTION.")
strawberry.enum(StatusReason, description="Why a job has its status.")
strawberry.enum(CompletionMode, description="What a completed job was signed off by.")
strawberry.enum(JobPriority, description="Which of the waiting jobs goes first.")
strawberry.enum(
    DependencyPolicy,
    description="If a job that it depends on is cancelled: BLOCK waits until that is reopened and "
    "completed, CANCEL cancels it too, IGNORE goes on without.",
)
strawberry.enum(JobAction, description="What a caller can ask for.")
strawberry.enum(JobLogType, description="What an entry of the log tells of.")
strawberry.enum(ActorKind, description="Who acted.")
strawberry.enum(Role, description="VIEWER reads, MEMBER works on own jobs, ADMIN does everything.")
strawberry.enum(AgentAvailability, description="Only ACTIVE agents are given work.")
strawberry.enum(AttemptState, description="How an attempt went.")
strawberry.enum(CriterionKind, description="How a criterion is checked.")
strawberry.enum(
    VerdictOutcome,
    description="INCONCLUSIVE and ERROR never count as FAIL: a broken judge must not reject "
    "good work nor pass bad work.",
)
strawberry.enum(
    CircuitState,
    description="OPEN lets nothing through; HALF_OPEN one execution at a time, to see how it goes.",
)
strawberry.enum(
    WebhookDeliveryState,
    description="PENDING waits for its next attempt, SENDING is one under way; FAILED is given up.",
)
strawberry.enum(ErrorCode, description="What kind of failure it is.")
strawberry.enum(OrderDirection)
strawberry.enum(JobOrderField)

__all__ = [
    "ActorKind",
    "AgentAvailability",
    "AttemptState",
    "CircuitState",
    "CompletionMode",
    "CriterionKind",
    "DependencyPolicy",
    "ErrorCode",
    "JobAction",
    "JobLogType",
    "JobOrderField",
    "JobPhase",
    "JobPriority",
    "JobStatus",
    "OrderDirection",
    "Role",
    "StatusReason",
    "VerdictOutcome",
    "WebhookDeliveryState",
]
