"""Every operation, by every kind of caller, over every transport; and nothing of others in any."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import structlog
from graphql import GraphQLObjectType

from models import Role
from signoff.app import create_app
from signoff.postgres import BatchingClient
from signoff.sqlite import DirectClient
from tests.fakes.agents import fake_agent
from tests.support.access import (
    FORBIDDEN,
    GONE,
    KINDS,
    NOBODY,
    OK,
    TABLE,
    Target,
    document,
    kind_of,
    outcome,
    requests,
)
from tests.support.graphql import (
    SCHEMA,
    Json,
    answer,
    echo,
    gql,
    make_key,
    make_workspace,
    mutate,
    new_job,
    read_job,
    root,
)
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import connected, streaming
from tests.support.visible import ADMINS, LEADS, ONCE, SHOWN, fields

SECRET = "s3cret-of-the-agent"  # noqa: S105
JOB, AGENT, HOOK = "mark-of-the-job", "mark-of-the-agent", "mark-of-the-hook"
PUBLIC_URL = "http://callbacks.invalid"
DEPTH = 3


@dataclass
class World:
    """Mia's job and all that belongs to it, in a workspace; beside it another one."""

    client: Client
    keys: dict[str, str | None]
    at: Target
    marks: dict[str, str]
    """What may be told to some, and secrets, which are told to nobody again."""

    def key(self, caller: str) -> str:
        found = self.keys[caller]
        assert found is not None
        return found


def marked(name: str) -> str:
    return f"{JOB}-{name}"


UNLIMITED: Json = {
    "max_document_chars": 2_097_152,
    "max_tokens": 20_000,
    "max_depth": 100,
    "max_aliases": 10_000,
    "max_cost": 100_000_000,
    "rate_per_minute": 0,
}
"""Documents that ask for all there is are larger than anybody's."""


@pytest.fixture
async def client(database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient) -> Client:
    settings = settings_for(database_url, tmp_path, public_url=PUBLIC_URL, **UNLIMITED)
    return await aiohttp_client(create_app(settings))


@pytest.fixture
async def world(client: Client, database_url: str) -> AsyncGenerator[World]:
    acme = await make_workspace(database_url, "acme")
    hour = datetime.now(UTC) + timedelta(hours=1)

    async def key(name: str, role: Role, **given: Any) -> str:
        return await make_key(database_url, name, role, **given)

    keys: dict[str, str | None] = {
        "nobody": None,
        "unknown": "signoff_unknown",
        "expired": await key("Ada", Role.ADMIN, expires_at=datetime.now(UTC) - timedelta(hours=1)),
        "revoked": await key("Ada", Role.ADMIN),
        "viewer": await key("Vera", Role.VIEWER),
        "owner": await key("Mia", Role.MEMBER, expires_at=hour),
        "member": await key("Olaf", Role.MEMBER),
        "agents": await key("Ada", Role.ADMIN, agents=[]),
        "owners": await key("Ada", Role.ADMIN, owners=["Olaf"]),
        "foreign": await key("Mia", Role.ADMIN, workspace_id=acme),
        "admin": await key("Ada", Role.ADMIN),
    }
    shown = (await gql(client, "{ apiKeys { nodes { id prefix } } }", keys["admin"]))["apiKeys"]
    ids = {each["prefix"]: each["id"] for each in shown["nodes"]}
    await mutate(client, "revokeApiKey", keys["admin"], id=ids[str(keys["revoked"])[:14]])
    spare = await key("Zoe", Role.VIEWER)
    shown = (await gql(client, "{ apiKeys { nodes { id prefix } } }", keys["admin"]))["apiKeys"]
    ids = {each["prefix"]: each["id"] for each in shown["nodes"]}
    given = {"name": AGENT, "description": AGENT, "authHeader": f"X-Key: {SECRET}"}
    async with fake_agent(echo) as endpoint:
        given["endpointUrl"] = endpoint.url
        saved = await mutate(client, "saveAgent", keys["admin"], input=given)
        job, attempt = await marked_job(client, str(keys["owner"]), saved["id"])
        hook, delivery, secret = await webhook(client, keys["owner"], "mia")
        of_admin, _, secret_of_admin = await webhook(client, keys["admin"], "ada")
        at = Target(job, attempt, saved["id"], ids[spare[:14]], hook, delivery, of_admin)
        (asked,) = endpoint.received
        marks = {
            "job": JOB,
            "agent": AGENT,
            "url": endpoint.url,
            "webhook": f"{HOOK}-of-mia",
            "webhook of admin": f"{HOOK}-of-ada",
            "auth header": SECRET,
            "signing secret": saved["signingSecret"],
            "webhook's secret": secret,
            "secret of admin's webhook": secret_of_admin,
            "callback token": asked.headers["signoff-callback-url"].rpartition("/")[2],
        }
        texts = {
            f"key of {name}": text[14:] for name, text in keys.items() if name in SEES and text
        }
        yield World(client, keys, at, marks | texts)


