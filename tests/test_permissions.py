"""Who may do what: every operation with every role, and nobody else's jobs anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import orjson
import pytest
from strawberry.types.base import StrawberryObjectDefinition

from models import Role
from schema import schema
from schema.permissions import Allow
from tests.fakes.agents import FakeAgent
from tests.support.graphql import (
    SDL_FILE,
    Json,
    agent,
    answer,
    finished_job,
    gql,
    make_key,
    mutate,
    mutation,
    new_job,
    read_job,
    root,
)
from tests.support.running import Client

KINDS = ("Query", "Mutation", "Subscription")
EVERYBODY, WRITERS, ADMINS = (
    {Role.VIEWER, Role.MEMBER, Role.ADMIN},
    {Role.MEMBER, Role.ADMIN},
    {Role.ADMIN},
)
TABLE: dict[str, set[Role]] = {
    "node": EVERYBODY,
    "job": EVERYBODY,
    "jobs": EVERYBODY,
    "jobLogs": EVERYBODY,
    "agent": EVERYBODY,
    "agents": EVERYBODY,
    "viewer": EVERYBODY,
    "apiKeys": ADMINS,
    "auditEntries": ADMINS,
    "verifyAudit": EVERYBODY,
    "jobStatusChanged": EVERYBODY,
    "jobEvents": EVERYBODY,
    "webhook": WRITERS,
    "webhooks": WRITERS,
    "saveWebhook": WRITERS,
    "rotateWebhookSecret": WRITERS,
    "deleteWebhook": WRITERS,
    "testWebhook": WRITERS,
    "redeliverWebhook": WRITERS,
    "createJob": WRITERS,
    "updateJob": WRITERS,
    "assignJob": WRITERS,
    "unassignJob": WRITERS,
    "reassignJob": WRITERS,
    "executeJob": WRITERS,
    "cancelJob": WRITERS,
    "reopenJob": WRITERS,
    "addJobNote": WRITERS,
    "archiveJob": WRITERS,
    "unarchiveJob": WRITERS,
    "resubmitJob": ADMINS,
    "forceComplete": ADMINS,
    "reviewAttempt": ADMINS,
    "saveAgent": ADMINS,
    "setAgentAvailability": ADMINS,
    "resetAgentCircuit": ADMINS,
    "testAgent": ADMINS,
    "createApiKey": ADMINS,
    "revokeApiKey": ADMINS,
}
QUERIES = {
    "node": "query($id: ID!) { node(id: $id) { id } }",
    "job": "query($id: ID!) { job(id: $id) { id } }",
    "jobs": "{ jobs { nodes { id } } }",
    "jobLogs": "{ jobLogs { nodes { id } } }",
    "agent": "query($agentId: ID!) { agent(id: $agentId) { id } }",
    "agents": "{ agents { nodes { id } } }",
    "viewer": "{ viewer { role } }",
    "auditEntries": "{ auditEntries { nodes { id } } }",
    "verifyAudit": "query($id: ID!) { verifyAudit(jobId: $id) { ok } }",
    "webhook": "query($id: ID!) { webhook(id: $id) { id } }",
    "webhooks": "{ webhooks { nodes { id } } }",
    "apiKeys": "{ apiKeys { nodes { id } } }",
}
NO_WEBHOOK = "webhook_" + "0" * 32


def definition(kind: str) -> StrawberryObjectDefinition:
    return cast("StrawberryObjectDefinition", schema.get_type_by_name(kind))


def test_every_root_field_declares_exactly_one_permission() -> None:
    for kind in KINDS:
        for field in definition(kind).fields:
            declared = [each for each in field.extensions if isinstance(each, Allow)]
            assert len(declared) == 1, f"{kind}.{field.python_name}"


def test_the_table_of_permissions_names_every_operation() -> None:
    assert set(TABLE) == {name for kind in KINDS for name in root(kind)}


def inputs(job_id: str, agent_id: str, attempt_id: str) -> dict[str, Json]:
    """Arguments for every mutation, on these things."""
    to = {"assign": {"agentId": agent_id}}
    why = {"reason": "r"}
    return {
        "createJob": {
            "input": {"name": "x", "acceptanceCriteria": {"text": "It is polite"}},
        },
        "updateJob": {"input": {"id": job_id, "name": "changed"}},
        "assignJob": {"input": {"id": job_id} | to},
        "unassignJob": {"id": job_id},
        "reassignJob": {"input": {"id": job_id} | to},
        "executeJob": {"input": {"id": job_id}},
        "cancelJob": {"input": {"id": job_id}},
        "reopenJob": {"id": job_id} | why,
        "addJobNote": {"id": job_id, "message": "m"},
        "archiveJob": {"id": job_id},
        "unarchiveJob": {"id": job_id},
        "resubmitJob": {"input": {"id": job_id} | why},
        "forceComplete": {"input": {"id": job_id, "result": 1} | why},
        "reviewAttempt": {"input": {"attemptId": attempt_id, "outcome": "PASS"} | why},
        "saveAgent": {
            "input": {"id": agent_id, "name": "Echo", "endpointUrl": "http://127.0.0.1:9/"}
        },
        "setAgentAvailability": {"id": agent_id, "availability": "ACTIVE"},
        "resetAgentCircuit": {"id": agent_id},
        "testAgent": {"id": agent_id, "input": 1},
        "saveWebhook": {"input": {"url": "http://127.0.0.1:9/", "types": ["NOTE"]}},
        "rotateWebhookSecret": {"id": NO_WEBHOOK, "overlapSeconds": 0},
        "deleteWebhook": {"id": NO_WEBHOOK},
        "testWebhook": {"id": NO_WEBHOOK},
        "redeliverWebhook": {"deliveryId": "delivery_" + "0" * 32},
        "createApiKey": {"input": {"name": "Eve", "role": "VIEWER"}},
        "revokeApiKey": {"id": "key_" + "0" * 32},
    }


@dataclass
class World:
    client: Client
    keys: dict[Role, str]
    other: str
    """Another member's key."""
    agent_id: str
    endpoint: FakeAgent

    async def finished(self, key: str, criteria: Json | None = None) -> tuple[str, Json]:
        """A job of a key's owner with all that belongs to it: its id, and the others'."""
        given = {"acceptanceCriteria": criteria} if criteria else {}
        job = await finished_job(self.client, self.agent_id, key, **given)
        found = await gql(
            self.client,
            """query($id: ID!) { job(id: $id) {
              currentAttempt { id } latestVerdict { id } logs { nodes { id } } } }""",
            self.keys[Role.ADMIN],
            id=job["id"],
        )
        return job["id"], found["job"]


