"""Operations over HTTP, as a client sends them; documents are made from the committed schema."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar, cast

from aiohttp import ClientResponse
from graphql import GraphQLField, GraphQLObjectType, GraphQLUnionType, build_schema

from models import Role
from schema import sdl
from services import keys, workspaces
from signoff import database
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.support.running import Client

Json = dict[str, Any]
T = TypeVar("T")

SDL_FILE = Path(__file__).parent.parent.parent / "schema.graphql"
SCHEMA = build_schema(sdl())
SAYS_OK: Json = {
    "items": [{"text": "It is ok", "kind": "EXACT", "config": {"value": True, "pointer": "/ok"}}]
}
JOB = """
    id version name description status phase statusReason statusMessage completionMode priority
    acceptanceCriteria attemptCount archivedAt input result tags
    createdBy { kind id name }
    agent { id name }
    criteria { version text passThreshold items { key text kind config weight required } }
"""
READ_JOB = f"query($id: ID!) {{ job(id: $id) {{ {JOB} logs {{ nodes {{ id type message }} }} }} }}"
WEBHOOK = """
    id url types where enabled disabledReason oldSecretUntil circuit { state failures reason }
    owner { kind id name }
"""
DELIVERY = "id type state attempts statusCode error attemptedAt nextAttemptAt createdAt"
SELECTIONS = {
    "Job": f"{JOB} availableActions {{ action allowed reason }}",
    "Agent": """
        id version name description endpointUrl inputSchema outputSchema timeoutSeconds
        maxConcurrency idempotent acceptsFeedback availability signingSecret
    """,
    "AgentTest": "ok outputValid problem response",
    "JobLog": "id type status note: message actor { kind id name } job { id }",
    "ApiKey": "id name role prefix owners expiresAt revokedAt lastUsedAt agents { id }",
    "NewApiKey": "key apiKey { id name role prefix owners expiresAt agents { id } }",
    "AgentUnavailable": "code message unavailable: agent { id availability }",
    "BudgetExceeded": "code message",
    "DependencyProblem": "code message jobs { id }",
    "Forbidden": "code message",
    "IdempotencyConflict": "code message",
    "IllegalTransition": "code message status action allowedActions",
    "InvalidInput": "code fields { path message }",
    "LimitExceeded": "code message limit",
    "NotFound": "code message id",
    "SchemaMismatch": "code message pointer keyword",
    "NewWebhook": f"secret webhook {{ {WEBHOOK} }}",
    "Webhook": WEBHOOK,
    "WebhookDelivery": DELIVERY,
    "VersionConflict": "code message expected actual current { id version }",
}


async def post(
    client: Client, query: str, key: str | None = None, variables: Mapping[str, Any] | None = None
) -> ClientResponse:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"query": query, "variables": dict(variables or {})}
    headers["Content-Type"] = "application/json"
    return await client.post("/graphql", data=BytesIO(json.dumps(body).encode()), headers=headers)


async def answer(client: Client, query: str, key: str | None = None, /, **variables: Any) -> Json:
    """The whole answer, errors and all."""
    async with await post(client, query, key, variables) as response:
        return await response.json()


async def gql(client: Client, query: str, key: str | None = None, /, **variables: Any) -> Json:
    """The data of an operation that must not have errors."""
    body = await answer(client, query, key, **variables)
    assert "errors" not in body, body
    return body["data"]


async def mutate(client: Client, name: str, key: str | None = None, /, **arguments: Any) -> Json:
    """What a mutation's field came to, told apart by `__typename`."""
    data = await gql(client, mutation(name), key, **arguments)
    return data[name]


async def problems(client: Client, name: str, key: str | None = None, /, **arguments: Any) -> Json:
    """What a refused mutation says of each value: messages by dotted path."""
    refused = await mutate(client, name, key, **arguments)
    assert refused["__typename"] == "InvalidInput", refused
    assert refused["code"] == "VALIDATION"
    return {".".join(each["path"]): each["message"] for each in refused["fields"]}


