"""A real server process dies in the midst of things; the next one goes on where the rows say."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from tests.fakes import openai_server
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.fakes.openai_server import FakeOpenAI
from tests.support.making import (
    IS_POLITE,
    SAYS_OK,
    answers,
    holds,
    in_turn,
    key_of,
    says_ok,
    stalls,
    until,
)
from tests.support.server import Server, serving

SAVE = """
mutation($input: SaveAgentInput!) {
  saveAgent(input: $input) { __typename ... on Agent { id } }
}"""
CREATE = """
mutation($input: CreateJobInput!) {
  createJob(input: $input) { __typename ... on Job { id status } }
}"""
EXECUTE = """
mutation($input: ExecuteJobInput!) {
  executeJob(input: $input) { __typename ... on Job { id status phase } }
}"""
JOB = """
query($id: ID!) {
  job(id: $id) { status phase statusReason result attemptCount statusMessage
    attempts { nodes { state error { code mayHaveExecuted } } }
    logs(first: 100) { nodes { type } } }
}"""
PAUSE = 3
"""What an agent asks for that is to be tried again."""
Json = dict[str, Any]


async def job_for(
    server: Server, agent: FakeAgent, *, idempotent: bool, criteria: Json = SAYS_OK
) -> str:
    """The id of a job that is ready to run."""
    given = {"name": token_hex(8), "endpointUrl": agent.url, "idempotent": idempotent}
    saved = await server.graphql(SAVE, input=given)
    created = await server.graphql(
        CREATE,
        input={
            "name": "A job",
            "acceptanceCriteria": criteria,
            "assign": {"agentId": saved["saveAgent"]["id"]},
        },
    )
    return created["createJob"]["id"]


async def execution_of(
    server: Server, agent: FakeAgent, *, idempotent: bool, criteria: Json = SAYS_OK
) -> str:
    """The id of a job that was just told to run."""
    id = await job_for(server, agent, idempotent=idempotent, criteria=criteria)
    done = await server.graphql(EXECUTE, input={"id": id})
    assert done["executeJob"]["status"] == "IN_EXECUTION"
    return done["executeJob"]["id"]


async def read(server: Server, id: str) -> Json:
    return (await server.graphql(JOB, id=id))["job"]


async def in_phase(server: Server, id: str, phase: str) -> None:
    async def found() -> bool:
        return (await read(server, id))["phase"] == phase

    await until(found)


async def settled(server: Server, id: str) -> Json:
    async def found() -> Json | None:
        job = await read(server, id)
        return job if job["status"] != "IN_EXECUTION" else None

    return await until(found)


def types(job: Json) -> list[str]:
    return [entry["type"] for entry in job["logs"]["nodes"]]


@dataclass
class Case:
    """A job that a server was killed under, the agent that did it, and what became of it."""

    agent: FakeAgent
    id: str
    job: Json = field(default_factory=dict[str, Any])


async def waits_for_agent(server: Server, stack: AsyncExitStack, *, idempotent: bool) -> Case:
    agent = await stack.enter_async_context(fake_agent(in_turn(stalls, says_ok)))
    id = await execution_of(server, agent, idempotent=idempotent)
    await holds(lambda: len(agent.received) == 1)
    return Case(agent, id)


async def waits_to_retry(server: Server, stack: AsyncExitStack, *, idempotent: bool) -> Case:
    busy = answers({}, "429 Too Many Requests", f"retry-after: {PAUSE}")
    agent = await stack.enter_async_context(fake_agent(in_turn(busy, says_ok)))
    id = await execution_of(server, agent, idempotent=idempotent)
    await in_phase(server, id, "RETRY_WAIT")
    return Case(agent, id)


async def waits_for_judge(server: Server, stack: AsyncExitStack, judge: FakeOpenAI) -> Case:
    agent = await stack.enter_async_context(fake_agent(says_ok))
    id = await execution_of(server, agent, criteria=IS_POLITE, idempotent=True)
    await holds(lambda: len(judge.requests) == 1)
    return Case(agent, id)


async def was_just_accepted(server: Server, stack: AsyncExitStack) -> Case:
    agent = await stack.enter_async_context(fake_agent(says_ok))
    return Case(agent, await execution_of(server, agent, idempotent=True))


@pytest.mark.timeout(120)
async def test_killed_server_goes_on_with_each_execution_where_its_rows_say(
    database_url: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        judge = await stack.enter_async_context(openai_server.running())
        judge.script.append(openai_server.hangs)
        server = await stack.enter_async_context(
            serving(
                database_url, tmp_path, OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=judge.base_url
            )
        )
        cut_off = await waits_for_agent(server, stack, idempotent=True)
        lost = await waits_for_agent(server, stack, idempotent=False)
        pausing = await waits_to_retry(server, stack, idempotent=True)
        pausing_too = await waits_to_retry(server, stack, idempotent=False)
        judging = await waits_for_judge(server, stack, judge)
        accepted = await was_just_accepted(server, stack)
        await server.kill()
        await server.start()
        for case in (cut_off, lost, pausing, pausing_too, judging, accepted):
            case.job = await settled(server, case.id)
        check_repeated_with_its_key(cut_off)
        check_lost(lost)
        check_repeated_after_its_pause(pausing)
        check_repeated_after_its_pause(pausing_too)
        check_only_judged_again(judging)
        check_done_at_least_once(accepted)
        assert len(judge.requests) == 2


def check_repeated_with_its_key(case: Case) -> None:
    check_completed(case)
    first, second = case.agent.received
    assert key_of(first) == key_of(second)
    assert types(case.job).count("AGENT_REQUEST") == 2


def check_repeated_after_its_pause(case: Case) -> None:
    check_repeated_with_its_key(case)
    first, second = case.agent.received
    assert second.at - first.at >= PAUSE


def check_completed(case: Case) -> None:
    assert case.job["status"] == "COMPLETED"
    assert case.job["statusReason"] == "VERDICT_PASSED"
    assert case.job["result"] == {"answer": "ok"}
    assert case.job["attempts"]["nodes"] == [{"state": "SUCCEEDED", "error": None}]
    assert types(case.job)[-4:] == [
        "VALIDATOR_REQUEST",
        "VALIDATOR_RESPONSE",
        "VERDICT",
        "STATUS_CHANGE",
    ]


def check_lost(case: Case) -> None:
    assert case.job["status"] == "RESUBMISSION_REQUIRED"
    assert case.job["statusReason"] == "WORKER_LOST"
    assert "was not asked again" in case.job["statusMessage"]
    assert case.job["attempts"]["nodes"] == [
        {"state": "LOST", "error": {"code": "WORKER_LOST", "mayHaveExecuted": True}}
    ]
    assert len(case.agent.received) == 1


def check_only_judged_again(case: Case) -> None:
    check_completed(case)
    assert len(case.agent.received) == 1
    told = types(case.job)
    assert told.count("AGENT_REQUEST") == told.count("AGENT_RESPONSE") == 1
    assert told.count("VALIDATOR_REQUEST") == 2
    assert told.count("VALIDATOR_RESPONSE") == told.count("VERDICT") == 1


def check_done_at_least_once(case: Case) -> None:
    check_completed(case)
    assert len({key_of(each) for each in case.agent.received}) == 1


@pytest.mark.timeout(120)
async def test_stopped_server_ends_in_time_and_the_next_one_resumes(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server, AsyncExitStack() as stack:
        case = await waits_for_agent(server, stack, idempotent=True)
        async with asyncio.timeout(20):
            assert await server.stop() == 0
        assert "Traceback" not in server.log
        await server.start()
        case.job = await settled(server, case.id)
        check_repeated_with_its_key(case)


@pytest.mark.timeout(120)
async def test_stopping_server_lets_an_execution_end_that_is_nearly_done(
    database_url: str, tmp_path: Path
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def waits(received: Received) -> None:
        asked.set()
        await go_on.wait()
        await says_ok(received)

    async with (
        fake_agent(waits) as agent,
        serving(database_url, tmp_path, SIGNOFF_SHUTDOWN_SECONDS="15") as server,
    ):
        case = Case(agent, await execution_of(server, agent, idempotent=False))
        await asked.wait()
        stopping = asyncio.create_task(server.stop())
        await holds(lambda: "stopping" in server.log)
        go_on.set()
        async with asyncio.timeout(15):
            assert await stopping == 0
        await server.start()
        case.job = await read(server, case.id)
        check_completed(case)
        assert len(agent.received) == 1