@asynccontextmanager
async def the_world(client: Client, database_url: str) -> AsyncGenerator[World]:
    names = {Role.VIEWER: "Vera", Role.MEMBER: "Mia", Role.ADMIN: "Ada"}
    keys = {role: await make_key(database_url, name, role) for role, name in names.items()}
    other = await make_key(database_url, "Olaf", Role.MEMBER)
    async with agent(client, keys[Role.ADMIN], authHeader="X-Key: s3cret-token") as (id, endpoint):
        yield World(client, keys, other, id, endpoint)


@pytest.fixture
async def world(client: Client, database_url: str) -> AsyncGenerator[World]:
    async with the_world(client, database_url) as made:
        yield made


SUBSCRIPTIONS = ("jobStatusChanged", "jobEvents")


async def subscribed(client: Client, name: str, key: str | None) -> Json | None:
    """What a subscription's stream begins with: an answer to a wrong position."""
    query = f'subscription {{ {name}(after: "no cursor") {{ cursor }} }}'
    headers = {"Accept": "text/event-stream"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    async with await client.post("/graphql", json={"query": query}, headers=headers) as response:
        if response.content_type == "application/json":
            return await response.json()
        async for line in response.content:
            if line.startswith(b"data: {"):
                return orjson.loads(line.removeprefix(b"data: "))
    return None


async def outcome(world: World, name: str, key: str | None, given: dict[str, Json]) -> str:
    """`allowed`, or the code of the refusal."""
    if name in SUBSCRIPTIONS:
        body = await subscribed(world.client, name, key)
        assert body is not None
        code = body["errors"][0]["extensions"]["code"]
        return "allowed" if code == "VALIDATION" else code
    document = QUERIES.get(name) or mutation(name)
    arguments: Json = given.get(name) or {"id": "job_x", "agentId": world.agent_id}
    used = {n: v for n, v in arguments.items() if f"${n}:" in document}
    body = await answer(world.client, document, key, **used)
    if "errors" in body:
        code = body["errors"][0]["extensions"]["code"]
        return "allowed" if code == "NOT_FOUND" else code  # of a job that nobody has
    shown = body["data"][name]
    if isinstance(shown, dict) and shown.get("__typename") == "Forbidden":
        return cast("Json", shown)["code"]
    return "allowed"


async def test_each_role_does_what_the_table_says_and_nothing_else(world: World) -> None:
    for role, key in world.keys.items():
        job = await new_job(world.client, world.keys[Role.ADMIN])
        before = await read_job(world.client, job["id"], world.keys[Role.ADMIN])
        given = inputs(job["id"], world.agent_id, "attempt_" + "0" * 32)
        for name, roles in TABLE.items():
            expected = "allowed" if role in roles else "FORBIDDEN"
            assert await outcome(world, name, key, given) == expected, (role, name)
        if role is not Role.ADMIN:
            assert await read_job(world.client, job["id"], world.keys[Role.ADMIN]) == before


async def test_nobody_does_anything_without_a_key_once_there_is_one(world: World) -> None:
    given = inputs("job_" + "0" * 32, world.agent_id, "attempt_" + "0" * 32)
    for name in TABLE:
        for key in (None, "signoff_unknown", ""):
            assert await outcome(world, name, key, given) == "UNAUTHENTICATED", (name, key)


async def test_a_viewer_reads_everything_and_writes_nothing(world: World) -> None:
    job_id, parts = await world.finished(world.keys[Role.MEMBER])
    viewer = world.keys[Role.VIEWER]
    seen = await read_job(world.client, job_id, viewer)
    assert (seen["status"], seen["result"]) == ("COMPLETED", {"ok": True})
    given = inputs(job_id, world.agent_id, parts["currentAttempt"]["id"])
    for name, arguments in given.items():
        refused = await mutate(world.client, name, viewer, **arguments)
        role = next(r for r in (Role.MEMBER, Role.ADMIN) if r in TABLE[name])
        assert refused == {
            "__typename": "Forbidden",
            "code": "FORBIDDEN",
            "message": f"This needs the role {role}; your key has VIEWER.",
        }
    assert await read_job(world.client, job_id, viewer) == seen
    query = "query($id: ID!) { job(id: $id) { availableActions { allowed } } }"
    actions = (await gql(world.client, query, viewer, id=job_id))["job"]["availableActions"]
    assert {each["allowed"] for each in actions} == {False}


LISTS = """
query($agentId: ID!) {
  jobs { totalCount nodes { name } }
  all: jobs(where: { archived: {} }) { totalCount }
  jobLogs { totalCount nodes { job { name } } }
  agent(id: $agentId) { jobs { totalCount nodes { name } } }
}"""


async def test_a_member_sees_own_jobs_only_in_every_list(world: World) -> None:
    mine = await finished_job(world.client, world.agent_id, world.keys[Role.MEMBER], name="mine")
    other = await finished_job(world.client, world.agent_id, world.other, name="other")
    for key, names in (
        (world.keys[Role.MEMBER], ["mine"]),
        (world.other, ["other"]),
        (world.keys[Role.VIEWER], ["other", "mine"]),
        (world.keys[Role.ADMIN], ["other", "mine"]),
    ):
        found = await gql(world.client, LISTS, key, agentId=world.agent_id)
        for page in (found["jobs"], found["agent"]["jobs"]):
            assert [node["name"] for node in page["nodes"]] == names
            assert page["totalCount"] == len(names)
        assert found["all"]["totalCount"] == len(names)
        logged = [node["job"]["name"] for node in found["jobLogs"]["nodes"]]
        assert set(logged) == set(names)
        assert found["jobLogs"]["totalCount"] == len(logged) == 8 * len(names)
    assert await read_job(world.client, mine["id"], world.keys[Role.MEMBER]) is not None
    assert await read_job(world.client, other["id"], world.keys[Role.MEMBER]) is None


async def test_anothers_job_answers_exactly_like_one_that_is_not_there(world: World) -> None:
    """With the same arguments but for the id."""
    polite = {"text": "It is polite"}
    job_id, parts = await world.finished(world.other, polite)
    missing_job, missing_attempt = "job_" + "f" * 32, "attempt_" + "f" * 32
    before = await read_job(world.client, job_id, world.keys[Role.ADMIN])
    foreign = inputs(job_id, world.agent_id, parts["currentAttempt"]["id"])
    missing = inputs(missing_job, world.agent_id, missing_attempt)
    member = world.keys[Role.MEMBER]
    for name in foreign:
        if not foreign[name] or job_id not in str(foreign[name]):
            continue
        seen = await answer(world.client, mutation(name), member, **foreign[name])
        unseen = await answer(world.client, mutation(name), member, **missing[name])
        assert str(seen).replace(job_id, missing_job) == str(unseen), name
        code = "NOT_FOUND" if member_may(name) else "FORBIDDEN"
        assert seen["data"][name]["code"] == code, name
    assert await read_job(world.client, job_id, world.keys[Role.ADMIN]) == before


def member_may(name: str) -> bool:
    return Role.MEMBER in TABLE[name]


async def test_anothers_things_are_no_nodes(world: World) -> None:
    job_id, parts = await world.finished(world.other)
    ids = [
        job_id,
        parts["currentAttempt"]["id"],
        parts["latestVerdict"]["id"],
        *[node["id"] for node in parts["logs"]["nodes"]],
    ]
    query = "query($id: ID!) { node(id: $id) { id } }"
    for id in ids:
        assert (await gql(world.client, query, world.other, id=id))["node"] == {"id": id}
        assert (await gql(world.client, query, world.keys[Role.MEMBER], id=id))["node"] is None
        assert (await gql(world.client, query, world.keys[Role.VIEWER], id=id))["node"] is not None


@pytest.mark.parametrize("name", SUBSCRIPTIONS)
async def test_a_subscription_to_anothers_job_is_as_to_none(world: World, name: str) -> None:
    job_id, _ = await world.finished(world.other)
    missing = "job_" + "f" * 32
    bodies: list[str] = []
    for id in (job_id, missing):
        query = f'subscription {{ {name}(jobId: "{id}") {{ cursor }} }}'
        headers = {
            "Accept": "text/event-stream",
            "Authorization": f"Bearer {world.keys[Role.MEMBER]}",
        }
        async with await world.client.post(
            "/graphql", json={"query": query}, headers=headers
        ) as response:
            bodies.append(await response.text())
    assert "NOT_FOUND" in bodies[0]
    assert bodies[0].replace(job_id, missing) == bodies[1]


async def test_a_member_cannot_touch_what_is_an_admins_even_on_own_jobs(world: World) -> None:
    member = world.keys[Role.MEMBER]
    job_id, parts = await world.finished(member, {"text": "It is polite"})
    before = await read_job(world.client, job_id, member)
    given = inputs(job_id, world.agent_id, parts["currentAttempt"]["id"])
    for name, roles in TABLE.items():
        if name in given and roles == ADMINS:
            refused = await mutate(world.client, name, member, **given[name])
            assert refused["message"] == "This needs the role ADMIN; your key has MEMBER."
    interrupt = {
        "id": job_id,
        "assign": {"agentId": world.agent_id},
        "interruptRunning": True,
    }
    refused = await mutate(world.client, "reassignJob", member, input=interrupt)
    assert refused == {
        "__typename": "Forbidden",
        "code": "FORBIDDEN",
        "message": "Only an admin may REASSIGN this job.",
    }
    assert await read_job(world.client, job_id, member) == before


AGENT = """
query($id: ID!) {
  agent(id: $id) { name endpointUrl signingSecret inputSchema }
  agents { nodes { endpointUrl signingSecret } }
  jobs { nodes { agent { endpointUrl } currentAttempt { agent { endpointUrl } agentSnapshot } } }
  jobLogs { nodes { payload agent { endpointUrl } } }
}"""


async def test_where_an_agent_lives_is_told_to_admins_only(world: World) -> None:
    await world.finished(world.keys[Role.MEMBER])
    for role, key in world.keys.items():
        found = await gql(world.client, AGENT, key, id=world.agent_id)
        url = world.endpoint.url if role is Role.ADMIN else None
        assert found["agent"]["endpointUrl"] == url
        assert found["agents"]["nodes"][0]["endpointUrl"] == url
        assert (world.endpoint.url in str(found)) is (role is Role.ADMIN)


async def test_secrets_are_told_once_and_never_again(world: World) -> None:
    admin = world.keys[Role.ADMIN]
    given = {"name": "New", "endpointUrl": world.endpoint.url, "authHeader": "X-Key: s3cret-token"}
    made = await mutate(world.client, "saveAgent", admin, input=given)
    secret = made["signingSecret"]
    assert secret.startswith("whsec_")
    again = await mutate(world.client, "saveAgent", admin, input=given | {"id": made["id"]})
    paused = await mutate(
        world.client, "setAgentAvailability", admin, id=made["id"], availability="PAUSED"
    )
    assert again["signingSecret"] is paused["signingSecret"] is None
    await world.finished(admin)
    await mutate(world.client, "testAgent", admin, id=world.agent_id, input=1)
    told = str(await gql(world.client, AGENT, admin, id=made["id"]))
    assert secret not in told
    assert "s3cret-token" not in told
    assert "authHeader" not in SDL_FILE.read_text().split("input SaveAgentInput")[0]
    assert {each.headers["x-key"] for each in world.endpoint.received} == {"s3cret-token"}


async def test_two_keys_of_one_name_are_one_user(world: World, database_url: str) -> None:
    second = await make_key(database_url, "Mia", Role.MEMBER)
    job = await new_job(world.client, world.keys[Role.MEMBER])
    done = await mutate(world.client, "cancelJob", second, input={"id": job["id"]})
    assert done["status"] == "CANCELLED"


async def test_roles_do_not_leak_between_requests_at_the_same_time(world: World) -> None:
    names = {Role.VIEWER: "Vera", Role.MEMBER: "Mia", Role.ADMIN: "Ada"}
    wanted = list(Role) * 20
    found = await asyncio.gather(
        *[gql(world.client, "{ viewer { name role } }", world.keys[role]) for role in wanted]
    )
    assert [each["viewer"] for each in found] == [
        {"name": names[role], "role": role.value} for role in wanted
    ]
