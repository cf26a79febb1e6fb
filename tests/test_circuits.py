"""An agent that keeps failing is left alone, then tried by one execution."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from models import Agent, AgentGate, CriteriaSet, Job, JobStatus, QueueEntry
from models.base import uuid7
from services import agents, circuits, decisions, execution, queue, waiting
from services.actors import LOCAL_ADMIN
from services.agent_http import AgentCallFailed, AgentFault
from services.agents import SaveAgent
from services.attempts import Run
from services.circuits import Circuit, CircuitState
from services.decisions import CancelJob
from services.errors import NotFound
from services.runtime import Runtime
from services.transactions import atomic
from services.values import parse_id, public_id
from services.workers import Orphan
from signoff.wiring import runtime
from tests.fakes.agents import Behaviour, Received, fake_agent
from tests.support.graphql import agent as saved_agent
from tests.support.graphql import gql, mutate
from tests.support.making import (
    MEMBER,
    answers,
    attempts_of,
    execute,
    holds,
    in_turn,
    make_agent,
    make_job,
    says_no,
    says_ok,
    stalls,
    until,
)
from tests.support.running import Client, settings_for

SECONDS = 300.0
BROKEN = "The agent answered 500 Internal Server Error. Its own logs tell why."
CLOSED = Circuit(CircuitState.CLOSED)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
FAR = datetime(2100, 1, 1, tzinfo=UTC)

breaks = answers({}, "500 Internal Server Error")


@pytest.fixture
async def rt(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """Circuits open at the third failure."""
    settings = settings_for(
        database_url, tmp_path, circuit_failures=3, circuit_seconds=SECONDS, agent_tries=1
    )
    async with runtime(settings, allow_private_agents=True) as running:
        yield running


@pytest.fixture
async def idle(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """The same without a worker."""
    settings = settings_for(database_url, tmp_path, circuit_failures=3, circuit_seconds=SECONDS)
    async with runtime(settings, allow_private_agents=True, work=False) as running:
        yield running


async def circuit_of(agent: Agent) -> Circuit:
    (found,) = await circuits.of_agents([agent.id])
    return found


async def waiting_for(job: Job) -> str | None:
    (found,) = await waiting.reasons([job.id])
    return found


async def run_some(rt: Runtime, agent: Agent, count: int) -> list[Job]:
    """Executions one after the other."""
    return [await execute(rt, await make_job(rt, agent)) for _ in range(count)]


async def queued(rt: Runtime, agent: Agent, count: int = 1) -> list[Job]:
    jobs = [await make_job(rt, agent) for _ in range(count)]
    return [await execute(rt, job, wait_seconds=0) for job in jobs]


async def settled(job: Job) -> Job:
    async def found() -> Job | None:
        now = await Job.get(id=job.id)
        return None if execution.is_running(now) else now

    return await until(found)


async def half_open(agent: Agent, failures: int = 3) -> None:
    """As if the time of being open were over."""
    await AgentGate.update_or_create(
        agent_id=agent.id,
        defaults={
            "open_until": LONG_AGO,
            "failures": failures,
            "opened": 1,
            "reason": BROKEN,
        },
    )


async def taken(rt: Runtime, worker: Any = None) -> int:
    return len((await queue.take(worker or uuid7(), 100, suspects=True)).taken)


# Opening


async def test_failures_in_a_row_open_the_circuit_and_nothing_is_sent_any_more(
    rt: Runtime,
) -> None:
    async with fake_agent(breaks) as fake:
        agent = await make_agent(rt, fake.url)
        with capture_logs() as logs:
            await run_some(rt, agent, 2)
            assert await circuit_of(agent) == Circuit(CircuitState.CLOSED, 2, BROKEN)
            assert logs == []
            before = datetime.now(UTC)
            await run_some(rt, agent, 1)
        found = await circuit_of(agent)
        assert found.open_until
        assert found == Circuit(CircuitState.OPEN, 3, BROKEN, found.open_until)
        least = before + timedelta(seconds=SECONDS)
        assert least <= found.open_until <= datetime.now(UTC) + timedelta(seconds=SECONDS)
        assert [entry for entry in logs if entry["event"] == "circuit opened"] == [
            {
                "event": "circuit opened",
                "log_level": "warning",
                "agent_id": public_id("agent", agent.id),
                "agent": agent.name,
                "seconds": SECONDS,
                "reason": BROKEN,
            }
        ]
        (job,) = await queued(rt, agent)
        at = found.open_until.isoformat(timespec="seconds")
        assert await waiting_for(job) == f"agent's circuit is open until {at}: {BROKEN}"
        assert await taken(rt) == 0
        assert (await QueueEntry.get(job_id=job.id)).state == "WAITING"
        assert len(fake.received) == 3


async def test_a_probe_that_succeeds_closes_the_circuit_for_the_others(rt: Runtime) -> None:
    async with fake_agent(in_turn(breaks, breaks, breaks, says_ok)) as fake:
        agent = await make_agent(rt, fake.url)
        await run_some(rt, agent, 3)
        jobs = await queued(rt, agent, 4)
        with capture_logs() as logs:
            await half_open(agent)
            rt.engine.wake()
            done = [await settled(job) for job in jobs]
        assert {job.status for job in done} == {JobStatus.COMPLETED}
        assert len(fake.received) == 3 + 4
    assert await circuit_of(agent) == CLOSED
    (closed,) = [entry for entry in logs if entry["event"] == "circuit closed"]
    assert closed["reason"] == "it answered"


async def test_a_probe_that_fails_opens_it_again_for_twice_as_long(rt: Runtime) -> None:
    async with fake_agent(breaks) as fake:
        agent = await make_agent(rt, fake.url)
        await run_some(rt, agent, 3)
        with capture_logs() as logs:
            for expected in (2, 3):
                await AgentGate.filter(agent_id=agent.id).update(open_until=LONG_AGO)
                (job,) = await queued(rt, agent)
                assert (await settled(job)).status is JobStatus.RESUBMISSION_REQUIRED
                gate = await AgentGate.get(agent_id=agent.id)
                assert (gate.opened, gate.failures) == (expected, 2 + expected)
                assert circuits.of(gate).state is CircuitState.OPEN
        opened = [entry["seconds"] for entry in logs if entry["event"] == "circuit opened"]
        assert opened == [600.0, 600.0]
        assert len(fake.received) == 5


def test_each_opening_in_a_row_lasts_twice_as_long_up_to_ten_minutes() -> None:
    assert circuits.durations(30) == [30, 60, 120, 240, 480, 600]
    assert circuits.durations(600) == [600]
    assert circuits.durations(400) == [400, 600]


async def test_the_first_failure_can_open_it(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path, circuit_failures=1, agent_tries=1)
    async with runtime(settings, allow_private_agents=True) as rt:
        agent = await make_agent(rt)
        await run_some(rt, agent, 1)
        found = await circuit_of(agent)
    assert (found.state, found.failures) == (CircuitState.OPEN, 1)


async def test_no_circuit_opens_where_they_are_turned_off(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path, circuit_failures=0)
    async with runtime(settings, allow_private_agents=True) as rt, fake_agent(breaks) as fake:
        agent = await make_agent(rt, fake.url)
        await run_some(rt, agent, 7)
        assert await circuit_of(agent) == CLOSED
        assert await AgentGate.all().count() == 0


# What counts


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (breaks, BROKEN),
        (answers({}, "503 Service Unavailable"), "503 Service Unavailable. It is busy"),
        (answers({}, "302 Found"), "302 Found. Redirects are not followed"),
        (answers({}, "408 Request Timeout"), "408 Request Timeout"),
    ],
    ids=["500", "503", "302", "408"],
)
async def test_calls_without_an_answer_count(rt: Runtime, behave: Behaviour, reason: str) -> None:
    async with fake_agent(behave) as fake:
        agent = await make_agent(rt, fake.url)
        await run_some(rt, agent, 1)
    found = await circuit_of(agent)
    assert (found.state, found.failures) == (CircuitState.CLOSED, 1)
    assert found.reason
    assert reason in found.reason


async def test_an_agent_that_cannot_be_reached_or_talks_nonsense_counts(rt: Runtime) -> None:
    async def nonsense(received: Received) -> None:
        await received.answer(b"<html>")

    nowhere = await make_agent(rt)
    await run_some(rt, nowhere, 1)
    async with fake_agent(nonsense) as fake:
        strange = await make_agent(rt, fake.url)
        await run_some(rt, strange, 1)
    async with fake_agent(stalls) as fake:
        slow = await make_agent(rt, fake.url, timeout_seconds=1)
        await run_some(rt, slow, 1)
    found = [await circuit_of(agent) for agent in (nowhere, strange, slow)]
    assert [circuit.failures for circuit in found] == [1, 1, 1]


@pytest.mark.parametrize(
    "behave",
    [
        answers({}, "400 Bad Request"),
        answers({}, "401 Unauthorized"),
        answers({}, "429 Too Many Requests", "retry-after: 0"),
        says_no,
    ],
    ids=["400", "401", "429", "bad work"],
)
async def test_refusals_and_bad_work_do_not_count(rt: Runtime, behave: Behaviour) -> None:
    async with fake_agent(behave) as fake:
        agent = await make_agent(rt, fake.url)
        await run_some(rt, agent, 4)
        assert len(fake.received) == 4
    assert await circuit_of(agent) == CLOSED
    assert await AgentGate.all().count() == 0  # healthy agents cost no write


@pytest.mark.parametrize("answer", [says_ok, answers({}, "404 Not Found")], ids=["200", "404"])
async def test_an_answer_in_between_begins_the_row_anew(rt: Runtime, answer: Behaviour) -> None:
    async with fake_agent(in_turn(breaks, breaks, answer, breaks, breaks)) as fake:
        agent = await make_agent(rt, fake.url)
        with capture_logs() as logs:
            await run_some(rt, agent, 3)
            assert await circuit_of(agent) == CLOSED
            await run_some(rt, agent, 2)
        assert await circuit_of(agent) == Circuit(CircuitState.CLOSED, 2, BROKEN)
    assert [entry for entry in logs if "circuit" in entry["event"]] == []


async def test_a_call_that_we_cut_off_does_not_count(rt: Runtime) -> None:
    async with fake_agent(stalls) as fake:
        agent = await make_agent(rt, fake.url)
        (job,) = await queued(rt, agent)
        await holds(lambda: len(fake.received) == 1)
        await decisions.cancel(rt, MEMBER, CancelJob.model_validate({"id": job.id}))
        await fake.all_closed()
    assert await circuit_of(agent) == CLOSED


async def test_each_try_of_an_attempt_counts(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path, circuit_failures=3, agent_tries=4)
    async with runtime(settings, allow_private_agents=True) as rt:
        agent = await make_agent(rt)
        await run_some(rt, agent, 1)
        found = await circuit_of(agent)
    assert (found.state, found.failures) == (CircuitState.OPEN, 4)


async def test_failures_counted_by_several_at_once_open_it_once(idle: Runtime) -> None:
    agent = await make_agent(idle)
    (job,) = await queued(idle, agent)
    attempt, criteria = (await attempts_of(job))[0], await CriteriaSet.get(job_id=job.id)
    this = Run(job, attempt, agent, criteria)

    @atomic
    async def fail(rt: Runtime, run: Run) -> None:
        failure = AgentCallFailed(AgentFault.DISCONNECTED, "Gone.", may_have_executed=True)
        circuits.failed(rt, run, failure)

    with capture_logs() as logs:
        await asyncio.gather(*(fail(idle, this) for _ in range(20)))
    gate = await AgentGate.get(agent_id=agent.id)
    assert (gate.failures, gate.opened, gate.reason) == (20, 1, "Gone.")
    assert [entry["event"] for entry in logs] == ["circuit opened"]


# Half open


async def test_one_execution_at_a_time_tries_a_half_open_circuit(rt: Runtime) -> None:
    go_on = asyncio.Event()

    async def answer_later(received: Received) -> None:
        await go_on.wait()
        await says_ok(received)

    async with fake_agent(answer_later) as fake:
        agent = await make_agent(rt, fake.url)
        await half_open(agent)
        jobs = await queued(rt, agent, 3)
        await holds(lambda: len(fake.received) == 1)
        found = await circuit_of(agent)
        assert found == Circuit(CircuitState.HALF_OPEN, 3, BROKEN, LONG_AGO)
        assert await taken(rt) == 0
        reasons = await waiting.reasons([job.id for job in jobs])
        waits = f"agent's circuit is half open, and another execution tries it: {BROKEN}"
        assert sorted(reasons, key=str) == [None, waits, waits]
        assert await waiting.running_counts([agent.id]) == [1]
        go_on.set()
        assert {(await settled(job)).status for job in jobs} == {JobStatus.COMPLETED}


async def test_a_probe_whose_worker_is_lost_lets_the_next_one_try(idle: Runtime) -> None:
    agent = await make_agent(idle)
    await half_open(agent)
    await queued(idle, agent, 2)
    lost, peer = uuid7(), uuid7()
    assert (await taken(idle, lost), await taken(idle, peer)) == (1, 0)
    (gone,) = await QueueEntry.filter(worker_id=lost)
    await execution.take_over(idle, Orphan(gone.job_id, gone.number, lost))
    assert (await taken(idle, peer), await taken(idle, lost)) == (1, 0)


async def test_a_suspicious_execution_waits_for_the_circuit_too(idle: Runtime) -> None:
    agent = await make_agent(idle)
    first, _ = await queued(idle, agent, 2)
    await QueueEntry.filter(job_id=first.id).update(state="SUSPECT")
    await half_open(agent)
    await AgentGate.filter(agent_id=agent.id).update(open_until=FAR)
    assert await taken(idle) == 0
    await AgentGate.filter(agent_id=agent.id).update(open_until=LONG_AGO)
    assert (await taken(idle), await taken(idle)) == (1, 0)


@pytest.mark.parametrize("state", ["WAITING", "SUSPECT"])
@pytest.mark.parametrize("looked_at", [False, True])
async def test_a_probe_goes_beside_what_the_agent_accepted_before_if_there_is_room(
    idle: Runtime, state: str, *, looked_at: bool
) -> None:
    agent = await make_agent(idle, max_concurrency=1)
    accepted, probe = await queued(idle, agent, 2)
    entry = QueueEntry.filter(job_id=accepted.id)
    await entry.update(state="AWAITING", ready_at=LONG_AGO if looked_at else FAR)
    looks = await queue.resume(uuid7(), 100, datetime.now(UTC))
    assert len(looks.taken) == looked_at
    await QueueEntry.filter(job_id=probe.id).update(state=state)
    await half_open(agent)
    assert await taken(idle) == 0
    assert await waiting_for(probe) == "agent is at its maxConcurrency of 1"
    await Agent.filter(id=agent.id).update(max_concurrency=2)
    assert await waiting_for(probe) == "a free worker"
    assert (await taken(idle), await taken(idle)) == (1, 0)


# By hand, and as clients see it


async def test_an_admin_closes_a_circuit_by_hand(client: Client) -> None:
    async with saved_agent(client) as (agent_id, _):
        key = parse_id("agent", agent_id)
        await AgentGate.create(
            agent_id=key, failures=5, opened=2, open_until=FAR, reason=BROKEN, rate_at=7
        )
        read = """query($id: ID!) { agent(id: $id) {
            runningCount circuit { state failures reason openUntil } } }"""
        assert (await gql(client, read, id=agent_id))["agent"] == {
            "runningCount": 0,
            "circuit": {
                "state": "OPEN",
                "failures": 5,
                "reason": BROKEN,
                "openUntil": "2100-01-01T00:00:00+00:00",
            },
        }
        made = await mutate(
            client,
            "createJob",
            input={
                "name": "A job",
                "acceptanceCriteria": {
                    "items": [{"text": "ok", "kind": "CONTAINS", "config": {"value": "ok"}}]
                },
                "input": {"ok": True},
                "assign": {"agentId": agent_id},
            },
        )
        await mutate(client, "executeJob", input={"id": made["id"]})
        waits = "query($id: ID!) { job(id: $id) { phase waitingFor } }"
        assert (await gql(client, waits, id=made["id"]))["job"] == {
            "phase": "QUEUED",
            "waitingFor": "agent's circuit is open until 2100-01-01T00:00:00+00:00: " + BROKEN,
        }
        reset = await mutate(client, "resetAgentCircuit", id=agent_id)
        assert reset["__typename"] == "Agent"

        async def completed() -> bool:
            found = await gql(client, "query($id: ID!) { job(id: $id) { status } }", id=made["id"])
            return found["job"]["status"] == "COMPLETED"

        await until(completed)
        gate = await AgentGate.get(agent_id=key)
        assert (gate.failures, gate.opened, gate.open_until, gate.rate_at) == (0, 0, None, 7)
        assert (await gql(client, waits, id=made["id"]))["job"]["waitingFor"] is None


async def test_resetting_what_never_failed_changes_nothing(idle: Runtime) -> None:
    agent = await make_agent(idle)
    assert (await circuits.reset(idle, LOCAL_ADMIN, agent.id)).id == agent.id
    assert await AgentGate.all().count() == 0
    with pytest.raises(NotFound):
        await circuits.reset(idle, LOCAL_ADMIN, uuid7())


async def test_a_change_of_the_agent_leaves_its_circuit_as_it_is(idle: Runtime) -> None:
    agent = await make_agent(idle)
    await half_open(agent)
    command = SaveAgent.model_validate(
        {"id": agent.id, "name": agent.name, "endpoint_url": agent.endpoint_url}
    )
    await agents.save(idle, LOCAL_ADMIN, command)
    assert (await circuit_of(agent)).state is CircuitState.HALF_OPEN
    assert await attempts_of((await queued(idle, agent))[0])
