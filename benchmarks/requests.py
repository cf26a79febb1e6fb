"""What HTTP and GraphQL cost of a mutation: plain Strawberry beside ours.

    python benchmarks/requests.py [--count 200] [--rounds 15]

Both serve the same schema in a process of its own, with parsing and validation cached. The
services answer at once, and nothing asks a database. Reports the CPU time of the server for
one request; rounds alternate and the best of each counts, since a machine is never idle.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import orjson
import strawberry
import uvloop
from aiohttp import web
from strawberry.aiohttp.views import GraphQLView
from strawberry.extensions import ParserCache, ValidationCache
from strawberry.pydantic.conversion import build_pydantic_model
from strawberry.types import get_object_definition

from models import Job, JobStatus
from resolvers import jobs
from resolvers.context import Context
from schema import inputs, schema
from schema.errors import HANDLERS
from schema.tracing import Traced
from schema.types.attempt import Attempt
from schema.types.verdict import Verdict
from services.actors import LOCAL_ADMIN, Viewer
from services.jobs import Assign
from services.rates import Rates
from services.runtime import Runtime
from services.telemetry import Telemetry
from signoff.auth import Gate
from signoff.transport import View

RUNTIME = cast(
    "Runtime",
    SimpleNamespace(tracer=None, rates=Rates(1_000_000_000), telemetry=Telemetry()),
)
HOST = "127.0.0.1"
PORTS = {"plain": 8393, "ours": 8394}
OUTCOME = "{ __typename ... on Job { id } ... on Error { message } }"
ID = uuid4().hex
CRITERIA = [
    {"text": "says ok", "kind": "EXACT", "config": {"value": "ok", "pointer": "/answer"}},
    {"text": "has it", "kind": "CONTAINS", "config": {"value": "o", "pointer": "/answer"}},
    {"text": "in time", "kind": "LATENCY", "config": {"maxMs": 60_000}},
]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "executeJob": (
        f"mutation ($input: ExecuteJobInput!) {{ executeJob(input: $input) {OUTCOME} }}",
        {"id": f"job_{ID}"},
    ),
    "createJob": (
        f"mutation ($input: CreateJobInput!) {{ createJob(input: $input) {OUTCOME} }}",
        {
            "name": "benchmark",
            "acceptanceCriteria": {"items": CRITERIA},
            "input": {"q": "how are you?"},
            "assign": {"agentId": f"agent_{ID}"},
        },
    ),
    "createJob, refused": (
        f"mutation ($input: CreateJobInput!) {{ createJob(input: $input) {OUTCOME} }}",
        {"name": "", "acceptanceCriteria": {"items": CRITERIA}},
    ),
}


class Open(Gate):
    async def viewer(self, authorization: str | None, headers: Mapping[str, str]) -> Viewer:
        return LOCAL_ADMIN


class PlainView(GraphQLView[Context, None]):
    async def get_context(
        self, request: web.Request, response: web.Response | web.WebSocketResponse
    ) -> Context:
        return Context(RUNTIME, LOCAL_ADMIN)


def plain() -> PlainView:
    """The same types, served as Strawberry serves them."""
    for model in (*inputs.NAMES, Assign):
        get_object_definition(model, strict=True).from_input = build_pydantic_model
    return PlainView(
        strawberry.Schema(
            query=schema.query,
            mutation=schema.mutation,
            types=[Attempt, Verdict],
            exception_handlers=HANDLERS,
            extensions=[Traced, ParserCache, ValidationCache],
            config=schema.config,
        )
    )


def ours() -> View:
    return View(RUNTIME, Open(local=True))


def serve(kind: str) -> None:
    now = datetime.now(UTC)
    row = Job(
        id=uuid4(),
        name="benchmark",
        status=JobStatus.PENDING,
        status_changed_at=now,
        created_at=now,
        updated_at=now,
    )

    async def answered(*_: object) -> Job:
        return row

    async def spent(request: web.Request) -> web.Response:
        return web.Response(text=str(time.process_time()))

    for name in ("create", "execute"):
        setattr(jobs, name, answered)
    app = web.Application()
    app.router.add_post("/graphql", plain() if kind == "plain" else ours())
    app.router.add_get("/spent", spent)
    loop = uvloop.new_event_loop()
    web.run_app(app, host=HOST, port=PORTS[kind], print=None, access_log=None, loop=loop)


def connected(port: int) -> HTTPConnection:
    for _ in range(300):
        connection = HTTPConnection(HOST, port)
        try:
            connection.connect()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return connection
    raise TimeoutError(f"nothing listens on port {port}")


def answer(connection: HTTPConnection, method: str, path: str, body: bytes | None = None) -> bytes:
    connection.request(method, path, body, {"Content-Type": "application/json"})
    return connection.getresponse().read()


def microseconds(connection: HTTPConnection, body: bytes, count: int) -> float:
    before = float(answer(connection, "GET", "/spent"))
    for _ in range(count):
        answer(connection, "POST", "/graphql", body)
    return (float(answer(connection, "GET", "/spent")) - before) / count * 1e6


def measure(count: int, rounds: int) -> None:
    servers = {kind: connected(port) for kind, port in PORTS.items()}
    print(f"{'CPU of a request':20}{'plain':>10}{'ours':>10}   ratio")
    for name, (query, given) in CASES.items():
        body = orjson.dumps({"query": query, "variables": {"input": given}})
        answers = {answer(server, "POST", "/graphql", body) for server in servers.values()}
        assert len({len(each) for each in answers}) == 1, answers  # but for the ids
        times = {kind: [0.0] for kind in servers}
        for _ in range(rounds):
            for kind, server in servers.items():
                times[kind].append(microseconds(server, body, count))
        plain, ours = (min(times[kind][1:]) for kind in ("plain", "ours"))
        print(f"{name:20}{plain:7.0f} µs{ours:7.0f} µs{plain / ours:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="requests in a round")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    servers = [context.Process(target=serve, args=(kind,), daemon=True) for kind in PORTS]
    for server in servers:
        server.start()
    try:
        measure(given.count, given.rounds)
    finally:
        for server in servers:
            server.terminate()


if __name__ == "__main__":
    main()