async def webhook(client: Client, key: str | None, owner: str) -> tuple[str, str, str]:
    """A webhook with a mark in its address, a delivery of it, and its secret."""
    given = {"url": f"http://127.0.0.1:9/{HOOK}-of-{owner}", "types": ["REVIEW"]}
    made = await mutate(client, "saveWebhook", key, input=given)
    hook = made["webhook"]["id"]
    return hook, (await mutate(client, "testWebhook", key, id=hook))["id"], made["secret"]


async def marked_job(client: Client, key: str, agent_id: str) -> tuple[str, str]:
    """A job with a mark in everything that can be said about one, and its attempt."""
    config = {"value": True, "pointer": "/ok"}
    items = [{"key": "ok", "text": marked("item"), "kind": "EXACT", "config": config}]
    job = await new_job(
        client,
        key,
        name=marked("name"),
        description=marked("description"),
        input={"ok": False, "mark": marked("input")},
        tags=[marked("tag")],
        acceptanceCriteria={"text": marked("criteria"), "items": items},
        assign={"agentId": agent_id},
        idempotencyKey=marked("idempotency"),
        retryPolicy={"fallbackAgentIds": []},
        budget={"maxTokens": 1_000_000},
    )
    await mutate(client, "addJobNote", key, id=job["id"], message=marked("note"))
    given = {"id": job["id"], "waitSeconds": 30, "feedback": marked("feedback")}
    done = await mutate(client, "executeJob", key, input=given)
    assert done["status"] == "RESUBMISSION_REQUIRED", done
    query = "query($id: ID!) { job(id: $id) { currentAttempt { id } } }"
    found = await gql(client, query, key, id=job["id"])
    return job["id"], found["job"]["currentAttempt"]["id"]


def test_every_root_field_has_a_row_and_a_request() -> None:
    fields = {name for kind in KINDS for name in root(kind)}
    assert set(TABLE) == fields
    assert set(requests(Target())) == fields


def test_every_field_of_every_type_has_a_rule() -> None:
    """Fields of the root types have rows."""
    rules = [fields(rule) for rule in (SHOWN, LEADS, ADMINS, ONCE)]
    assert sum(map(len, rules)) == len(set[str]().union(*rules))
    found = {
        f"{name}.{field}"
        for name, each in SCHEMA.type_map.items()
        if isinstance(each, GraphQLObjectType) and not name.startswith("__") and name not in KINDS
        for field in each.fields
    }
    assert found == set[str]().union(*rules)


# Transports

Ask = Callable[[Client, str, str | None, Json], Awaitable[Json]]


async def over_http(client: Client, query: str, key: str | None, variables: Json) -> Json:
    return await answer(client, query, key, **variables)


async def over_websocket(client: Client, query: str, key: str | None, variables: Json) -> Json:
    """A refused introduction is told by the code of the close."""
    payload = {"Authorization": f"Bearer {key}"} if key else None
    async with client.ws_connect("/graphql", protocols=("graphql-transport-ws",)) as ws:
        await ws.send_json({"type": "connection_init", "payload": payload or {}})
        message = await ws.receive(timeout=20)
        if ws.closed:
            assert ws.close_code == 4403
            return {"errors": [{"extensions": {"code": NOBODY}}]}
        assert orjson.loads(message.data)["type"] == "connection_ack"
        asked = {"query": query, "variables": variables}
        await ws.send_json({"id": "1", "type": "subscribe", "payload": asked})
        told = await ws.receive_json(timeout=20)
        return {"errors": told["payload"]} if told["type"] == "error" else told["payload"]


async def over_sse(client: Client, query: str, key: str | None, variables: Json) -> Json:
    headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {key}"} if key else {})
    asked = {"query": query, "variables": variables}
    async with await client.post("/graphql", json=asked, headers=headers) as response:
        if response.content_type == "application/json":
            return await response.json()
        async for line in response.content:
            if line.startswith(b"data: {"):
                return orjson.loads(line.removeprefix(b"data: "))
    raise AssertionError("the stream ended")


TRANSPORTS: dict[str, Ask] = {"http": over_http, "websocket": over_websocket, "sse": over_sse}


