"""Inputs become commands in one validation, with the answers of Strawberry's own conversion."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import pytest
from graphql import GraphQLInputObjectType
from pydantic import BaseModel
from strawberry.pydantic import InputValidationError
from strawberry.pydantic.conversion import build_pydantic_model
from strawberry.types import get_object_definition
from strawberry.types.arguments import InputContext

from models import CriterionKind, JobPriority, JobStatus
from schema import inputs, schema
from services.criteria import CriteriaDraft, CriterionDraft
from services.execution import ExecuteJob
from services.filters import JobFilter, JobStatusComparator, StringComparator
from services.jobs import Assign, CreateJob, UpdateJob
from services.values import RawJson
from tests.support.graphql import SCHEMA, Json, answer, gql, mutation, problems
from tests.support.running import Client

ID = UUID("0190a000-0000-7000-8000-000000000000")
CONTEXT = InputContext(
    info=None,
    config=schema.config,
    scalar_registry=schema.schema_converter.scalar_registry,
    path=("input",),
)
MODELS = {name: model for model, name in inputs.NAMES.items()} | {"AssignInput": Assign}
CONFIG = RawJson({"value": {"agentId": 1, "in_": [None]}, "pointer": "/a"})
INPUT = RawJson({"passThreshold": {"agentId": [1]}})


def taken(model: type[BaseModel], given: Json) -> BaseModel:
    conversion = get_object_definition(model, strict=True).from_input
    assert conversion is not None
    return conversion(model, given, CONTEXT)


def wholly(model: type[BaseModel], given: Json) -> BaseModel:
    """As `taken`, for values that must not need a second look."""

    def told(*_: object) -> BaseModel:
        raise AssertionError(given)

    return inputs.taken(told, model, given, CONTEXT)


TAKEN: list[tuple[Json, BaseModel]] = [
    ({"id": f"job_{ID.hex}"}, ExecuteJob(id=ID)),
    (
        {"id": f"job_{ID.hex}", "expectedVersion": None, "waitSeconds": 5},
        ExecuteJob(id=ID, expected_version=None, wait_seconds=5),
    ),
    ({"id": f"job_{ID.hex}", "input": None}, UpdateJob(id=ID, input=None)),
    ({"id": f"job_{ID.hex}", "tags": ["a"]}, UpdateJob(id=ID, tags=["a"])),
    ({"agentId": None}, Assign(agent_id=None)),
    (
        {
            "name": "n",
            "acceptanceCriteria": {
                "items": [{"text": "t", "kind": CriterionKind.EXACT, "config": CONFIG}],
                "passThreshold": 0.5,
            },
            "input": INPUT,
            "assign": {"agentId": f"agent_{ID.hex}"},
            "priority": JobPriority.HIGH,
            "tags": [],
        },
        CreateJob(
            name="n",
            acceptance_criteria=CriteriaDraft(
                items=[CriterionDraft(text="t", kind=CriterionKind.EXACT, config=CONFIG)],
                pass_threshold=0.5,
            ),
            input=INPUT,
            assign=Assign(agent_id=ID),
            priority=JobPriority.HIGH,
            tags=[],
        ),
    ),
    (
        {
            "and": [{"not": {"name": {"startsWith": "a", "ignoreCase": False}}}, {}],
            "or": None,
            "status": {"in": [JobStatus.PENDING]},
        },
        JobFilter(
            and_=[
                JobFilter(
                    not_=JobFilter(name=StringComparator(starts_with="a", ignore_case=False))
                ),
                JobFilter(),
            ],
            or_=None,
            status=JobStatusComparator(in_=[JobStatus.PENDING]),
        ),
    ),
]


@pytest.mark.parametrize(("given", "expected"), TAKEN)
def test_a_valid_input_is_the_command_and_knows_what_was_left_out(
    given: Json, expected: BaseModel
) -> None:
    model = type(expected)
    for made in (taken(model, given), wholly(model, given)):
        assert (made, made.model_fields_set) == (expected, expected.model_fields_set)
        assert made == build_pydantic_model(model, given, CONTEXT)


REFUSED: list[tuple[type[BaseModel], Json]] = [
    (ExecuteJob, {"id": "job_1", "waitSeconds": 61, "expectedVersion": 0}),
    (ExecuteJob, {}),
    (CreateJob, {"name": "", "acceptanceCriteria": {"items": [{"text": "x"}, {"text": ""}]}}),
    (CreateJob, {"name": "x", "acceptanceCriteria": {}, "assign": {"agentId": "job_1"}}),
    (JobFilter, {"and": [{"or": [{"id": {"in": ["job_1"]}, "createdAt": {"gte": "P"}}]}]}),
]


@pytest.mark.parametrize(("model", "given"), REFUSED)
def test_a_refused_input_tells_its_places_by_graphqls_names(
    model: type[BaseModel], given: Json
) -> None:
    with pytest.raises(InputValidationError) as theirs:
        build_pydantic_model(model, given, CONTEXT)
    with pytest.raises(InputValidationError) as ours:
        taken(model, given)
    assert ours.value.errors == theirs.value.errors
    assert str(ours.value) == str(theirs.value)


def test_every_input_of_the_schema_has_each_field_of_its_command() -> None:
    shown = {
        name: set(each.fields)
        for name, each in SCHEMA.type_map.items()
        if isinstance(each, GraphQLInputObjectType)
    }
    assert shown.keys() == MODELS.keys()
    for name, model in MODELS.items():
        fields = inputs.fields_of(model, schema.config.name_converter)
        assert fields.keys() == shown[name]
        assert {each.name for each in fields.values()} == set(model.model_fields)


def test_a_nullable_value_that_its_command_requires_is_null_when_left_out() -> None:
    assert taken(Assign, {}) == Assign(agent_id=None)


BAD: Json = {
    "name": "x",
    "acceptanceCriteria": {"items": [{"text": "t"}, {"text": "", "weight": -1}]},
    "assign": {"agentId": "job_1"},
}
LITERAL = """createJob(input: {
    name: "x"
    acceptanceCriteria: { items: [{ text: "t" }, { text: "", weight: -1 }] }
    assign: { agentId: "job_1" }
}) { __typename ... on InvalidInput { code fields { path message } } }"""


@pytest.mark.parametrize("written", ["variables", "literals"])
async def test_problems_have_the_place_that_the_client_wrote(
    client: Client, written: Literal["variables", "literals"]
) -> None:
    if written == "variables":
        told = await problems(client, "createJob", input=BAD)
    else:
        made = (await gql(client, f"mutation {{ {LITERAL} }}"))["createJob"]
        assert (made["__typename"], made["code"]) == ("InvalidInput", "VALIDATION")
        told = {".".join(each["path"]): each["message"] for each in made["fields"]}
    assert set(told) == {
        "input.acceptanceCriteria.items.1.text",
        "input.acceptanceCriteria.items.1.weight",
        "input.assign.agentId",
    }
    assert told["input.assign.agentId"] == "is not the id of an agent"


async def test_one_variable_inside_of_a_literal_has_its_place_too(client: Client) -> None:
    query = """mutation($agent: ID!) { createJob(input: {
        name: "x", acceptanceCriteria: { text: "y" }, assign: { agentId: $agent }
    }) { __typename ... on InvalidInput { fields { path message } } } }"""
    made = (await gql(client, query, agent="x"))["createJob"]
    assert made["fields"] == [
        {"path": ["input", "assign", "agentId"], "message": "is not the id of an agent"}
    ]


async def test_an_input_of_exactly_one_field_is_held_to_it(client: Client) -> None:
    given = {"name": "x", "acceptanceCriteria": {"text": "y"}, "assign": {}}
    for assign in ({}, {"agentId": None}):
        body = await answer(client, mutation("createJob"), input=given | {"assign": assign})
        assert body.get("data") is None
        assert {each["extensions"]["code"] for each in body["errors"]} == {"GRAPHQL_ERROR"}
