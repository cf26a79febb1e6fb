"""Commands and filters of the services, as GraphQL inputs.

They are registered as they are: their fields, limits and descriptions stand in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, cast

import strawberry.pydantic
from pydantic import BaseModel, ValidationError
from strawberry.schema.name_converter import NameConverter
from strawberry.types import get_object_definition
from strawberry.types.arguments import InputContext
from strawberry.types.base import StrawberryContainer
from strawberry.types.unset import UNSET

from services import filters
from services.agents import SaveAgent
from services.assignment import AssignJob, ReassignJob
from services.budgets import BudgetDraft
from services.criteria import CriteriaDraft, CriterionDraft
from services.decisions import CancelJob, ForceComplete, ResubmitJob, Review
from services.dependencies import DependencyDraft
from services.execution import ExecuteJob
from services.jobs import Assign, CreateJob, UpdateJob
from services.keys import CreateApiKey
from services.reading import JobOrder
from services.retries import RetryPolicyDraft
from services.webhooks.hooks import SaveWebhook

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
    SaveWebhook: "SaveWebhookInput",
    CreateApiKey: "CreateApiKeyInput",
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

Conversion = Callable[[type[BaseModel], Mapping[str, Any], InputContext], Any]
"""Of what a client gave, by GraphQL's names."""


def taken(
    told: Conversion, model: type[BaseModel], given: Mapping[str, Any], context: InputContext
) -> BaseModel:
    """A valid input is validated once, as a whole; what is wrong with another, `told` tells.

    Strawberry's own conversion looks every type up again for every value.
    """
    try:
        values = _renamed(given, model, context.config.name_converter)
        return model.model_validate(values, by_alias=False, by_name=True)
    except ValidationError:
        return told(model, given, context)


def _renamed(given: Any, model: type[BaseModel], names: NameConverter) -> Any:
    """`given` with the names of Python; inside of JSON every name is the client's."""
    if isinstance(given, list):
        return [_renamed(each, model, names) for each in cast("list[Any]", given)]
    if not isinstance(given, dict):
        return given
    fields = fields_of(model, names)
    values: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", given).items():
        field = fields[key]
        inner = field.model
        values[field.name] = value if inner is None else _renamed(value, inner, names)
    return values


@dataclass(frozen=True, slots=True)
class Named:
    """A field's name in Python, and the model of what is in it, lists and null aside."""

    name: str
    model: type[BaseModel] | None


@cache
def fields_of(model: type[BaseModel], names: NameConverter) -> dict[str, Named]:
    """The fields of an input by GraphQL's names."""
    definition = get_object_definition(model, strict=True)
    fields: dict[str, Named] = {}
    for field in definition.fields:
        inner: Any = field.resolve_type(type_definition=definition)
        while isinstance(inner, StrawberryContainer):
            inner = inner.of_type
        fields[names.from_field(field)] = Named(field.python_name, _model(inner))
    return fields


def _model(type_: Any) -> type[BaseModel] | None:
    return type_ if isinstance(type_, type) and issubclass(type_, BaseModel) else None


def _register(model: type[BaseModel], name: str, *, one_of: bool = False) -> None:
    strawberry.pydantic.input(model, name=name, one_of=one_of)
    definition = get_object_definition(model, strict=True)
    definition.from_input = partial(taken, cast("Conversion", definition.from_input))
    for field in definition.fields:
        if field.default_value is None:
            # `= null` would be filled in for what a client left out, and left out means
            # unchanged where null means nothing.
            field.default_value = UNSET


_register(Assign, "AssignInput", one_of=True)
for model, name in NAMES.items():
    _register(model, name)
