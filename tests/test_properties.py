"""Whatever a client sends is answered in time, and never with a fault of the server.

Documents over the whole schema, variables, frames and bodies made by Hypothesis, against a
server in a process of its own. `pytest --hypothesis-profile=long` looks for longer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import aiohttp
import pytest
from graphql import GraphQLSchema, build_schema
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_graphql import mutations, nodes, queries

from schema import sdl
from tests.support import commands

T = TypeVar("T")
Json = dict[str, Any]
Strategy = st.SearchStrategy[Any]

SECONDS = 20
"""Within which each request is answered, on a busy machine too."""
SCHEMA = build_schema(sdl())
EVENTS = GraphQLSchema(query=SCHEMA.subscription_type, types=SCHEMA.type_map.values())
CREATE = """mutation($input: CreateJobInput!) {
  createJob(input: $input) { ... on Job { id } ... on Error { code message } } }"""
SAVE = """mutation($input: SaveAgentInput!) {
  saveAgent(input: $input) { ... on Agent { id } ... on Error { code message } } }"""
STARTED = "Signoff"
CODES = {"INTERNAL", "HTTP_500"}
"""Of faults."""


@dataclass
class Server:
    """A running server, and a client of it."""

    url: str
    runner: asyncio.Runner
    session: aiohttp.ClientSession

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def post(self, body: bytes, **headers: str) -> None:
        """Send it; what comes back must be an answer that is no fault."""
        self.run(self._post(body, {"Content-Type": "application/json"} | headers))

    def ask(self, query: str, **variables: Any) -> None:
        self.post(json.dumps({"query": query, "variables": variables}).encode())

    async def _post(self, body: bytes, headers: dict[str, str]) -> None:
        async with asyncio.timeout(SECONDS):
            async with self.session.post(self.url, data=body, headers=headers) as response:
                assert response.status < 500, await response.text()
                check(await response.json())

    async def converse(self, frames: list[str]) -> None:
        """Send frames on a WebSocket, then see that the server still answers."""
        async with asyncio.timeout(SECONDS):
            async with self.session.ws_connect(self.url, protocols=[PROTOCOL]) as socket:
                await socket.send_json({"type": "connection_init"})
                await socket.receive()
                for frame in frames:
                    if not socket.closed:
                        await socket.send_str(frame)
                await socket.send_str('{"type": "ping"}') if not socket.closed else None
                async for message in socket:
                    told = json.loads(message.data)
                    check(told)
                    if told["type"] == "pong":
                        return
                assert socket.close_code in range(4400, 4500)


PROTOCOL = "graphql-transport-ws"


def check(answer: Any) -> None:
    """Errors have a code, and none is a fault of the server."""
    told = cast("Json", answer)
    payload: Any = told.get("payload", told)
    body = cast("Json", {"errors": payload} if isinstance(payload, list) else payload)
    codes = [error["extensions"]["code"] for error in body.get("errors", ())]
    assert not CODES.intersection(codes), answer
    assert len(codes) <= 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """On SQLite, with a job; agents on private addresses are never called, nor is a judge."""
    folder = tmp_path_factory.mktemp("properties")
    given = commands.environment(
        SIGNOFF_ALLOW_PRIVATE_AGENTS="false",
        SIGNOFF_SAMPLE_AGENT="false",
        SIGNOFF_RATE_PER_MINUTE="0",
        SIGNOFF_AUTH_FAILURES_PER_MINUTE="0",
        SIGNOFF_DATABASE_URL=f"sqlite:///{folder}/signoff.db",
    )
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        key = runner.run(_key(folder, given))  # one that is made by chance locks out the keyless
        process = commands.process(folder, given, "serve", "--port", "0")
        started = runner.run(process.__aenter__())
        stack.callback(lambda: runner.run(process.__aexit__(None, None, None)))
        lines = runner.run(commands.until_line(started, "  GraphQL"))
        url = lines[-1].split()[1]
        session = runner.run(_session(key))
        stack.callback(lambda: runner.run(session.close()))
        yield Server(url, runner, session)
        assert started.returncode is None


async def _key(folder: Path, given: dict[str, str]) -> str:
    making = ("keys", "create", "--role", "admin", "--name", "anybody")
    async with commands.process(folder, given, *making) as made:
        return (await commands.until_line(made, "signoff_"))[-1]


async def _session(key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})


# What is sent

NAMES = st.text(max_size=20)
PREFIXES = ("job", "agent", "attempt", "verdict", "criteria", "log", "")
IDS = st.one_of(
    st.builds("{}_{}".format, st.sampled_from(PREFIXES), st.uuids().map(lambda key: key.hex)),
    st.builds("{}_{}".format, st.sampled_from(PREFIXES), st.integers(-5, 2**70)),
    NAMES,
)
INSTANTS = st.one_of(st.datetimes().map(str), st.sampled_from(["-P7D", "P", "2026-01-01"]), NAMES)
VALUES: Strategy = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)


def literal(value: Any) -> Any:
    """A JSON value as it is written in a document."""
    if isinstance(value, dict):
        return nodes.String(json.dumps(value))
    if isinstance(value, list):
        return nodes.List([literal(each) for each in cast("list[Any]", value)])
    kinds: dict[type, Callable[[Any], Any]] = {
        bool: nodes.Boolean,
        int: nodes.Int,
        float: nodes.Float,
        str: nodes.String,
    }
    return kinds[type(value)](value) if value is not None else nodes.Null


SCALARS = {
    "ID": IDS.map(nodes.String),
    "EventCursor": (NAMES | st.sampled_from(["MQ", "LTE", "MA"])).map(nodes.String),
    "DateTime": INSTANTS.map(nodes.String),
    "JSON": VALUES.map(literal),
}


FIELDS = ("name", "in", "eq", "and", "or", "not", "status", "agent", "createdAt", "gte", "tags")
NESTED: Strategy = st.recursive(
    VALUES | IDS | INSTANTS | st.sampled_from(["PENDING", "HIGH", "CREATED_AT"]),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
    ),
    max_leaves=30,
)
INPUT_FIELDS = {
    name: sorted(cast("Any", SCHEMA.type_map[name]).fields)
    for name in ("CreateJobInput", "SaveAgentInput")
}


def inputs(name: str) -> Strategy:
    """Objects with the fields of an input, and anything in them."""
    return st.dictionaries(st.sampled_from(INPUT_FIELDS[name]), NESTED | VALUES, max_size=8)


# What holds


@given(query=queries(SCHEMA, custom_scalars=SCALARS))
def test_queries(server: Server, query: str) -> None:
    server.ask(query)


@given(query=mutations(SCHEMA, custom_scalars=SCALARS))
def test_mutations(server: Server, query: str) -> None:
    server.ask(query)


@given(query=queries(EVENTS, custom_scalars=SCALARS), id=NAMES.filter(bool))
def test_subscriptions(server: Server, query: str, id: str) -> None:
    payload = {"query": f"subscription {query}"}
    frame = json.dumps({"id": id, "type": "subscribe", "payload": payload})
    server.run(server.converse([frame]))


@given(where=NESTED, order=NESTED, first=VALUES, after=NAMES)
def test_variables_of_queries(
    server: Server, where: Any, order: Any, first: Any, after: str
) -> None:
    query = """query($where: JobFilter, $order: [JobOrder!], $first: Int, $after: String) {
      jobs(where: $where, orderBy: $order, first: $first, after: $after) { nodes { id } } }"""
    server.ask(query, where=where, order=order, first=first, after=after)


@given(input=inputs("CreateJobInput"))
def test_jobs(server: Server, input: Any) -> None:
    server.ask(CREATE, input={"name": "x", "acceptanceCriteria": {"text": "y"}} | input)


@given(input=inputs("SaveAgentInput"))
def test_agents(server: Server, input: Any) -> None:
    server.ask(SAVE, input={"name": "x", "endpointUrl": "https://agent.invalid/"} | input)


MEMBERS = ("query", "variables", "operationName", "extensions", "documentId")
ENDED = st.sampled_from(["{ viewer { id } }", "{", "query A { viewer { id } }", ""])


@settings(max_examples=settings().max_examples * 3)
@given(
    body=st.one_of(
        st.binary(max_size=200),
        VALUES.map(lambda value: json.dumps(value).encode()),
        st.dictionaries(st.sampled_from(MEMBERS), VALUES | ENDED).map(
            lambda value: json.dumps(value).encode()
        ),
    )
)
def test_bodies(server: Server, body: bytes) -> None:
    server.post(body)


TYPES = ("connection_init", "subscribe", "complete", "ping", "pong", "next", "")
PAYLOADS = VALUES | st.fixed_dictionaries({"query": ENDED})
FRAMES = st.one_of(
    VALUES.map(json.dumps),
    NAMES,
    st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES) | VALUES},
        optional={
            "id": NAMES | VALUES,
            "payload": VALUES | st.fixed_dictionaries({"query": ENDED}),
        },
    ).map(json.dumps),
)


@given(frames=st.lists(FRAMES, max_size=4))
def test_frames(server: Server, frames: list[str]) -> None:
    server.run(server.converse(frames))
