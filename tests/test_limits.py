"""Limits of agents over all workers, and the bound on the queue."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from models import (
    Agent,
    AgentAvailability,
    AgentGate,
    Job,
    JobStatus,
    QueueEntry,
    QueueState,
    Worker,
    statements,
)
from models.base import uuid7
from services import agents, bounds, decisions, lanes, queue, waiting
from services.actors import LOCAL_ADMIN
from services.decisions import ForceComplete, ResubmitJob
from services.errors import LimitExceeded
from services.runtime import Runtime
from services.values import parse_id
from signoff.app import create_app
from signoff.wiring import runtime
from tests.fakes.agents import Received, fake_agent
from tests.support import commands
from tests.support.graphql import Json, gql, mutate, new_job, read_job
from tests.support.graphql import agent as saved_agent
from tests.support.making import (
    ADMIN,
    attempts_of,
    execute,
    holds,
    in_turn,
    make_agent,
    make_job,
    says_no,
    says_ok,
    snapshot,
    until,
)
from tests.support.running import AiohttpClient, settings_for

only_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
MINUTE = 60 * lanes.SECOND
FAR = datetime(2100, 1, 1, tzinfo=UTC)


async def queued(rt: Runtime, agent: Agent, count: int = 1) -> list[Job]:
    jobs = [await make_job(rt, agent) for _ in range(count)]
    return [await execute(rt, job, wait_seconds=0) for job in jobs]


async def take(worker: UUID | None = None) -> queue.Turn:
    return await queue.take(worker or uuid7(), 100, suspects=True)


async def waiting_for(job: Job) -> str | None:
    (found,) = await waiting.reasons([job.id])
    return found


# Rates


async def test_a_rate_holds_over_workers_that_take_at_the_same_time(idle: Runtime) -> None:
    agent = await make_agent(idle, rate_per_minute=1)
    await queued(idle, agent, 5)
    before = lanes.micros(datetime.now(UTC))
    rounds = await asyncio.gather(*(take() for _ in range(4)))
    assert sorted(len(each.taken) for each in rounds) == [0, 0, 0, 1]
    assert await QueueEntry.filter(state=QueueState.RUNNING).count() == 1
    gate = await AgentGate.get(agent_id=agent.id)
    assert before + MINUTE <= gate.rate_at <= lanes.micros(datetime.now(UTC)) + MINUTE


async def test_nothing_is_taken_before_the_rate_allows_it_and_the_worker_knows_when(
    idle: Runtime,
) -> None:
    agent = await make_agent(idle, rate_per_minute=1)
    (job, *_) = await queued(idle, agent, 3)
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=50)
    await AgentGate.create(agent_id=agent.id, rate_at=lanes.micros(soon))
    found = await take()
    assert (found.taken, found.again_at) == ([], soon)
    assert await waiting_for(job) == (
        f"agent is at its ratePerMinute of 1 until {soon.isoformat()}"
    )
    await AgentGate.filter(agent_id=agent.id).update(rate_at=0)
    assert [len((await take()).taken) for _ in range(2)] == [1, 0]


async def test_a_raised_rate_holds_at_once(idle: Runtime) -> None:
    agent = await make_agent(idle, rate_per_minute=60_000)
    await queued(idle, agent, 3)
    await AgentGate.create(agent_id=agent.id, rate_at=lanes.micros(FAR))
    before = datetime.now(UTC)
    found = await take()
    assert found.taken == []
    assert found.again_at is not None
    assert found.again_at - timedelta(milliseconds=1) <= datetime.now(UTC)
    assert found.again_at >= before


async def test_a_suspect_is_not_taken_faster_than_its_agent_s_rate(idle: Runtime) -> None:
    agent = await make_agent(idle, rate_per_minute=1)
    await queued(idle, agent, 2)
    await QueueEntry.all().update(state=QueueState.SUSPECT, lost=queue.SUSPICIOUS)
    before = lanes.micros(datetime.now(UTC))
    found = [(await queue.take(uuid7(), 10, suspects=True)).taken for _ in range(2)]
    assert [len(each) for each in found] == [1, 0]
    assert (await AgentGate.get(agent_id=agent.id)).rate_at >= before + MINUTE


async def test_a_second_s_worth_may_begin_at_once_and_idle_time_is_not_saved_up(
    idle: Runtime,
) -> None:
    agent = await make_agent(idle, rate_per_minute=6000)
    await queued(idle, agent, 3)
    now = datetime.now(UTC) + timedelta(days=1)  # so that no time passes in this test
    await AgentGate.create(agent_id=agent.id, rate_at=lanes.micros(now))
    assert lanes.Rate.of(now, lanes.micros(now), 6000).room == 100
    assert lanes.Rate.of(now, 0, 6000).room == 100
    assert lanes.Rate.of(now, lanes.micros(now) + 99 * 10_000, 6000).room == 1
    assert lanes.Rate.of(now, lanes.micros(now) + 100 * 10_000, 6000).room == 0
    assert (await take()).taken == []


async def test_the_rate_is_saved_shown_and_removed(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await aiohttp_client(create_app(settings_for(database_url, tmp_path)))
    read = """query($id: ID!) { agent(id: $id) {
        ratePerMinute maxCallTokens maxCallCostUsd maxConcurrency } }"""
    given: Json = {"ratePerMinute": 90, "maxCallTokens": 500, "maxCallCostUsd": 0.25}
    async with saved_agent(client, **given) as (id, endpoint):
        least = {"id": id, "name": "Echo", "endpointUrl": endpoint.url}
        await mutate(client, "saveAgent", input=least)
        assert (await gql(client, read, id=id))["agent"] == given | {"maxConcurrency": 10}
        await mutate(client, "saveAgent", input=least | dict.fromkeys(given))
        found = (await gql(client, read, id=id))["agent"]
        assert found == dict.fromkeys(given) | {"maxConcurrency": 10}
        for wrong in ({"ratePerMinute": 0}, {"ratePerMinute": 60_001}, {"maxCallCostUsd": -1}):
            refused = await mutate(client, "saveAgent", input=least | wrong)
            assert refused["__typename"] == "InvalidInput"
            assert [each["path"] for each in refused["fields"]] == [["input", *wrong]]


# Concurrency


@only_postgres
@pytest.mark.timeout(240)
async def test_a_limit_holds_over_worker_processes(database_url: str, tmp_path: Path) -> None:
    """Each worker runs two at once, so the three that an agent allows are those of both."""
    present, highest = 0, 0
    full = asyncio.Event()

    async def count(received: Received) -> None:
        nonlocal present, highest
        present += 1
        highest = max(highest, present)
        if present == 3:
            full.set()
        await full.wait()
        await asyncio.sleep(0.02)  # long enough for one too many to be seen
        present -= 1
        await says_ok(received)

    settings = settings_for(database_url, tmp_path)
    environment = commands.environment(
        SIGNOFF_DATABASE_URL=database_url,
        SIGNOFF_KEY_FILE=str(settings.key_file),
        SIGNOFF_ALLOW_PRIVATE_AGENTS="1",
        SIGNOFF_MAX_EXECUTIONS="2",
    )
    async with AsyncExitStack() as stack:
        rt = await stack.enter_async_context(
            runtime(settings, allow_private_agents=True, work=False)
        )
        fake = await stack.enter_async_context(fake_agent(count))
        for _ in range(2):
            await stack.enter_async_context(commands.process(tmp_path, environment, "worker"))

        async def both_are_there() -> bool:
            return await Worker.all().count() == 2

        await until(both_are_there, commands.SECONDS)
        agent = await make_agent(rt, fake.url, max_concurrency=3)
        jobs = await queued(rt, agent, 20)

        async def all_done() -> bool:
            ids = [job.id for job in jobs]
            return await Job.filter(id__in=ids, status=JobStatus.COMPLETED).count() == 20

        await until(all_done, commands.SECONDS)
    assert highest == 3
    assert len(fake.received) == 20


async def test_what_waits_for_a_full_agent_says_so(idle: Runtime) -> None:
    agent = await make_agent(idle, max_concurrency=2)
    one, two, three = await queued(idle, agent, 3)
    assert await waiting_for(one) == "a free worker"
    assert len((await take()).taken) == 2
    found = await waiting.reasons([one.id, two.id, three.id, uuid7()])
    assert found == [None, None, "agent is at its maxConcurrency of 2", None]
    other = await make_agent(idle)
    assert await waiting.running_counts([other.id, agent.id]) == [0, 2]


async def test_what_waits_for_an_agent_that_is_paused_or_sleeps_says_so(idle: Runtime) -> None:
    agent = await make_agent(idle)
    asleep, awake = await queued(idle, agent, 2)
    await QueueEntry.filter(job_id=asleep.id).update(state=QueueState.SLEEPING, ready_at=FAR)
    await agents.set_availability(idle, LOCAL_ADMIN, agent.id, AgentAvailability.PAUSED)
    assert await waiting_for(asleep) == "a pause until 2100-01-01T00:00:00+00:00"
    assert await waiting_for(awake) == "agent is PAUSED"
    assert (await take()).taken == []


# The bound on the queue


async def test_an_execution_beyond_the_bound_is_refused_and_changes_nothing(
    idle: Runtime,
) -> None:
    idle.bound.limit = 2
    agent = await make_agent(idle)
    await queued(idle, agent, 2)
    job = await make_job(idle, agent)
    before = await snapshot(job)
    with pytest.raises(LimitExceeded) as refused:
        await execute(idle, job, wait_seconds=0)
    assert refused.value.limit == 2
    assert await snapshot(job) == before
    assert await QueueEntry.all().count() == 2
    assert len((await queue.take(uuid7(), 1, suspects=True)).taken) == 1  # there is room again
    await execute(idle, job, wait_seconds=0)
    assert await QueueEntry.all().count() == 3


async def test_a_resubmission_that_is_to_run_is_refused_as_a_whole(idle: Runtime) -> None:
    idle.bound.limit = 1
    agent = await make_agent(idle)
    await queued(idle, agent)
    job = await make_job(idle, agent)
    force = ForceComplete.model_validate({"id": job.id, "result": 1, "reason": "Done."})
    await decisions.force_complete(idle, ADMIN, force)
    before = await snapshot(job)
    again = {"id": job.id, "reason": "Once more."}
    command = ResubmitJob.model_validate(again | {"execute": True})
    with pytest.raises(LimitExceeded):
        await decisions.resubmit(idle, ADMIN, command)
    assert await snapshot(job) == before
    later = await decisions.resubmit(idle, ADMIN, ResubmitJob.model_validate(again))
    assert later.status is JobStatus.RESUBMISSION_REQUIRED


async def test_what_the_system_starts_is_not_refused(database_url: str, tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def breaks(received: Received) -> None:
        await go_on.wait()
        await received.answer(b"", "500 Oh")

    settings = settings_for(database_url, tmp_path)
    async with (
        runtime(settings, allow_private_agents=True) as rt,
        fake_agent(in_turn(breaks, says_no, says_ok)) as fake,
    ):
        agent, down = await make_agent(rt, fake.url, idempotent=True), await make_agent(rt)
        await AgentGate.create(agent_id=down.id, open_until=FAR, reason="It is down.")
        policy = {"max_attempts": 3, "initial_seconds": 0, "retry_on_verdict_fail": True}
        job = await make_job(rt, agent, retry_policy=policy)
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(fake.received) == 1)
        await queued(rt, down)
        rt.bound.limit = 1
        with pytest.raises(LimitExceeded):
            await queued(rt, down)
        go_on.set()

        async def completed() -> bool:
            return (await Job.get(id=job.id)).status is JobStatus.COMPLETED

        await until(completed)
        assert len(await attempts_of(job)) == 3


async def test_while_there_is_room_the_queue_is_not_counted_each_time(idle: Runtime) -> None:
    """What another process adds is seen a second later, or when the limit seems reached."""
    idle.bound.fresh_seconds = 1e9
    idle.bound.limit = 3
    agent = await make_agent(idle)
    await queued(idle, agent)
    beside = await make_job(idle, agent)
    entry = queue.insertion(await Job.get(id=beside.id))
    await statements.database().execute_batch([entry])
    await queued(idle, agent, 2)
    assert await QueueEntry.all().count() == 4
    with pytest.raises(LimitExceeded):
        await queued(idle, agent)


async def test_who_comes_while_the_queue_is_counted_is_not_refused(idle: Runtime) -> None:
    agent = await make_agent(idle)
    made = [await make_job(idle, agent) for _ in range(5)]
    await asyncio.gather(*(execute(idle, job, wait_seconds=0) for job in made))
    assert await QueueEntry.all().count() == 5


async def test_a_full_queue_is_not_counted_for_each_refusal(
    idle: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle.bound.fresh_seconds = 1e9
    idle.bound.limit = 1
    agent = await make_agent(idle)
    await queued(idle, agent)
    monkeypatch.setattr(bounds, "COUNTED_A_SECOND", 1e-9)
    await QueueEntry.all().delete()
    for _ in range(2):
        with pytest.raises(LimitExceeded):
            await queued(idle, agent)
    monkeypatch.setattr(bounds, "COUNTED_A_SECOND", 1e9)
    await queued(idle, agent)
    assert await QueueEntry.all().count() == 1


async def test_clients_are_refused_with_the_limit(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, max_queued=1)
    client = await aiohttp_client(create_app(settings))
    async with saved_agent(client) as (agent_id, _):
        one, two = [await new_job(client, assign={"agentId": agent_id}) for _ in range(2)]
        key = parse_id("agent", agent_id)
        await AgentGate.create(agent_id=key, open_until=FAR, reason="It is down.")
        await mutate(client, "executeJob", input={"id": one["id"]})
        before = await read_job(client, two["id"])
        refused = await mutate(client, "executeJob", input={"id": two["id"]})
        assert refused == {
            "__typename": "LimitExceeded",
            "code": "LIMIT_EXCEEDED",
            "message": "1 executions wait already, which is the limit; try again later.",
            "limit": 1,
        }
        assert await read_job(client, two["id"]) == before