def carries(transport: str, name: str) -> bool:
    """A plain answer is no stream."""
    return transport != "http" or kind_of(name) != "subscription"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_each_caller_comes_to_what_the_table_says(world: World, transport: str) -> None:
    """First all who must not, which changes nothing; then those who may."""
    ask, given = TRANSPORTS[transport], requests(world.at)
    state = await everything(world)
    cases = [
        (name, caller, expected)
        for name, row in TABLE.items()
        for caller, expected in row.expected().items()
        if carries(transport, name)
    ]
    for harmless in (True, False):
        for name, caller, expected in cases:
            if (expected != OK or kind_of(name) != "mutation") is not harmless:
                continue
            body = await ask(world.client, document(name), world.keys[caller], given[name])
            assert outcome(name, body, world.at) == expected, (name, caller, body)
        if harmless:
            assert await everything(world) == state
    assert await everything(world) != state


async def everything(world: World) -> list[Json]:
    """What must be as it was after whatever was refused."""
    admin = world.key("admin")
    query = """query($id: ID!) { agent(id: $id) { version availability endpointUrl }
      apiKeys { nodes { id revokedAt } } webhooks { nodes { id url oldSecretUntil } }
      jobs { totalCount } jobLogs { totalCount } }"""
    found = await gql(world.client, query, admin, id=world.at.agent)
    return [await read_job(world.client, world.at.job, admin), found]


# What is not there

KINDS_OF_IDS = ("job", "attempt", "agent", "key", "webhook", "delivery", "webhook")
MISSING = Target(*[f"{kind}_{'f' * 32}" for kind in KINDS_OF_IDS])
Sent = Callable[[], list[str]]


class Statements(logging.Handler):
    """The SQL that requests send, by Tortoise or directly; what a worker sends is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.getMessage().split(":")[0])

    def note(self, sql: str) -> None:
        if "request_id" in structlog.contextvars.get_contextvars():
            self.sent.append(sql)

    def taken(self) -> list[str]:
        """Those since the last call; what is asked for at once comes in any order."""
        found, self.sent = sorted(self.sent), []
        return found


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Generator[Sent]:
    seen, logger = Statements(), logging.getLogger("tortoise.db_client")
    level = logger.level
    with monkeypatch.context() as patched:
        for client in (DirectClient, BatchingClient):
            patched.setattr(client, "fetch", _recording(client.fetch, seen))
        patched.setattr(BatchingClient, "fetch_row", _recording(BatchingClient.fetch_row, seen))
        logger.setLevel(logging.DEBUG)
        logger.addHandler(seen)
        try:
            yield seen.taken
        finally:
            logger.removeHandler(seen)
            logger.setLevel(level)


def _recording(fetch: Any, seen: Statements) -> Any:
    async def recorded(self: Any, sql: str, *values: Any) -> Any:
        seen.note(sql)
        return await fetch(self, sql, *values)

    return recorded


@pytest.mark.parametrize("caller", ["member", "owners", "foreign"])
async def test_what_is_others_answers_as_what_is_not_there(
    world: World, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes but for the id, by the same statements."""
    theirs, missing = requests(world.at), requests(MISSING)
    names = [name for name, row in TABLE.items() if row.expected()[caller] == GONE]
    assert len(names) > 10
    key = world.key(caller)
    with watched(monkeypatch) as sent:
        for name in names:
            ask = over_sse if kind_of(name) == "subscription" else over_http
            answers: list[str] = []
            statements_: list[list[str]] = []
            for arguments in (theirs[name], missing[name]):
                sent()
                body = await ask(world.client, document(name), key, arguments)
                answers.append(orjson.dumps(body).decode())
                statements_.append(sent())
            first, second = answers
            for ours, others in zip(world.at, MISSING, strict=True):
                first = first.replace(ours, others)
            assert first == second, name
            assert statements_[0] == statements_[1], name
            assert statements_[0], name


async def test_a_node_of_another_workspace_is_none(world: World) -> None:
    query = """query($id: ID!) { job(id: $id) { logs { nodes { id } }
      latestVerdict { id } currentAttempt { id } } }"""
    found = (await gql(world.client, query, world.key("admin"), id=world.at.job))["job"]
    ids = [node["id"] for node in found["logs"]["nodes"]]
    ids += [found["latestVerdict"]["id"], found["currentAttempt"]["id"], *world.at[:3]]
    node = "query($id: ID!) { node(id: $id) { id } }"
    for id in ids:
        assert (await gql(world.client, node, world.key("admin"), id=id))["node"] == {"id": id}
        for caller in ("foreign", "member"):
            seen = (await gql(world.client, node, world.key(caller), id=id))["node"]
            assert seen == ({"id": id} if caller == "member" and id == world.at.agent else None)


# Nothing of others, anywhere

SEES = {
    "admin": {"job", "agent", "url", "webhook", "webhook of admin"},
    "agents": {"job", "agent", "url"},
    "viewer": {"job", "agent"},
    "owner": {"job", "agent", "webhook"},
    "member": {"agent"},
    "owners": {"agent", "url"},
    "foreign": set[str](),
}
"""Which marks a caller may be told of, in any field of any type."""


