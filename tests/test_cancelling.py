"""A person ends what runs: the call is cut off wherever it runs, and nothing of it is applied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.fakes import openai_server
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.fakes.openai_server import FakeOpenAI
from tests.support import consistency
from tests.support.making import IS_POLITE, answers, holds, in_turn, says_ok, stalls, until
from tests.support.server import Server, serving, working
from tests.test_crash import execution_of, in_phase, read, types

pytestmark = pytest.mark.timeout(120)
Json = dict[str, Any]
ENDINGS = {
    "CANCELLED": """mutation($id: ID!) {
        cancelJob(input: {id: $id}) { __typename } }""",
    "COMPLETED": """mutation($id: ID!) {
        forceComplete(input: {id: $id, result: {by: "hand"}, reason: "It hurries."}) {
            __typename } }""",
    "RESUBMISSION_REQUIRED": """mutation($id: ID!) {
        resubmitJob(input: {id: $id, reason: "Wrong input."}) { __typename } }""",
    "ASSIGNED": """mutation($id: ID!, $to: ID!) {
        reassignJob(input: {id: $id, assign: {agentId: $to}, interruptRunning: true}) {
            __typename } }""",
}
PAYLOADS = """query($id: ID!) { job(id: $id) { logs(first: 100) { nodes {
    type payload } } } }"""
ABORTED = {"error": "ABORTED", "mayHaveExecuted": True, "late": True}


@dataclass
class Place:
    """Where people ask and, perhaps elsewhere, where the executions run."""

    url: str
    server: Server
    judge: FakeOpenAI


@pytest.fixture
async def place(database_url: str, database_kind: str, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        judge = await stack.enter_async_context(openai_server.running())
        asks = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": judge.base_url}
        apart = ["--no-worker"] if database_kind == "postgres" else []
        served = serving(database_url, tmp_path, *apart, **asks)
        server = await stack.enter_async_context(served)
        if apart:
            await stack.enter_async_context(working(database_url, tmp_path, "worker", **asks))
        yield Place(database_url, server, judge)


async def payloads(place: Place, id: str, type: str) -> list[Json]:
    found = await place.server.graphql(PAYLOADS, id=id)
    return [each["payload"] for each in found["job"]["logs"]["nodes"] if each["type"] == type]


async def end(place: Place, id: str, to: str, status: str) -> Json:
    """End the execution; returns the job as it is then."""
    query = ENDINGS[status]
    given = {"id": id, "to": to} if "$to" in query else {"id": id}
    (done,) = (await place.server.graphql(query, **given)).values()
    assert done["__typename"] == "Job", done
    return without_log(await read(place.server, id))


def without_log(job: Json) -> Json:
    return {name: value for name, value in job.items() if name != "logs"}


async def check_calls_are_cut_off(place: Place) -> None:
    async with fake_agent(says_ok) as other:
        to = await saved(place.server, other)
        for status in ENDINGS:
            async with fake_agent(stalls) as agent:
                id = await execution_of(place.server, agent, idempotent=True)
                await holds(lambda agent=agent: len(agent.received) == 1)
                ended = await end(place, id, to, status)
                assert ended["status"] == status
                async with asyncio.timeout(5):
                    await agent.all_closed()

                async def told(id: str = id) -> bool:
                    return await payloads(place, id, "AGENT_RESPONSE") == [ABORTED]

                await until(told)
                assert without_log(await read(place.server, id)) == ended
                assert len(agent.received) == 1
    assert other.received == []


async def saved(server: Server, agent: FakeAgent) -> str:
    query = "mutation($i: SaveAgentInput!) { saveAgent(input: $i) { ... on Agent { id } } }"
    made = await server.graphql(query, i={"name": agent.url, "endpointUrl": agent.url})
    return made["saveAgent"]["id"]


async def check_pause_ends_without_another_try(place: Place) -> None:
    busy = answers({}, "429 Too Many Requests", "retry-after: 1")
    async with fake_agent(in_turn(busy, says_ok)) as agent, fake_agent(says_ok) as after:
        id = await execution_of(place.server, agent, idempotent=True)
        await in_phase(place.server, id, "RETRY_WAIT")
        ended = await end(place, id, "", "CANCELLED")
        (failure,) = await payloads(place, id, "AGENT_RESPONSE")
        assert failure["httpStatus"] == 429
        await passes_by(place, after)
        assert len(agent.received) == 1
        assert without_log(await read(place.server, id)) == ended
        assert types(await read(place.server, id)).count("AGENT_RESPONSE") == 1


async def passes_by(place: Place, agent: FakeAgent) -> None:
    """Another job that pauses for as long is done in the meantime."""
    agent.behave = in_turn(answers({}, "429 Too Many Requests", "retry-after: 1"), says_ok)
    id = await execution_of(place.server, agent, idempotent=True)

    async def done() -> bool:
        return (await read(place.server, id))["status"] == "COMPLETED"

    await until(done)


async def check_judge_is_cut_off(place: Place) -> None:
    cut_off = asyncio.Event()

    async def waits(fake: FakeOpenAI, request: web.Request, body: Json) -> web.StreamResponse:
        try:
            return await openai_server.hangs(fake, request, body)
        finally:
            cut_off.set()

    place.judge.script.append(waits)
    async with fake_agent(says_ok) as agent:
        id = await execution_of(place.server, agent, idempotent=True, criteria=IS_POLITE)
        await holds(lambda: len(place.judge.requests) == 1)
        ended = await end(place, id, "", "COMPLETED")
        assert ended["result"] == {"by": "hand"}
        async with asyncio.timeout(5):
            await cut_off.wait()

        async def told() -> bool:
            ends = await payloads(place, id, "VALIDATOR_RESPONSE")
            return ends == [ABORTED | {"mayHaveExecuted": False}]

        await until(told)
        assert without_log(await read(place.server, id)) == ended
        assert "VERDICT" not in types(await read(place.server, id))


async def check_answer_that_comes_with_the_end(place: Place) -> None:
    """The agent answers at the very moment at which the job is cancelled, many times over."""
    gates: list[asyncio.Event] = []

    async def waits(received: Received) -> None:
        gate = asyncio.Event()
        gates.append(gate)
        await gate.wait()
        await says_ok(received)

    for tries in range(1, 9):
        async with fake_agent(waits) as agent:
            id = await execution_of(place.server, agent, idempotent=True)
            await holds(lambda tries=tries: len(gates) == tries)
            gates[-1].set()
            ended = await cancelled(place, id)
            job = await read(place.server, id)
            if not ended:
                assert job["status"] == "COMPLETED"
                continue
            assert job["status"] == "CANCELLED"

            async def told(id: str = id) -> bool:
                return len(await payloads(place, id, "AGENT_RESPONSE")) == 1

            await until(told)
            assert job["result"] is None


async def cancelled(place: Place, id: str) -> bool:
    """Whether the job could be cancelled; that it moved on meanwhile is no reason to give up."""
    while True:
        (done,) = (await place.server.graphql(ENDINGS["CANCELLED"], id=id)).values()
        if done["__typename"] != "VersionConflict":
            return done["__typename"] == "Job"


async def test_what_a_person_ends_is_cut_off_wherever_it_runs(place: Place) -> None:
    await asyncio.gather(
        check_calls_are_cut_off(place),
        check_pause_ends_without_another_try(place),
        check_judge_is_cut_off(place),
        check_answer_that_comes_with_the_end(place),
    )
    await consistency.check(place.url)
