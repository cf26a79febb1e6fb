"""Tortoise tables. The innermost layer: imports nothing of ours."""

from models import hashes, jsontext, statements
from models.agent import Agent, AgentAvailability
from models.agent_gate import AgentGate
from models.api_key import ApiKey, Role
from models.attempt import Attempt, AttemptState
from models.audit_entry import AuditEntry
from models.criteria_set import CriteriaSet
from models.idempotency_key import IdempotencyKey
from models.job import (
    ActorKind,
    CompletionMode,
    DependencyPolicy,
    Job,
    JobPhase,
    JobPriority,
    JobStatus,
    StatusReason,
)
from models.job_dependency import JobDependency
from models.job_log import JobLog, JobLogType
from models.job_tag import JobTag
from models.long_call import LongCall
from models.pruned_log import PrunedLog
from models.queue_entry import QueueEntry, QueueState
from models.timer import Timer, TimerKind
from models.verdict import CriterionKind, Verdict, VerdictOutcome
from models.webhook import Webhook
from models.webhook_delivery import WebhookDelivery, WebhookDeliveryState
from models.worker import Worker
from models.workspace import DEFAULT_WORKSPACE, Workspace

__all__ = [
    "DEFAULT_WORKSPACE",
    "ActorKind",
    "Agent",
    "AgentAvailability",
    "AgentGate",
    "ApiKey",
    "Attempt",
    "AttemptState",
    "AuditEntry",
    "CompletionMode",
    "CriteriaSet",
    "CriterionKind",
    "DependencyPolicy",
    "IdempotencyKey",
    "Job",
    "JobDependency",
    "JobLog",
    "JobLogType",
    "JobPhase",
    "JobPriority",
    "JobStatus",
    "JobTag",
    "LongCall",
    "PrunedLog",
    "QueueEntry",
    "QueueState",
    "Role",
    "StatusReason",
    "Timer",
    "TimerKind",
    "Verdict",
    "VerdictOutcome",
    "Webhook",
    "WebhookDelivery",
    "WebhookDeliveryState",
    "Worker",
    "Workspace",
    "hashes",
    "jsontext",
    "statements",
]