@pytest.mark.parametrize("caller", SEES)
async def test_no_field_of_any_type_tells_of_what_a_caller_must_not_see(
    world: World, caller: str
) -> None:
    given = requests(world.at)
    told = ""
    shown: set[str] = set()
    for name in (*root("Query"), *root("Subscription")):
        if name == "node":
            continue
        ask = over_sse if kind_of(name) == "subscription" else over_http
        body = await ask(world.client, document(name, DEPTH), world.key(caller), given[name])
        told += orjson.dumps(body).decode()
        shown |= set(not_null(body))
    for name in root("Mutation"):
        if TABLE[name].expected()[caller] in (FORBIDDEN, GONE):
            body = await over_http(world.client, document(name), world.key(caller), given[name])
            told += orjson.dumps(body).decode()
    told += await search(world, caller)
    assert {name for name, mark in world.marks.items() if mark in told} == SEES[caller]
    assert not shown & fields(ONCE)
    if "url" not in SEES[caller]:
        assert not shown & fields(ADMINS)


def not_null(answer: Any) -> Generator[str]:
    """The fields that an answer shows, by their aliases: `Type.field`."""
    if isinstance(answer, list):
        for each in cast("list[Any]", answer):
            yield from not_null(each)
    elif isinstance(answer, dict):
        for alias, value in cast("Json", answer).items():
            if value is not None:
                yield alias.replace("_", ".", 1)
                yield from not_null(value)


async def search(world: World, caller: str) -> str:
    """What filters and counts make of words that only others' jobs have."""
    query = """query($where: JobFilter, $agents: AgentFilter) {
      jobs(where: $where) { totalCount nodes { id name } }
      jobLogs(where: $where) { totalCount nodes { message payload } }
      agents(where: $agents) { totalCount nodes { id name } } }"""
    contains = {"contains": "mark-of"}
    told = ""
    for where in ({"name": contains}, {"tags": {"any": [marked("tag")]}},
                  {"agent": {"name": contains}}, {"createdBy": {"eq": "Mia"}},
                  {"id": {"eq": world.at.job}}, {"not": {"name": {"eq": "x"}}}):  # fmt: skip
        variables = {"where": where, "agents": {"name": contains}}
        found = await gql(world.client, query, world.key(caller), **variables)
        told += str(found)
        if "job" not in SEES[caller]:
            assert (found["jobs"]["totalCount"], found["jobLogs"]["totalCount"]) == (0, 0)
        if "agent" not in SEES[caller]:
            assert found["agents"]["totalCount"] == 0
    return told


@pytest.mark.parametrize("name", ["jobStatusChanged", "jobEvents"])
@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_stream_tells_of_the_callers_own_workspace_alone(
    world: World, transport: str, name: str
) -> None:
    query = document(name, 2)
    told = ""

    async def listen(next_one: Callable[[], Awaitable[Json]]) -> None:
        nonlocal told
        await new_job(world.client, world.key("admin"), name=marked("later"))
        await new_job(world.client, world.key("foreign"), name="first")
        await mutate(world.client, "cancelJob", world.key("admin"), input={"id": world.at.job})
        await new_job(world.client, world.key("foreign"), name="second")
        while "second" not in told:
            told += str(await next_one())

    key = world.key("foreign")
    if transport == "sse":
        async with streaming(world.client, query, key, after="MA") as stream:
            await listen(stream.next)
    else:
        async with connected(world.client, {"Authorization": f"Bearer {key}"}) as socket:
            id = await socket.subscribe(query, after="MA")
            await listen(lambda: socket.next(id))
    assert told.index("first") < told.index("second")
    assert JOB not in told
    assert marked("later") not in told


async def test_metrics_name_nobody_and_are_the_default_workspaces_admins_alone(
    world: World,
) -> None:
    for caller, key in world.keys.items():
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with world.client.get("/metrics", headers=headers) as response:
            text = await response.text()
            keyless = dict.fromkeys(("nobody", "unknown", "expired", "revoked"), 401)
            assert response.status == ({"admin": 200} | keyless).get(caller, 403), caller
            for mark in (*world.marks.values(), "acme", "Mia", world.at.job):
                assert mark not in text


async def test_a_revoked_key_is_refused_on_the_very_next_request(world: World) -> None:
    key = world.key("admin")
    query = "{ apiKeys { nodes { id prefix } } }"
    nodes = (await gql(world.client, query, key))["apiKeys"]["nodes"]
    (own,) = [each["id"] for each in nodes if key.startswith(each["prefix"])]
    assert (await mutate(world.client, "revokeApiKey", key, id=own))["__typename"] == "ApiKey"
    found = await asyncio.gather(*[answer(world.client, query, key) for _ in range(10)])
    assert {each["errors"][0]["extensions"]["code"] for each in found} == {NOBODY}