async def refusal(client: Client, query: str, key: str | None = None, /, **variables: Any) -> Json:
    """The only error of an operation: its extensions."""
    body = await answer(client, query, key, **variables)
    (error,) = body["errors"]
    return error["extensions"]


def mutation(name: str) -> str:
    """A document for a mutation that asks for what each outcome tells."""
    field = root("Mutation")[name]
    union = cast("GraphQLUnionType", cast("Any", field.type).of_type)
    parts = [f"... on {each.name} {{ {SELECTIONS[each.name]} }}" for each in union.types]
    declared, passed = arguments_of(field)
    return f"mutation{declared} {{ {name}{passed} {{ __typename {' '.join(parts)} }} }}"


def root(name: str) -> dict[str, GraphQLField]:
    """The root fields of `Query`, `Mutation` or `Subscription`."""
    return dict(cast("GraphQLObjectType", SCHEMA.type_map[name]).fields)


def arguments_of(field: GraphQLField) -> tuple[str, str]:
    """Variable definitions for all of a field's arguments, and their use."""
    if not field.args:
        return "", ""
    declared = ", ".join(f"${name}: {arg.type}" for name, arg in field.args.items())
    passed = ", ".join(f"{name}: ${name}" for name in field.args)
    return f"({declared})", f"({passed})"


async def make_key(database_url: str, name: str, role: Role, **given: Any) -> str:
    """A new API key; from the first one on the server asks for one."""

    async def make() -> str:
        async with database.connected(database_url):
            _, text = await keys.create(name, role, **given)
        return text

    return await beside(make())


async def revoke_key(database_url: str, key: str) -> None:
    """As `signoff keys revoke` does, in a process of its own."""

    async def revoke() -> None:
        async with database.connected(database_url):
            assert await keys.revoke(key[: len(keys.PREFIX) + 6])

    await beside(revoke())


async def make_workspace(database_url: str, name: str) -> int:
    """The number of a new workspace."""

    async def make() -> int:
        async with database.connected(database_url):
            return (await workspaces.create(name)).id

    return await beside(make())


async def beside(work: Coroutine[Any, Any, T]) -> T:
    """Done with a database of its own: Tortoise keeps one open to a context."""
    return await asyncio.create_task(work, context=Context())


async def echo(received: Received) -> None:
    """An agent that answers with the job's input."""
    await received.answer(received.body, "200 OK", "content-type: application/json")


@asynccontextmanager
async def agent(
    client: Client, key: str | None = None, **changes: Any
) -> AsyncGenerator[tuple[str, FakeAgent]]:
    """The id of a saved agent that echoes, and its endpoint."""
    async with fake_agent(echo) as endpoint:
        given = {"name": "Echo", "endpointUrl": endpoint.url} | changes
        saved = await mutate(client, "saveAgent", key, input=given)
        assert saved["__typename"] == "Agent", saved
        yield saved["id"], endpoint


async def new_job(client: Client, key: str | None = None, /, **changes: Any) -> Json:
    """A job made of the least, or of what is given."""
    given = {"name": "A job", "acceptanceCriteria": SAYS_OK, "input": {"ok": True}} | changes
    made = await mutate(client, "createJob", key, input=given)
    assert made["__typename"] == "Job", made
    return made


async def read_job(client: Client, job_id: str, key: str | None = None) -> Json:
    """Everything that a job shows: to see that a refusal changed nothing."""
    found = await gql(client, READ_JOB, key, id=job_id)
    return found["job"]


async def finished_job(
    client: Client, agent_id: str, key: str | None = None, /, **given: Any
) -> Json:
    """A job that its agent did and the judge settled."""
    made = await new_job(client, key, assign={"agentId": agent_id}, **given)
    return await mutate(client, "executeJob", key, input={"id": made["id"], "waitSeconds": 30})
