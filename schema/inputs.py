"""Commands and filters of the services, as GraphQL inputs.

They are registered as they are: their fields, limits and descriptions stand in one place.
"""

from __future__ import annotations

import strawberry.pydantic
from pydantic import BaseModel
from strawberry.types import get_object_definition
from strawberry.types.unset import UNSET

from services import filters
from services.agents import SaveAgent
from services.assignment import AssignJob, ReassignJob
from services.budgets import BudgetDraft
from services.criteria import CriteriaDraft, CriterionDraft
from services.dependencies import DependencyDraft
from services.decisions import CancelJob, ForceComplete, ResubmitJob, Review
from services.execution import ExecuteJob
from services.jobs import Assign, CreateJob, UpdateJob
from services.reading import JobOrder
from services.retries import RetryPolicyDraft

NAMES: dict[type[BaseModel], str] = {
    CriterionDraft: "CriterionInput",
    CriteriaDraft: "CriteriaInput",
    RetryPolicyDraft: "RetryPolicyInput",
    BudgetDraft: "BudgetInput",
    DependencyDraft: "DependencyInput",
    CreateJob: "CreateJobInput",
    UpdateJob: "UpdateJobInput",
    AssignJob: "AssignJobInput",
    ReassignJob: "ReassignJobInput",
    ExecuteJob: "ExecuteJobInput",
    ForceComplete: "ForceCompleteInput",
    ResubmitJob: "ResubmitJobInput",
    CancelJob: "CancelJobInput",
    Review: "ReviewInput",
    SaveAgent: "SaveAgentInput",
    JobOrder: "JobOrder",
    filters.JobIDComparator: "JobIDComparator",
    filters.AgentIDComparator: "AgentIDComparator",
    filters.ActorIDComparator: "ActorIDComparator",
    filters.StringComparator: "StringComparator",
    filters.StringListComparator: "StringListComparator",
    filters.BooleanComparator: "BooleanComparator",
    filters.DateComparator: "DateComparator",
    filters.JobStatusComparator: "JobStatusComparator",
    filters.JobPhaseComparator: "JobPhaseComparator",
    filters.JobPriorityComparator: "JobPriorityComparator",
    filters.AgentAvailabilityComparator: "AgentAvailabilityComparator",
    filters.AgentFilter: "AgentFilter",
    filters.JobFilter: "JobFilter",
}

strawberry.pydantic.input(Assign, name="AssignInput", one_of=True)
for model, name in NAMES.items():
    strawberry.pydantic.input(model, name=name)
    for field in get_object_definition(model, strict=True).fields:
        if field.default_value is None:
            # `= null` would be filled in for what a client left out, and left out means
            # unchanged where null means nothing.
            field.default_value = UNSET
