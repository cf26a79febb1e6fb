"""What a client leaves out of an input stays as it is; only `null` itself empties it."""

from __future__ import annotations

import pytest
from graphql import is_input_object_type

from tests.support.graphql import SCHEMA, Json, agent, gql, mutate, new_job, read_job
from tests.support.running import Client

GIVEN = {"ok": True, "deep": [1, None]}


async def test_an_update_without_an_input_keeps_it(client: Client) -> None:
    job = await new_job(client, input=GIVEN)
    updated = await mutate(client, "updateJob", input={"id": job["id"], "name": "New"})
    assert (updated["name"], updated["input"]) == ("New", GIVEN)
    assert updated["version"] == job["version"] + 1
    assert (await read_job(client, job["id"]))["input"] == GIVEN


async def test_an_update_written_into_the_document_keeps_an_input_too(client: Client) -> None:
    job = await new_job(client, input=GIVEN)
    update = f'updateJob(input: {{ id: "{job["id"]}", name: "New" }})'
    await gql(client, f"mutation {{ {update} {{ __typename }} }}")
    read = await read_job(client, job["id"])
    assert (read["name"], read["input"], read["version"]) == ("New", GIVEN, job["version"] + 1)


async def test_an_update_with_null_empties_the_input(client: Client) -> None:
    job = await new_job(client, input=GIVEN)
    updated = await mutate(client, "updateJob", input={"id": job["id"], "input": None})
    assert (updated["input"], updated["version"]) == (None, job["version"] + 1)
    assert updated["name"] == job["name"]


@pytest.mark.parametrize(
    ("given", "expected"), [({}, GIVEN), ({"input": None}, None)], ids=["left out", "null"]
)
async def test_an_assignment_changes_the_input_only_when_it_names_one(
    client: Client, given: Json, expected: Json | None
) -> None:
    job = await new_job(client, input=GIVEN)
    async with agent(client) as (agent_id, _):
        wanted = {"id": job["id"], "assign": {"agentId": agent_id}} | given
        assigned = await mutate(client, "assignJob", input=wanted)
    assert (assigned["status"], assigned["input"]) == ("ASSIGNED", expected)


def test_no_field_of_an_input_is_null_by_default() -> None:
    """Where null is the default, a server cannot tell it from what was left out."""
    inputs = [each for each in SCHEMA.type_map.values() if is_input_object_type(each)]
    fields = {
        f"{each.name}.{name}": field for each in inputs for name, field in each.fields.items()
    }
    assert "UpdateJobInput.input" in fields
    assert [name for name, field in fields.items() if field.default_value is None] == []
